"""Masks: each token on its own, or a number of tokens that is drawn first."""

import math
from typing import Annotated

import torch
from torch import Tensor

from vdiff._diffusion import Generators
from vdiff._precision import as_float64, to_float64
from vdiff._validate import Whole, require, validated
from vdiff.discrete._tokens import LogProbs, Tokens, per_token
from vdiff.discrete.process import (
    Nats,
    Process,
    Vocabulary,
    of_state,
    step_of,
    tokens_in_range,
)
from vdiff.errors import InvalidValue
from vdiff.gaussian import Level, Step, sum_dims
from vdiff.schedule import LogLinear, Schedule

MaskState = Annotated[int, Whole(at_least=0, hint="the mask's id: no token of the data has it")]
HINT = "a mask within the vocabulary has its id there; left out, it is `vocabulary`"


def mask_is_a_state(vocabulary: int, mask: int | None) -> None:
    """Rule: the mask is within the vocabulary, or the state after it."""
    fits = mask is None or mask <= vocabulary
    require(fits, "mask", f"be at most {vocabulary}", mask, HINT)


class Masked(Process):
    """A token keeps its value with probability α, else it is the mask, `vocabulary`.

        L(x) = ∫ w(λ) α(λ) E Σ_{i masked} −log p(x_i | z) dλ

    A step of a chain has α_s c = (α_s − α_t)/(1 − α_t) in place of α dλ. Ordinary and
    leave-one-out posteriors of masked tokens are the same. Where the vocabulary has a token for
    the mask, `mask` is its id: data never have it, and its logit is ignored.

    Sahoo et al., arXiv:2406.07524 (MDLM); Shi et al., arXiv:2406.04329 (MD4).

    >>> Masked(256).mask, Masked(256).states, Masked(256, mask=3).states
    (256, 257, 256)
    """

    one_posterior = True
    mask: int

    @validated(rules=[mask_is_a_state])
    def __init__(self, vocabulary: Vocabulary, mask: MaskState | None = None) -> None:
        self.vocabulary, self.mask = vocabulary, vocabulary if mask is None else mask
        self.blank = int(mask == 0)  # a value of the data

    def pi(self, logsnr: Tensor) -> Tensor:
        states = torch.arange(self.states, device=logsnr.device)
        return to_float64(states == self.mask).expand(*logsnr.shape, -1)

    def integrand(
        self,
        log_probs: LogProbs,
        z: Tokens,
        x: Tokens,
        logsnr: Level,
        modelled: Tensor | None = None,
    ) -> Nats:
        return per_token(logsnr, x).sigmoid().to(log_probs.dtype) * self._nll(log_probs, z, x)

    def step_kl(self, log_probs: LogProbs, z: Tokens, x: Tokens, step: Step) -> Nats:
        step = step_of(step, x)
        unmasked = step.logsnr_s.sigmoid() * step.fresh
        return unmasked.to(log_probs.dtype) * self._nll(log_probs, z, x)

    @validated(rules=[tokens_in_range])
    def prior(self, x: Tokens, logsnr_min: Tensor | float, mask: Tensor | None = None) -> Tensor:
        kept = per_token(as_float64(logsnr_min, x.device), x).sigmoid()
        return sum_dims((kept * math.log(self.values)).expand(x.shape), mask)

    @validated(rules=[tokens_in_range])
    def reconstruction(
        self, x: Tokens, logsnr_max: Tensor | float, mask: Tensor | None = None
    ) -> Tensor:
        lost = (-per_token(as_float64(logsnr_max, x.device), x)).sigmoid()
        return sum_dims((lost * math.log(self.values)).expand(x.shape), mask)

    def of_values(self, logits: Tensor) -> Tensor:
        if self.mask == self.vocabulary:
            return super().of_values(logits)
        return logits.index_fill(-1, torch.tensor(self.mask, device=logits.device), -math.inf)

    def any_order(self) -> "AnyOrder":
        return AnyOrder(self.vocabulary, self.mask)

    def _nll(self, log_probs: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """−log p(x_i | z) of masked tokens, and 0 of the others."""
        return torch.where(z == self.mask, -of_state(log_probs, x), 0.0)

    def _draw(self, place: Tensor, level: Tensor) -> Tensor:
        return torch.full_like(place, self.mask, dtype=torch.long)

    def __repr__(self) -> str:
        inside = "" if self.mask == self.vocabulary else f", mask={self.mask}"
        return f"{type(self).__name__}({self.vocabulary}{inside})"


class AnyOrder(Masked):
    """Masks of which exactly k = ⌈n (1 − α)⌉ hide the n tokens of an example, uniformly.

        L(x) = ∫ w(λ) α (1 − α) (n/k) E Σ_{i masked} −log p(x_i | z) dλ

    With w = 1 it is the bound of `Masked`, and at exact ends n E_{k ~ U{1…n}} of the mean
    −log p(x_i | z) over masked tokens, for any schedule and any network that gets no time. The
    number of masks is no longer random: one draw varies less, and strata of times are strata of k.
    Ends that are cut short, such as λ = ±2, give two bounds that differ a little.
    Tokens that are given, absent or padding count neither in n nor in k. There is no chain of
    steps, and no λ for each token.

    Uria et al., arXiv:1310.1757; Hoogeboom et al., arXiv:2110.02037 (ARDM).

    >>> process, x = AnyOrder(256), torch.tensor([[7, 8, 9, 10]])
    >>> z = process.corrupt(x, process.noise(x, None, None), torch.zeros(1))
    >>> (z == process.mask).sum()
    tensor(2)
    """

    def noise(
        self,
        x: Tensor,
        given: Tensor | None,
        generator: Generators,
        modelled: Tensor | None = None,
    ) -> Tensor:
        """r/n of a random order r = 0 … n − 1 of the modelled tokens: that of the draw, or of
        what is given."""
        place = to_float64(super().noise(x, given, generator)).flatten(1)
        counts = torch.ones_like(place) if modelled is None else modelled.expand_as(x).flatten(1)
        rank = torch.where(counts > 0, place, 2.0).argsort(1).argsort(1)
        noise = torch.where(counts > 0, rank / counts.sum(1, keepdim=True), 1.0)
        return noise.to(place.dtype).view(x.shape)

    def even(self, logsnr_max: float, logsnr_min: float) -> Schedule:
        return LogLinear(logsnr_max, logsnr_min)  # k is uniform

    def any_order(self) -> "AnyOrder":
        return self

    def corrupt(self, x: Tokens, noise: Tensor, logsnr: Level) -> Tokens:
        """z ~ q(z | x), from `self.noise`. Raises for a λ of each token."""
        one = logsnr[0].numel() == 1
        hint = "Masked masks each token on its own"
        require(one, "schedule", "have one λ for an example", tuple(logsnr.shape), hint)
        return super().corrupt(x, noise, logsnr)

    def integrand(
        self,
        log_probs: LogProbs,
        z: Tokens,
        x: Tokens,
        logsnr: Level,
        modelled: Tensor | None = None,
    ) -> Nats:
        masked = z == self.mask
        counts = torch.ones_like(masked) if modelled is None else modelled.expand_as(masked)
        n, k = (v.flatten(1).sum(1) for v in (counts, masked & counts))
        share = torch.sigmoid(-logsnr.flatten(1)[:, 0] if logsnr.ndim > 1 else -logsnr)
        factor = per_token(share * n / k.clamp(min=1), x).to(log_probs.dtype)
        return factor * super().integrand(log_probs, z, x, logsnr)

    def step_kl(self, log_probs: LogProbs, z: Tokens, x: Tokens, step: Step) -> Nats:
        hint = "Masked has a chain; without steps both bounds are the same"
        raise InvalidValue("steps", "be None for AnyOrder", "a chain's step", hint)


__all__ = ["AnyOrder", "Masked"]

"""A process over tokens as the verbs ask it: what its data are, how noise is drawn, and where a
sampler starts. The formulas are in `process`."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vdiff._diffusion import Diffusion, Generators, Unit, clone_if_inference
from vdiff._inputs import batch, cheap_to_read, dense, is_integer
from vdiff._precision import PURE_NOISE, as_float64, to_float64
from vdiff._validate import Given, require
from vdiff.decoder import Decoder
from vdiff.discrete._draw import DRAWN, draw, first_state, uniform_noise
from vdiff.errors import InvalidType
from vdiff.gaussian import Step
from vdiff.schedule import Cosine, LogLinear, Schedule
from vdiff.schedule.noise_levels import NoiseLevels

Tokens = Int[Tensor, "batch *dims"]
LogProbs = Float[Tensor, "batch *dims vocabulary"]


def check_tokens(process: "TokenProcess", x: Tensor, argument: str) -> None:
    """Raise unless tokens of data are whole numbers below the vocabulary. Reads values."""
    if not is_integer(x):
        raise InvalidType(argument, "be integer tokens", x.dtype, f"{argument}.long()")
    x = x.long() if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x  # to compare
    if cheap_to_read(x) and x.numel():
        low, high = int(x.min()), int(x.max())
        hint = "the mask is no value of the data" if process.mask == high else ""
        inside = low >= 0 and high < process.vocabulary
        got = f"values from {low} to {high}"
        require(inside, argument, f"lie in 0 … {process.vocabulary - 1}", got, hint)
        if process.mask is not None and process.mask < process.vocabulary:
            masked = (x == process.mask).any().item()
            got = f"the mask, {process.mask}"
            require(not masked, argument, "hold no mask: the process masks tokens", got)


class TokenProcess(Diffusion):
    """Tokens with `vocabulary` values, whose noise is one number of U(0, 1) for each."""

    vocabulary: int
    mask: int | None = None
    unit = Unit("bits/token", "text")

    @abstractmethod
    def _draw(self, place: Tensor, level: Tensor) -> Tensor:
        """A state of π(λ) for each place in its cumulative distribution."""

    @abstractmethod
    def reconstruction(
        self, x: Tensor, logsnr_max: Tensor | float, mask: Tensor | None = None
    ) -> Tensor:
        """E[−log p(x | z₀)] of a decoder without the network, (batch,) nats."""

    @property
    def states(self) -> int:
        """How many states a token of z has."""
        return self.vocabulary + (self.mask == self.vocabulary)

    @property
    def values(self) -> int:
        """How many values a token of the data has."""
        return self.states - (self.mask is not None)

    def of_values(self, logits: Tensor) -> Tensor:
        """A network's logits of the values of a token, (…, vocabulary)."""
        return logits[..., : self.vocabulary]

    def check(self, x: Any, argument: str, given: Given) -> Any:
        check_tokens(self, self._known(dense(x, argument, given), given), argument)
        return batch(x, argument, given)

    def _known(self, x: Tensor, given: Given) -> Tensor:
        """Tokens with one of the vocabulary for what is absent, unless `absent` fits no x: its own
        check says so."""
        absent = given.get("absent")
        if x.is_floating_point() or not isinstance(absent, Tensor) or absent.dtype != torch.bool:
            return x
        sizes = zip(reversed(x.shape), reversed(absent.shape), strict=False)
        fits = absent.ndim <= x.ndim and all(own in (1, size) for size, own in sizes)
        return x.long().masked_fill(absent, self.blank) if fits else x

    def check_decoder(self, decoder: Decoder | None) -> None:
        hint = "the process decodes tokens"
        require(decoder is None, "decoder", "be left out for tokens", decoder, hint)

    def ready(self, x: Tensor) -> Tensor:
        return clone_if_inference(x.long())

    def noise(
        self,
        x: Tensor,
        given: Tensor | None,
        generator: Generators,
        modelled: Tensor | None = None,
    ) -> Tensor:
        return self.draw(x, generator) if given is None else clone_if_inference(given)

    def draw(self, x: Tensor, generator: Generators) -> Tensor:
        return uniform_noise(x, generator)

    def opposite(self, noise: Tensor) -> Tensor:
        return 1 - noise

    def outcomes(self, decoder: Decoder | None) -> int | None:
        return self.values

    def even(self, logsnr_max: float, logsnr_min: float) -> Schedule:
        return Cosine(logsnr_max, logsnr_min)

    def pure(self, x: Tensor, noise: Tensor, logsnr_min: Tensor | float) -> Tensor:
        return self._draw(to_float64(noise), per_token(as_float64(logsnr_min, x.device), x))

    def encode(self, data: Tensor, decoder: Decoder | None) -> Tensor:
        self.check(data, "data", {})
        return self.ready(data)

    def term(
        self, prediction: Any, x: Tensor, noise: Tensor, at: NoiseLevels, *chain: Any
    ) -> Tensor:
        loss: Tensor = prediction.loss(x, noise, at)
        return loss

    def decoded(
        self, decoder: Decoder | None, data: Tensor, x: Tensor, logsnr_max: Tensor | float,
        *draws: Any, **masked: Tensor,
    ) -> Tensor:  # fmt: skip
        return self.reconstruction(x, logsnr_max, **masked)

    @property
    def schedule(self) -> Schedule:
        return LogLinear()

    def check_state(self, z: Any, argument: str, device: torch.device) -> Tensor:
        return first_state(z, argument, self.states, device)

    def check_given(self, x: Tensor, read: Tensor) -> None:
        check_tokens(self, x[read.expand_as(x)], "given")

    def start(self, z: Tensor, logsnr: Tensor, generator: Generators) -> Tensor:
        """z, or z₁ ~ p(z₁) where it is to be drawn: a token that keeps its value is uniform."""
        if bool((z != DRAWN).all()):
            return z.to(torch.long, copy=True)
        level = per_token(logsnr, z).clamp(min=PURE_NOISE)
        place = uniform_noise(z, generator) / torch.sigmoid(-level)
        values = torch.isfinite(self.of_values(level.new_zeros(self.vocabulary))).nonzero()[:, 0]
        kept = values[(uniform_noise(z, generator) * len(values)).long()]
        return torch.where(place < 1, self._draw(place, level).long(), kept)

    def reverse(self, now: Any, z: Tensor, step: Step, generator: Generators) -> Tensor:
        return draw(now.reverse(step), z, generator)

    def data(self, last: Any, generator: Generators) -> Tensor:
        """x ~ p(x | z), each token on its own: a decoder that uses the network."""
        return draw(last.posterior, last.z, generator)


def per_token(v: Tensor, x: Tensor) -> Tensor:
    """A number, a (batch,) vector or a field, in float64 and ready to broadcast over tokens."""
    v = to_float64(v)
    return v if v.ndim == x.ndim else v.view(-1, *[1] * (x.ndim - 1))


__all__ = ["LogProbs", "TokenProcess", "Tokens", "check_tokens", "per_token"]

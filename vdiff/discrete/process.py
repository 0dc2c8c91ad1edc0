"""How tokens lose their values: each keeps its own with probability α, else it is drawn from π.

    q(z_i | x_i) = α [z_i = x_i] + (1 − α) π(z_i),    λ = log α/(1 − α),  α = sigmoid(λ)

π may depend on λ. With π' = dπ/dλ, a token that is still in place at λ jumps in −dλ with the
probability (1 − α) dλ, to a state drawn from π − π'; so this is a process only if π ≥ π'. Masked
diffusion has π on the mask, uniform diffusion on the vocabulary.

The bound of a model with leave-one-out posteriors x̂_i = p(x_i | z_{−i}) and q̂ = α x̂ + (1 − α) π:

    −log p(x) ≤ ∫ E_z Σ_i f(z_i) { KL(q(·|x_i) ‖ q̂_i) + r − log r − 1 } dλ,
    r = q(z_i|x_i)/q̂_i(z_i),   f(z) = (π − π')(z) / (π(z) + e^λ [z = x])

The chain's step from λ_t to λ_s = λ_t + Δ has the same two parts, at λ_s and without a limit: with
d = log q_s(z_t|x)/q̂_s(z_t) and the probability b = (π_t − e^{−Δ} π_s)(z_t)/(π_t(z_t) + e^{λ_t}
[z_t = x]) of a jump in the step,

    KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) = b (KL(q_s ‖ q̂_s) − d) + log1p(b expm1(d)),

which is b times the integrand for small b. Everything is made of log-probabilities: none is
clamped, and α is never subtracted from one.

Austin et al., arXiv:2107.03006 (D3PM); Sahoo et al., arXiv:2406.07524 (MDLM); Shi et al.,
arXiv:2406.04329 (MD4); von Rütte et al., arXiv:2503.04482 (GIDD).
"""

import math
from abc import abstractmethod
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import SameShape
from vdiff._precision import as_float64, to_float64
from vdiff._validate import Whole, validated
from vdiff.discrete._tokens import LogProbs, TokenProcess, Tokens, check_tokens, per_token
from vdiff.gaussian import Level, Step, sum_dims

Vocabulary = Annotated[int, Whole(at_least=2, hint="the number of values a token of the data has")]
Nats = Float[Tensor, "batch *dims"]


def tokens_in_range(self: "Process", x: Tensor) -> None:
    """Rule: `check_tokens`."""
    check_tokens(self, x, "x")


class Process(TokenProcess):
    """A process over tokens with `vocabulary` values, 0 … vocabulary − 1. `states` are those that
    z may have: with a mask one more, `mask` = vocabulary (or a value that data never have).

    A subclass writes π: `pi(logsnr)`, and where it depends on λ `fresh(logsnr)` and `jump(step)`.
    λ is (batch,), or a field with as many dimensions as the tokens.

    >>> class Unigram(Process):
    ...     vocabulary = 2
    ...     def pi(self, logsnr):
    ...         return torch.tensor([0.9, 0.1]).double().expand(*logsnr.shape, 2)
    >>> Unigram().corrupt(torch.tensor([[1, 1]]), torch.tensor([[0.44, 0.46]]), torch.zeros(1))
    tensor([[0, 1]])
    """

    __example__ = "for instance Masked(vocabulary=256)"
    one_posterior: bool = False  # whether p(x_i | z) is p(x_i | z_{−i}) wherever the bound asks

    @abstractmethod
    def pi(self, logsnr: Tensor) -> Tensor:
        """π(λ), (…, states) in float64 for λ of any shape."""

    def fresh(self, logsnr: Tensor) -> Tensor:
        """π − π', the law of a jump at λ, (…, states)."""
        return self.pi(logsnr)

    def jump(self, step: Step) -> Tensor:
        """π_t − e^{−Δ} π_s, the law of a jump in a step times its probability over 1 − α_t."""
        return step.fresh[..., None] * self.pi(step.logsnr_t)

    @validated(rules=[tokens_in_range])
    def corrupt(self, x: Tokens, noise: SameShape, logsnr: Level) -> Tokens:
        """z ~ q(z | x) from `noise`, one number of U(0, 1) for each token.

        A token loses its value where noise < 1 − α, and noise/(1 − α) then draws from π. Noise in
        float32 is a multiple of 2⁻²⁴: draw it in float64, `torch.rand(x.shape, dtype=float64)`.

        >>> noise = torch.tensor([[0.1, 0.6, 0.4]])
        >>> from vdiff.discrete import Masked
        >>> Masked(5).corrupt(torch.tensor([[0, 1, 2]]), noise, torch.zeros(1))
        tensor([[5, 1, 5]])
        """
        level = per_token(logsnr, x)
        place = to_float64(noise) / torch.sigmoid(-level)
        return torch.where(place < 1, self._draw(place, level).to(x.dtype), x)

    def _draw(self, place: Tensor, level: Tensor) -> Tensor:
        """A state of π(λ) for each place in its cumulative distribution."""
        cdf = self.pi(level).cumsum(-1)[..., :-1]
        if level[0].numel() == 1:  # one law for all tokens of an example
            cdf = cdf.reshape(-1, cdf.shape[-1]).expand(len(place), -1).contiguous()
            drawn = torch.searchsorted(cdf, place.flatten(1).contiguous(), right=True)
            return drawn.view(place.shape)
        cdf = cdf.expand(*place.shape, -1).contiguous()
        return torch.searchsorted(cdf, place[..., None].contiguous(), right=True)[..., 0]

    def log_likelihood(self, z: Tokens, logsnr: Level) -> Float[Tensor, "batch *dims vocabulary"]:
        """log q(z_i | x_i) for every value of x_i, in float64."""
        level = per_token(logsnr, z)
        drawn = F.logsigmoid(-level) + of_state(self.pi(level), z).log()
        kept = torch.logaddexp(F.logsigmoid(level), drawn)
        own = z[..., None] == torch.arange(self.vocabulary, device=z.device)
        return torch.where(own, kept[..., None], drawn[..., None])

    def one_hot(self, x: Tokens) -> LogProbs:
        """log [x_i = j], (batch, …, vocabulary): 0 and −∞, in float64."""
        own = x[..., None] == torch.arange(self.vocabulary, device=x.device)
        return to_float64(own).log()

    def integrand(
        self,
        log_probs: LogProbs,
        z: Tokens,
        x: Tokens,
        logsnr: Level,
        modelled: Tensor | None = None,
    ) -> Nats:
        """What each token adds to the bound in dλ, nats. `log_probs` is log p(x_i | z_{−i});
        tokens count where `modelled` is True."""
        level = per_token(logsnr, x)
        d = self._log_ratio(log_probs, z, x, level)
        jumps = self._over_likelihood(self.fresh(level), z, x, level)
        cost = self._kl(log_probs, x, level) + (torch.expm1(d) - d)
        return torch.where(jumps > 0, jumps * cost, 0.0).to(log_probs.dtype)

    def step_kl(self, log_probs: LogProbs, z: Tokens, x: Tokens, step: Step) -> Nats:
        """KL(q(z_s | z_t, x) ‖ p(z_s | z_t)) of each token, nats. `log_probs` is
        log p(x_i | z_{−i}) at λ_t."""
        step = step_of(step, x)
        d = self._log_ratio(log_probs, z, x, step.logsnr_s)
        b = self._over_likelihood(self.jump(step), z, x, step.logsnr_t)
        cost = b * (self._kl(log_probs, x, step.logsnr_s) - d) + torch.log1p(b * torch.expm1(d))
        return torch.where(b > 0, cost, 0.0).to(log_probs.dtype)

    def posterior(
        self, z: Tokens, log_probs: LogProbs, step: Step
    ) -> Float[Tensor, "batch *dims states"]:
        """log p(z_s | z_t) of each token over the states, (batch, …, states), for
        leave-one-out log-probabilities at λ_t; `one_hot(x)` gives q(z_s | z_t, x).

        It is proportional to q(z_t | z_s) q̂_s(z_s), where q(z_t | z_s) = (α_t/α_s) [z_t = z_s] +
        (1 − α_t) (π_t − e^{−Δ} π_s)(z_t).
        """
        step, dtype = step_of(step, z), log_probs.dtype
        log_q = self.log_marginal(log_probs, step.logsnr_s)
        stays = torch.exp(F.logsigmoid(step.logsnr_t) - F.logsigmoid(step.logsnr_s))
        jumps = torch.sigmoid(-step.logsnr_t) * of_state(self.jump(step), z)
        own = z[..., None] == torch.arange(self.states, device=z.device)
        into_z = torch.where(own, (stays + jumps)[..., None], jumps[..., None])
        return (log_q + into_z.log().to(dtype)).log_softmax(-1)

    @validated(rules=[tokens_in_range])
    def prior(
        self, x: Tokens, logsnr_min: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """KL(q(z₁ | x) ‖ p(z₁)), nats per example, the bound's term at λ_min. Under p(z₁) a token
        that keeps its value is uniform on the vocabulary. A sum over tokens where `mask` is True.

        >>> from vdiff.discrete import Masked
        >>> Masked(8).prior(torch.tensor([[1, 2]]), 0.0)  # each is kept with probability ½
        tensor([2.0794], dtype=torch.float64)
        """
        level = per_token(as_float64(logsnr_min, x.device), x)
        return sum_dims(self._kl(self._uniform(x), x, level).expand(x.shape), mask)

    @validated(rules=[tokens_in_range])
    def reconstruction(
        self, x: Tokens, logsnr_max: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """E[−log p(x | z₀)], nats per example, the bound's term at λ_max, where p(x_i | z₀) is in
        proportion to q(z_i | x_i): a decoder without the network. A sum over tokens where `mask`
        is True. (`TokenPrediction.log_prob` is a decoder that uses the network.)

        >>> from vdiff.discrete import Masked
        >>> Masked(8).reconstruction(torch.tensor([[1, 2]]), 0.0)  # half of them are lost
        tensor([2.0794], dtype=torch.float64)
        """
        level = per_token(as_float64(logsnr_max, x.device), x)
        pi, v = self.pi(level), self.vocabulary
        drawn = pi > 0
        odds = level[..., None] - torch.where(drawn, pi, 1.0).log()
        odds = torch.cat([odds[..., :v], torch.full_like(odds[..., v:], -math.inf)], -1)
        share = torch.sigmoid(-level)[..., None] * pi
        others = torch.where(drawn, share * (math.log(v) + F.softplus(odds - math.log(v))), 0.0)
        odds_x, share_x = of_state(odds, x), of_state(share, x)
        own = (torch.sigmoid(level) + share_x) * torch.log1p((v - 1) * torch.sigmoid(-odds_x))
        own = torch.where(share_x > 0, own, 0.0) - of_state(others, x)
        return sum_dims(others.sum(-1) + own, mask)

    def log_marginal(self, log_probs: LogProbs, level: Tensor) -> Tensor:
        """log q̂ = log(α x̂ + (1 − α) π) over the states, (batch, …, states)."""
        log_drawn = F.logsigmoid(-level)[..., None] + self.pi(level).log()
        shape = *log_probs.shape[:-1], self.states
        log_kept = F.logsigmoid(level)[..., None].to(log_probs.dtype) + log_probs
        log_kept = F.pad(log_kept, (0, self.states - self.vocabulary), value=-math.inf)
        return torch.logaddexp(log_kept, log_drawn.to(log_probs.dtype).expand(shape))

    def _uniform(self, x: Tensor) -> Tensor:
        """The log-probabilities of a token that is uniform on the vocabulary."""
        level = torch.full((), -math.log(self.vocabulary), dtype=torch.float64, device=x.device)
        return to_float64(level).expand(*x.shape, self.vocabulary)

    def _over_likelihood(self, law: Tensor, z: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """law(z) / (π(z) + e^λ [z = x]), (batch, …), and 0 where law(z) is."""
        top = of_state(law, z)
        likelihood = of_state(self.pi(level), z) + torch.where(z == x, level.exp(), 0.0)
        return torch.where(top > 0, top / torch.where(top > 0, likelihood, 1.0), 0.0)

    def _log_ratio(self, log_probs: Tensor, z: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """log q(z | x)/q̂(z), (batch, …), where q̂ is made of `log_probs`. The mask has the same
        probability under both."""
        token = z < self.vocabulary
        log_p = to_float64(of_state(log_probs, torch.where(token, z, 0)))
        pi = of_state(self.pi(level), z)
        drawn = pi > 0
        odds = level - torch.where(drawn, pi, 1.0).log()
        kept = torch.where(z == x, F.softplus(odds), 0.0)
        ratio = torch.where(drawn, kept - F.softplus(odds + log_p), -log_p)
        return torch.where(token, ratio, 0.0)

    def _kl(self, log_probs: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """KL(q(· | x) ‖ q̂), (batch, …), where q̂ is made of `log_probs`.

        With s = (1 − α) π and y = λ − log π, log q̂/s = softplus(y + log x̂), so that it is
        α log q(x)/q̂(x) + s(x) softplus(y(x)) − Σ s softplus(y + log x̂).
        """
        dtype, pi = log_probs.dtype, self.pi(level)[..., : self.vocabulary]
        drawn = pi > 0
        odds = level[..., None] - torch.where(drawn, pi, 1.0).log()
        share = torch.sigmoid(-level)[..., None] * pi
        rise = F.softplus(odds.to(dtype) + log_probs)
        others = torch.where(drawn, share.to(dtype) * rise, 0.0).sum(-1)
        own = torch.sigmoid(level) * self._log_ratio(log_probs, x, x, level)
        return own + of_state(share, x) * F.softplus(of_state(odds, x)) - others


def of_state(v: Tensor, z: Tensor) -> Tensor:
    """v(z), (batch, …), for a v over the states, (…, states)."""
    return v.expand(*z.shape, -1).gather(-1, z[..., None].long())[..., 0]


def step_of(step: Step, x: Tensor) -> Step:
    """A step whose λ broadcasts over tokens."""
    return Step(per_token(step.logsnr_t, x), per_token(step.delta, x))


__all__ = ["Process", "of_state", "step_of"]

"""What a model over tokens predicts from z."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vdiff._validate import validated
from vdiff.discrete._tokens import per_token
from vdiff.discrete.parameterization import TokenParameterization
from vdiff.discrete.process import Process, of_state, step_of
from vdiff.gaussian import Level, Step, sum_dims, weighted_sum
from vdiff.prediction import ModelOutput, register
from vdiff.schedule.noise_levels import NoiseLevels


@dataclass(eq=False)
class TokenPrediction(ModelOutput):
    """A distribution over the values of each token, from the tokens z at log-SNR λ.

    `logits` are (batch, …, vocabulary), of what `parameterization` says. `.posterior` is
    log p(x_i | z), `.leave_one_out` is log p(x_i | z_{−i}). Sums over tokens are over those where
    `modelled` is True; None is all of them. It is a pytree of its tensors, as `Prediction` is.

    >>> from vdiff.discrete import Masked, Posterior
    >>> z, logits = torch.tensor([[3, 1]]), torch.zeros(1, 2, 3)
    >>> TokenPrediction(z, torch.zeros(1), logits, Masked(3), Posterior()).posterior.exp()
    tensor([[[0.3333, 0.3333, 0.3333],
             [0.0000, 1.0000, 0.0000]]])
    """

    z: Int[Tensor, "batch *dims"]
    logsnr: Level
    logits: Float[Tensor, "batch *dims vocabulary"]
    process: Process
    parameterization: TokenParameterization
    modelled: Bool[Tensor, "batch *#dims"] | None = None

    @property
    def log_probs(self) -> Tensor:
        """The log-probabilities that the network gave, of what `parameterization` says."""
        return self.logits.log_softmax(-1)

    @property
    def posterior(self) -> Tensor:
        """log p(x_i | z), (batch, …, vocabulary). A token that is known is carried over."""
        likelihood = self.process.log_likelihood(self.z, self.logsnr).to(self.logits.dtype)
        return self.parameterization.posterior(self.log_probs, likelihood)

    @property
    def leave_one_out(self) -> Tensor:
        """log p(x_i | z_{−i}), (batch, …, vocabulary)."""
        likelihood = self.process.log_likelihood(self.z, self.logsnr).to(self.logits.dtype)
        return self.parameterization.leave_one_out(self.log_probs, likelihood)

    @property
    def _scored(self) -> Tensor:
        """What the bound scores: leave-one-out, or what the network gave if both are one there."""
        return self.log_probs if self.process.one_posterior else self.leave_one_out

    @validated
    def loss(
        self,
        x: Int[Tensor, "batch *dims"],
        eps: Tensor | None,
        at: NoiseLevels,
        weight: Tensor | float = 1.0,
    ) -> Float[Tensor, " batch"]:
        """What this draw adds to the weighted bound, nats per example: w(λ) (−dλ/dt) times the
        integrand, or on a chain w(λ) T KL(q(z_s | z_t, x) ‖ p(z_s | z_t)). The noise `eps` is in z
        already."""
        if at.delta is None:
            terms = self.process.integrand(self._scored, self.z, x, self.logsnr, self.modelled)
            return weighted_sum(terms, weight * at.rate, self.modelled)
        steps = at.rate / at.step.snr_gain
        terms = self.process.step_kl(self._scored, self.z, x, at.step)
        return weighted_sum(terms, weight * steps, self.modelled)

    @property
    def shape(self) -> torch.Size:
        """The shape of the tokens."""
        return self.logits.shape[:-1]

    @property
    def finite(self) -> bool:
        """Whether there is a distribution for each token. Reads values."""
        return bool(torch.isfinite(self.logits.amax(-1)).all())

    def beside(self, x: Tensor, modelled: Tensor) -> "TokenPrediction":
        """The same prediction where `modelled` is True. Elsewhere x has probability one."""
        known = self.process.one_hot(x).to(self.logits.dtype)
        return self.replace(logits=torch.where(modelled[..., None], self.log_probs, known))

    def guided(self, without: "TokenPrediction", scale: Tensor) -> "TokenPrediction":
        """log p = log p_u + scale (log p_c − log p_u), normalised, where p_u is of `without` and
        p_c is this prediction, which alone decides where either is 0. Bayes' rule keeps this form,
        so it is the same for both posteriors."""
        log_c, log_u = self.log_probs, without.log_probs
        both = torch.isfinite(log_c) & torch.isfinite(log_u)
        scale = per_token(scale, self.z)[..., None].to(log_c.dtype)
        combined = torch.lerp(torch.where(both, log_u, 0.0), torch.where(both, log_c, 0.0), scale)
        return self.replace(logits=torch.where(both, combined, log_c))

    @validated
    def log_prob(self, x: Int[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
        """Σ_i log p(x_i | z), nats per example: a decoder that uses the network."""
        return sum_dims(self.posterior.gather(-1, x[..., None])[..., 0], self.modelled)

    def reverse(self, step: Step) -> Float[Tensor, "batch *dims states"]:
        """log p(z_s | z_t) of each token, over the states of the process."""
        return self.process.posterior(self.z, self.leave_one_out, step)

    def leap(self, step: Step) -> Float[Tensor, "batch *dims states"]:
        """log p(z_s | z_t) of each token if the reverse process had its rates at λ_t for the whole
        step and each token jumped once: log(α_s/α_t) (π − π')(z_t) q̂(y)/q̂(z_t) from z_t to y."""
        process, z, step = self.process, self.z, step_of(step, self.z)
        log_q = process.log_marginal(self.leave_one_out, step.logsnr_t)
        time = F.logsigmoid(step.logsnr_s) - F.logsigmoid(step.logsnr_t)
        log_into = (of_state(process.fresh(step.logsnr_t), z) * time).log().to(log_q.dtype)
        own = z[..., None] == torch.arange(process.states, device=z.device)
        log_rates = (log_into - of_state(log_q, z))[..., None] + log_q
        log_total = log_rates.masked_fill(own, -torch.inf).logsumexp(-1, keepdim=True)
        total = log_total.exp()
        log_jump = torch.log(-torch.expm1(-total)) - log_total
        jumps = torch.where(total > 0, log_rates + log_jump, -torch.inf)
        return torch.where(own, -total, jumps)

    def replace(self, **changes: Any) -> "TokenPrediction":
        """The same prediction with some fields changed."""
        return replace(self, **changes)

    def rows(self, index: Tensor) -> "TokenPrediction":
        """The prediction for some examples of the batch."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return self.replace(**{name: v[index] for name, v in tensors.items() if v is not None})


_TENSORS = "z", "logsnr", "logits", "modelled"
register(
    TokenPrediction, _TENSORS, ("process", "parameterization"), Process, TokenParameterization
)

__all__ = ["TokenPrediction"]

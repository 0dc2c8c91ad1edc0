"""Exact denoisers told a field of λ, and schedules over dimensions, for the tests of samplers and
flows."""

import math

import torch
from torch import Tensor

from vdiff import Prediction
from vdiff.parameterization import Eps
from vdiff.schedule import Schedule

COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.5, 0.5], [0.3, 0.5, 0.7]], dtype=torch.float64)


class FieldMixture:
    """x ~ Σ_k w_k N(m_k, C_k), and E[ε | z] for z_i = α(λ_i) x_i + σ(λ_i) ε_i."""

    def __init__(self, weights, means, covariances):
        self.weights, self.means, self.covariances = (
            torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances)
        )

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        field = logsnr if logsnr.ndim > 1 else logsnr[:, None]
        field = field.double().expand_as(z)
        rows = field[:1] if (field == field[0]).all() else field  # of one λ for all, one inverse
        a, variance = rows.sigmoid().sqrt(), rows.neg().sigmoid()
        off = z.double()[:, None] - a[:, None] * self.means
        total = a[:, None, :, None] * self.covariances * a[:, None, None, :]
        total = total + torch.diag_embed(variance)[:, None]
        solved = (torch.linalg.inv(total) * off[..., None, :]).sum(-1)
        log_q = -0.5 * ((off * solved).sum(2) + torch.linalg.slogdet(total)[1])
        share = (self.weights.log() + log_q).softmax(1)
        eps = variance.sqrt() * (share[..., None] * solved).sum(1)
        return Prediction(z, logsnr, eps.to(z.dtype), Eps())

    def conditional(self, known: Tensor, value: Tensor) -> "FieldMixture":
        """The law of the other dimensions, where `known` (d,) is True and x has this value."""
        one, two = (~known).nonzero()[:, 0], known.nonzero()[:, 0]
        c = self.covariances
        gain = c[:, one][:, :, two] @ torch.linalg.inv(c[:, two][:, :, two])
        off = value - self.means[:, two]
        means = self.means[:, one] + (gain @ off[..., None])[..., 0]
        rest = c[:, one][:, :, one] - gain @ c[:, two][:, :, one]
        fits = FieldMixture(self.weights, self.means[:, two], c[:, two][:, :, two])
        weights = (self.weights.log() + fits.log_of_each(value[None])[0]).softmax(0)
        return FieldMixture(weights, means, rest)

    def log_of_each(self, x: Tensor) -> Tensor:
        """log N(x; m_k, C_k), (n, K)."""
        normal = torch.distributions.MultivariateNormal(self.means, self.covariances)
        return normal.log_prob(x[:, None])

    def log_prob(self, x: Tensor) -> Tensor:
        return (self.weights.log() + self.log_of_each(x)).logsumexp(1)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X < x) of one dimension."""
        std = self.covariances[:, 0, 0].sqrt()
        return (
            self.weights * 0.5 * (1 + torch.erf((x - self.means[:, 0]) / std / math.sqrt(2)))
        ).sum(1)


GAUSSIAN = FieldMixture([1.0], torch.zeros(1, 3), COVARIANCE[None])
PLANE = FieldMixture(
    [0.4, 0.6],
    [[-1.0, 0.3], [0.8, -0.2]],
    [[[0.15, 0.1], [0.1, 0.4]], [[0.3, -0.15], [-0.15, 0.2]]],
)


class OverDims(Schedule):
    """A schedule over dimensions, which is right."""

    over_dims = True

    def check(self, points=0):
        return self

    def forward(self, t):
        return self.logsnr_at(t)


class OfDimensions(OverDims):
    """λ_i falls from its own λ_max to its own λ_min, evenly."""

    def __init__(self, high, low):
        self.fields = tuple(torch.tensor([v], dtype=torch.float64) for v in (high, low))
        super().__init__(max(high), min(low))

    def ends_of(self, ndim, detach=True):
        return self.fields

    def logsnr_at(self, t):
        high, low = self.fields
        return high - (high - low) * t

    def rate_at(self, t, logsnr):
        high, low = self.fields
        return (high - low).expand_as(logsnr)


class OneByOne(OverDims):
    """One dimension after another; turn 0 falls first, from data to noise."""

    def __init__(self, high, low, turns):
        self.turns = torch.tensor([turns], dtype=torch.float64)
        super().__init__(high, low)

    def _time(self, t):
        return self.turns.shape[1] * t - self.turns

    def logsnr_at(self, t):
        high, low = self.ends()
        return high - (high - low) * self._time(t).clamp(0.0, 1.0)

    def rate_at(self, t, logsnr):
        high, low = self.ends()
        falls = (self._time(t) >= 0) & (self._time(t) < 1)
        return torch.where(falls, self.turns.shape[1] * (high - low), 0.0)

"""A Gaussian chain as one Gaussian vector (z₀ … z_T), under q(· | x) and under p."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vdiff.gaussian import Step, alpha, sigma
from vdiff.oracle import Gaussian
from vdiff.schedule import Linear
from vdiff.theorems.integral import log_normal
from vdiff.theorems.subject import f64


@dataclass(frozen=True)
class GaussianPath:
    """The exact denoiser of one Gaussian on the line, as a chain of `steps` steps from N(0, 1) at
    λ_min to z₀ at λ_max.

    p(x | z₀) is N(z₀/α₀, e^{−λ_max}). The laws of (z₀ … z_T) are made from the transitions.
    """

    oracle: Gaussian
    high: float
    low: float
    steps: int

    @property
    def schedule(self) -> Linear:
        """Linear in λ."""
        return Linear(self.high, self.low)

    @property
    def logsnr(self) -> Tensor:
        """λ of z₀ … z_T."""
        return torch.linspace(self.high, self.low, self.steps + 1, dtype=torch.float64)

    def forward(self, x: float) -> MultivariateNormal:
        """q(z₀ … z_T | x): Cov(z_s, z_t) = σ_s² α_t/α_s for s < t."""
        a, s = alpha(self.logsnr), sigma(self.logsnr)
        first = torch.minimum(torch.arange(len(a))[:, None], torch.arange(len(a)))
        return MultivariateNormal(a * x, (s[first] / a[first]).square() * a[:, None] * a)

    def reverse(self) -> MultivariateNormal:
        """p(z₀ … z_T, x) with x last: z_T ~ N(0, 1), then one affine Gaussian kernel after
        another."""
        lam, n = self.logsnr, self.steps + 1
        mean = torch.zeros(n + 1, dtype=torch.float64)
        root = torch.zeros(n + 1, n + 1, dtype=torch.float64)  # rows over independent normals
        root[n - 1, n - 1] = 1.0
        probe = f64([[0.0], [1.0]])
        for s in range(n - 2, -1, -1):
            step = Step(lam[s + 1].expand(2), (lam[s] - lam[s + 1]).expand(2))
            at_zero, at_one = step.mean(probe, self.oracle(probe, step.logsnr_t).x)[:, 0]
            mean[s] = at_zero + (at_one - at_zero) * mean[s + 1]
            root[s] = (at_one - at_zero) * root[s + 1]
            root[s, s] = step.variance[0].sqrt()
        mean[n], root[n] = mean[0] / alpha(lam[0]), root[0] / alpha(lam[0])
        root[n, n] = torch.exp(-0.5 * lam[0])
        return MultivariateNormal(mean, root @ root.T)

    def given(self, x: float) -> tuple[Tensor, MultivariateNormal]:
        """log p(x) and p(z₀ … z_T | x), by conditioning the joint."""
        joint = self.reverse()
        mean, covariance = joint.mean, joint.covariance_matrix
        gain = covariance[:-1, -1] / covariance[-1, -1]
        rest = covariance[:-1, :-1] - torch.outer(gain, covariance[-1, :-1])
        posterior = MultivariateNormal(mean[:-1] + gain * (x - mean[-1]), rest)
        return log_normal(x, mean[-1], covariance[-1, -1].sqrt()), posterior

    def part(
        self, law: MultivariateNormal, first: int, last: int | None = None
    ) -> MultivariateNormal:
        """The marginal of z_first … z_last, or of z_first alone."""
        kept = slice(first, (first if last is None else last) + 1)
        return MultivariateNormal(law.mean[kept], law.covariance_matrix[kept, kept])

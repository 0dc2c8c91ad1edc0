"""A Gaussian chain whole: z₀ … z_T as one Gaussian vector, under q(· | x) and under p, for what no
sum over steps can tell."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vdiff.gaussian import Step, alpha, sigma
from vdiff.oracle import Gaussian
from vdiff.schedule import Linear


@dataclass(frozen=True)
class GaussianPath:
    """The exact denoiser of one Gaussian on the line, as a chain of `steps` steps from N(0, 1) at
    λ_min to z₀ at λ_max.

    p(x | z₀) is N(z₀/α₀, e^{−λ_max}). Both laws of (z₀ … z_T) are given as means and covariances,
    made from the transitions.

    >>> from vdiff.theorems.subject import line
    >>> GaussianPath(line(), 6.0, -5.0, 3).forward(0.4).mean.shape
    torch.Size([4])
    """

    oracle: Gaussian
    high: float
    low: float
    steps: int

    @property
    def schedule(self) -> Linear:
        """Linear in λ.

        >>> from vdiff.theorems.subject import line
        >>> GaussianPath(line(), 6.0, -5.0, 3).schedule
        Linear(logsnr_max=6.0, logsnr_min=-5.0)
        """
        return Linear(self.high, self.low)

    @property
    def logsnr(self) -> Tensor:
        """λ of z₀ … z_T."""
        found: Tensor = self.schedule(torch.linspace(0, 1, self.steps + 1, dtype=torch.float64))
        return found

    def forward(self, x: float) -> MultivariateNormal:
        """q(z₀ … z_T | x): Cov(z_s, z_t) = σ_s² α_t/α_s for s < t."""
        a, s = alpha(self.logsnr), sigma(self.logsnr)
        first = torch.minimum(torch.arange(len(a))[:, None], torch.arange(len(a)))
        return MultivariateNormal(a * x, (s[first] / a[first]).square() * a[:, None] * a)

    def reverse(self) -> MultivariateNormal:
        """p(z₀ … z_T, x) with x last: z_T ~ N(0, 1), then one affine Gaussian kernel after
        another."""
        lam, n = self.logsnr, self.steps + 1
        mean, root = (
            torch.zeros(n + 1, dtype=torch.float64),
            torch.zeros(n + 1, n + 1, dtype=torch.float64),
        )
        root[n - 1, n - 1] = 1.0  # each variable as a row over independent normals
        probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
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
        gain, away = covariance[:-1, -1] / covariance[-1, -1], x - mean[-1]
        log_p = -0.5 * (
            away.square() / covariance[-1, -1] + torch.log(2 * torch.pi * covariance[-1, -1])
        )
        return log_p, MultivariateNormal(
            mean[:-1] + gain * away, covariance[:-1, :-1] - torch.outer(gain, covariance[-1, :-1])
        )

    def part(
        self, law: MultivariateNormal, first: int, last: int | None = None
    ) -> MultivariateNormal:
        """The marginal of z_first … z_last, or of z_first alone.

        >>> from vdiff.theorems.subject import line
        >>> path = GaussianPath(line(), 6.0, -5.0, 3)
        >>> path.part(path.forward(0.4), 1, 3).mean.shape
        torch.Size([3])
        """
        kept = slice(first, (first if last is None else last) + 1)
        return MultivariateNormal(law.mean[kept], law.covariance_matrix[kept, kept])


__all__ = ["GaussianPath"]

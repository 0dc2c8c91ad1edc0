"""The schedules of i-DODE and EDM, each from its own formula of λ(t)."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff._validate import Finite, Number, Positive, require, validated
from vdiff.schedule.base import Schedule


class SignalPower(Schedule):
    """p(λ) ∝ α²: softplus(λ) is linear in t (i-DODE, Zheng et al., arXiv:2305.03935).

    >>> SignalPower(10.0, -10.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 10.0000,   4.9933, -10.0000])
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> None:
        super().__init__(logsnr_max, logsnr_min)
        ends = F.softplus(torch.tensor(self._ends, dtype=torch.float64, device="cpu"))
        self._least, self._span = ends[1].item(), (ends[0] - ends[1]).item()

    def logsnr_at(self, t: Tensor) -> Tensor:
        power = self._least + self._span * (1 - t)
        return power + torch.log(-torch.expm1(-power))

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self._span * (1 + torch.exp(-logsnr))

    def time_at(self, logsnr: Tensor) -> Tensor:
        return 1 - (F.softplus(logsnr) - self._least) / self._span


_NO_NOISE = "σ = 0 is λ = +∞; a sampler's last step to σ = 0 is no level of the schedule"
_SigmaMin = Annotated[float, Number(above=0.0, hint=_NO_NOISE)]


def _noise_rises(sigma_min: float, sigma_max: float) -> None:
    below = f"be below sigma_max = {sigma_max:g}"
    require(sigma_min < sigma_max, "sigma_min", below, f"{sigma_min:g}", "swapped?")


class Karras(Schedule):
    """EDM's sampling grid in continuous time: σ^{1/ρ} is linear in t (Karras et al.,
    arXiv:2206.00364, eq. 5). `Karras().sigmas(18)` is the published grid without its final zero.

    >>> Karras(0.002, 80.0).sigmas(3)
    tensor([8.0000e+01, 2.5152e+00, 2.0000e-03], dtype=torch.float64)
    """

    @validated(rules=[_noise_rises])
    def __init__(
        self, sigma_min: _SigmaMin = 0.002, sigma_max: Finite = 80.0, rho: Positive = 7.0
    ) -> None:
        super().__init__(-2 * math.log(sigma_min), -2 * math.log(sigma_max))
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._low: float = sigma_min ** (1 / rho)
        self._high: float = sigma_max ** (1 / rho)

    def logsnr_at(self, t: Tensor) -> Tensor:
        return -2 * self.rho * torch.log(self._low + (self._high - self._low) * t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return torch.exp(logsnr / (2 * self.rho)) * (2 * self.rho * (self._high - self._low))

    def time_at(self, logsnr: Tensor) -> Tensor:
        return (torch.exp(-logsnr / (2 * self.rho)) - self._low) * (1 / (self._high - self._low))

    def sigmas(self, steps: int) -> Tensor:
        """σ̃ = e^{−λ/2} at `steps` evenly spaced times, from σ_max down to σ_min, in float64."""
        t = torch.linspace(1, 0, steps, dtype=torch.float64)
        return torch.exp(-0.5 * self.logsnr_at(t))

"""λ linear in t: VDM's schedule, with fixed or with learned end points."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.gaussian import wide
from vdiff.schedule.base import Schedule


class Linear(Schedule):
    """λ(t) = λ_max − (λ_max − λ_min) t: uniform in log-SNR. The defaults are the ends VDM starts from
    (arXiv:2107.00630).

    >>> Linear(13.3, -5.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([13.3000,  4.1500, -5.0000])
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> None:
        super().__init__(logsnr_max, logsnr_min)
        self._range = self.logsnr_max - self.logsnr_min

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self._ends[0] - self._range * t

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return torch.full_like(t, self._range)

    def time_at(self, logsnr: Tensor) -> Tensor:
        return (self._ends[0] - logsnr) / self._range

    def density_at(self, logsnr: Tensor) -> Tensor:
        return torch.full_like(logsnr, 1.0 / self._range)


class LearnedLinear(Schedule):
    """The linear schedule with its end points as parameters, ordered by construction: λ_max = λ_min + softplus(width).

    Only the whole bound trains them (`elbo`): from the diffusion term alone they would close in on each other for
    ever, so `weighted_elbo` passes them no gradient. They are float64 and belong outside weight decay
    (`vdiff.parameter_groups` sees to it).

    >>> schedule = LearnedLinear(13.3, -5.0)
    >>> schedule(torch.tensor([0.0, 1.0]))
    tensor([13.3000, -5.0000])
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> None:
        super().__init__(logsnr_max, logsnr_min)
        high, low = self._ends
        distance = high - low
        self.low = nn.Parameter(torch.tensor(low, dtype=torch.float64))
        self.width = nn.Parameter(torch.tensor(distance + math.log(-math.expm1(-distance)), dtype=torch.float64))

    @property
    def learns_ends(self) -> bool:
        return True

    def ends(self, pin: bool = True) -> tuple[Tensor, Tensor]:
        low, width = (self.low.detach(), self.width.detach()) if pin else (self.low, self.width)
        return low + F.softplus(width), low

    def logsnr_at(self, t: Tensor) -> Tensor:
        high, low = self.ends()
        return high - (high - low) * t

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (high - low).expand_as(t)

    def time_at(self, logsnr: Tensor) -> Tensor:
        high, low = self.ends()
        return (high - logsnr) / (high - low)

    def levels(self, t: Tensor, steps: int | None = None, *, pin: bool = True) -> tuple[Tensor, Tensor]:
        high, low = self.ends(pin)
        distance = high - low
        t64 = wide(t)  # a parameter without dimensions would not raise float32 times to float64
        measure = distance.to(t64).expand_as(t64) if steps is None else steps * torch.expm1(distance * t64.clamp(max=1 / steps))
        return high - distance * t64, measure

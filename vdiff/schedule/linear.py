"""λ linear in t: VDM's schedule, with fixed end points."""

import torch
from torch import Tensor

from vdiff.schedule.base import Schedule


class Linear(Schedule):
    """λ(t) = λ_max − (λ_max − λ_min) t: uniform in log-SNR. The defaults are the ends VDM starts
    from (arXiv:2107.00630).

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

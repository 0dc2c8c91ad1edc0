"""Factors, in ε-units: each multiplies a total."""

import math

import torch
from torch import Tensor

from vdiff._validate import Finite, Positive, validated
from vdiff.weighting.base import Weighting


class Factor(Weighting):
    """A function of λ that multiplies a total weighting. It is refused alone.

    To write your own, subclass this and define `weight_at(logsnr)`.

    >>> class Half(Factor):
    ...     def weight_at(self, logsnr):
    ...         return torch.full_like(logsnr, 0.5)
    >>> (Sigmoid(0.0) * Half())(torch.tensor([0.0]))
    tensor([0.2500])
    """

    is_factor = True


class MinSNR(Factor):
    """min(1, γ e^{−λ}) (min-SNR-γ, arXiv:2303.09556).

    >>> MinSNR(5.0)(torch.tensor([0.0, 3.0]))
    tensor([1.0000, 0.2489])
    """

    @validated
    def __init__(self, gamma: Positive = 5.0) -> None:
        super().__init__()
        self.gamma = gamma

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp((math.log(self.gamma) - logsnr).clamp(max=0.0))


class SoftMinSNR(Factor):
    """sigmoid(log γ − λ): γ·SNR/(γ + SNR) on x, a smooth min-SNR.

    >>> SoftMinSNR(1.0)(torch.tensor([0.0]))
    tensor([0.5000])
    """

    @validated
    def __init__(self, gamma: Positive = 5.0) -> None:
        super().__init__()
        self.gamma = gamma

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(math.log(self.gamma) - logsnr)


class P2(Factor):
    """1/(k + e^λ)^γ (P2, arXiv:2204.00227).

    >>> P2(gamma=0.5)(torch.tensor([0.0]))
    tensor([0.7071])
    """

    @validated
    def __init__(self, gamma: Finite = 1.0, k: Positive = 1.0) -> None:
        super().__init__()
        self.gamma, self.k = gamma, k

    def weight_at(self, logsnr: Tensor) -> Tensor:
        log_sum = torch.logaddexp(logsnr, torch.full_like(logsnr, math.log(self.k)))
        return torch.exp(-self.gamma * log_sum)


class TruncatedSNR(Factor):
    """max(1, e^{−λ}): max(SNR, 1) on x (Salimans & Ho 2022).

    >>> TruncatedSNR()(torch.tensor([1.0, -1.0]))
    tensor([1.0000, 2.7183])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr.clamp(max=0.0))


class Debiased(Factor):
    """e^{−λ/2}: the ε-loss over √SNR (debiased estimation loss, arXiv:2310.08442).

    >>> Debiased()(torch.tensor([2.0]))
    tensor([0.3679])
    """

    def weight_at(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-0.5 * logsnr)

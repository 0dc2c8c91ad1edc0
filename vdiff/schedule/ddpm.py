"""The schedules of DDPM and its successors in continuous time, each after its law."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff._validate import Finite, NonNegative, Positive, require, validated
from vdiff.schedule.truncated import Law, Truncated, affine, ends_or


class HyperbolicSecant(Law):
    """The cosine schedule's law: λ = −2 log tan(πt/2) + shift, p = sech((λ − shift)/2)/2π."""

    @validated
    def __init__(self, shift: Finite = 0.0) -> None:
        self.shift = shift

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        cot = torch.sin(0.5 * math.pi * rest) / torch.sin(0.5 * math.pi * t)
        return affine(self.shift, 2.0, torch.log(cot))

    def sf(self, logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-0.5 * (logsnr - self.shift))) * (2.0 / math.pi)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(0.5 * (logsnr - self.shift))) * (2.0 / math.pi)

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.cosh(0.5 * (logsnr - self.shift)).reciprocal() * (0.5 / math.pi)


class OffsetCosine(Law):
    """iDDPM's cosine with offset s: ᾱ = cos²φ/cos²φ₀, φ = (t + s)/(1 + s)·π/2 (arXiv:2102.09672,
    eq. 17), not clipped."""

    @validated
    def __init__(self, offset: NonNegative = 0.008) -> None:
        self.offset = offset
        self._angle = 0.5 * math.pi / (1.0 + offset)  # φ − φ₀ at t = 1
        self._start = self._angle * offset  # φ₀

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        signal = torch.sin(self._angle * rest).square()  # cos²φ
        turned = self._angle * t
        noise = torch.sin(turned) * torch.sin(turned + 2 * self._start)  # cos²φ₀ − cos²φ
        return torch.log(signal / noise)

    def sf(self, logsnr: Tensor) -> Tensor:
        signal, noise = self._squares(logsnr)
        power, phi = torch.sigmoid(-logsnr), torch.atan(torch.sqrt(noise / signal))
        # φ − φ₀ where it is small
        small = torch.asin(math.cos(self._start) ** 2 * power / torch.sin(phi + self._start))
        return torch.where(logsnr > 0, small, phi - self._start) / self._angle

    def cdf(self, logsnr: Tensor) -> Tensor:
        # π/2 − φ = atan(cos φ / sin φ), which keeps its digits at the noisy end
        signal, noise = self._squares(logsnr)
        return torch.atan(torch.sqrt(signal / noise)) / self._angle

    def density(self, logsnr: Tensor) -> Tensor:
        # −dt/dλ = (1 + s)/π · sigmoid(−λ) · cot φ
        cot = math.cos(self._start) * (torch.exp(-logsnr) + math.sin(self._start) ** 2).rsqrt()
        return torch.sigmoid(-logsnr) * cot * (0.5 / self._angle)

    def _squares(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """cos²φ and sin²φ."""
        share, power = torch.sigmoid(logsnr), torch.sigmoid(-logsnr)
        noise = torch.add(power, share, alpha=math.sin(self._start) ** 2)
        return math.cos(self._start) ** 2 * share, noise


class Cosine(Truncated):
    """The cosine schedule, λ = −2 log tan(πt/2) + shift (Nichol & Dhariwal 2021 with s = 0; shift:
    Hoogeboom et al. 2023). `offset` is iDDPM's s (0.008), in continuous time and without its clip
    of β.

    >>> Cosine(13.3, -5.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([13.3000,  0.1614, -5.0000])
    """

    @validated
    def __init__(
        self,
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
        *,
        shift: Finite = 0.0,
        offset: NonNegative = 0.0,
    ) -> None:
        hint = "Shifted(Cosine(offset=…), shift) has both"
        require(not (shift and offset), "offset", "be zero where shift is given", offset, hint)
        law = OffsetCosine(offset) if offset else HyperbolicSecant(shift)
        super().__init__(law, logsnr_max, logsnr_min)


def _betas_rise(beta_min: float, beta_max: float) -> None:
    least = f"be at least beta_min = {beta_min:g}"
    require(beta_min <= beta_max, "beta_max", least, f"{beta_max:g}", "swapped?")


class LinearBetaLaw(Law):
    """DDPM's linear β in continuous time: λ = −log expm1(B), B = β₀t + ½(β₁ − β₀)t² (Score SDE,
    arXiv:2011.13456)."""

    @validated(rules=[_betas_rise])
    def __init__(self, beta_min: Positive = 0.1, beta_max: Finite = 20.0) -> None:
        self.beta_min, self.beta_max = beta_min, beta_max

    def icdf_at(self, t: Tensor, rest: Tensor) -> Tensor:
        integral = t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)
        return -torch.log(torch.expm1(integral))

    def sf(self, logsnr: Tensor) -> Tensor:
        integral = F.softplus(-logsnr)
        return 2.0 * integral / (self.beta_min + self._beta(integral))

    def cdf(self, logsnr: Tensor) -> Tensor:
        return 1.0 - self.sf(logsnr)

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr) / self._beta(F.softplus(-logsnr))

    def _beta(self, integral: Tensor) -> Tensor:
        """β at the time where ∫β = `integral`."""
        return torch.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)


class LinearBeta(Truncated):
    """DDPM's linear β in continuous time (β from 0.1 to 20), by default from λ(1e-3) to λ(1).

    >>> LinearBeta()(torch.tensor([0.0, 1.0]))
    tensor([  9.1154, -10.0500])
    """

    @validated(rules=[_betas_rise])
    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float | None = None,
        *,
        beta_min: Positive = 0.1,
        beta_max: Finite = 20.0,
    ) -> None:
        law = LinearBetaLaw(beta_min, beta_max)
        times = torch.tensor([1e-3, 1.0], dtype=torch.float64, device="cpu")
        high, low = law.icdf(times).tolist()
        super().__init__(law, *ends_or(high, low, logsnr_max, logsnr_min))

"""Distributions over log-SNR: the laws behind the closed-form schedules, on the whole line.

Each is a quantile function of the time t it came with in its paper (λ falls as t rises), its
inverse, and its density.
"""

import math

import torch
from torch import Tensor

from vdiff.errors import finite, must


class Law:
    """A distribution over λ: `quantile(t)` is λ at original time t ∈ (0, 1); P(Λ > λ(t)) = t.

    `rest` is 1 − t where it is known more accurately than by subtraction.

    >>> from vdiff import OptimalTransport
    >>> law = OptimalTransport().law                         # of the schedule before it is cut off at its ends
    >>> law, law.cdf(law.quantile(torch.tensor(0.25)))
    (Logistic(mean=0.0, scale=2.0), tensor(0.7500))
    """

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        """λ at original time t."""
        raise NotImplementedError

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Λ > λ): the original time."""
        raise NotImplementedError

    def cdf(self, logsnr: Tensor) -> Tensor:
        """P(Λ ≤ λ), one minus the original time."""
        return 1.0 - self.survival(logsnr)

    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items() if not k.startswith('_'))})"


class HyperbolicSecant(Law):
    """The cosine schedule's: λ = −2 log tan(πt/2) + shift, p = sech((λ − shift)/2)/2π.

    >>> HyperbolicSecant().density(torch.tensor(0.0))
    tensor(0.1592)
    """

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = finite("HyperbolicSecant", "shift", shift)

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        rest = 1.0 - t if rest is None else rest
        return self.shift + 2.0 * torch.log(
            torch.sin(0.5 * math.pi * rest) / torch.sin(0.5 * math.pi * t)
        )

    def survival(self, logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-0.5 * (logsnr - self.shift))) * (2.0 / math.pi)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(0.5 * (logsnr - self.shift))) * (2.0 / math.pi)

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.cosh(0.5 * (logsnr - self.shift)).reciprocal() * (0.5 / math.pi)


class OffsetCosine(Law):
    """iDDPM's cosine with offset s: ᾱ = cos²φ/cos²φ₀, φ = (t + s)/(1 + s)·π/2 (arXiv:2102.09672,
    eq. 17), not clipped.

    >>> OffsetCosine().quantile(torch.tensor(0.5))
    tensor(-0.0246)
    """

    def __init__(self, offset: float = 0.008) -> None:
        self.offset = finite("OffsetCosine", "offset", offset, at_least=0.0)
        self._angle = 0.5 * math.pi / (1.0 + self.offset)  # φ − φ₀ at t = 1
        self._start = self._angle * self.offset  # φ₀

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        rest = 1.0 - t if rest is None else rest
        signal = torch.sin(self._angle * rest).square()  # cos²φ
        turned = self._angle * t
        noise = torch.sin(turned) * torch.sin(turned + 2 * self._start)  # cos²φ₀ − cos²φ
        return torch.log(signal / noise)

    def survival(self, logsnr: Tensor) -> Tensor:
        power, phi = torch.sigmoid(-logsnr), self._phi(logsnr)
        small = torch.asin(
            math.cos(self._start) ** 2 * power / torch.sin(phi + self._start)
        )  # φ − φ₀ where it is small
        return torch.where(logsnr > 0, small, phi - self._start) / self._angle

    def cdf(self, logsnr: Tensor) -> Tensor:
        # π/2 − φ = atan(cos φ / sin φ), which keeps its digits at the noisy end
        signal, noise = self._squares(logsnr)
        return torch.atan(torch.sqrt(signal / noise)) / self._angle

    def density(self, logsnr: Tensor) -> Tensor:
        # −dt/dλ = (1 + s)/π · sigmoid(−λ) · cot φ
        power = torch.sigmoid(-logsnr)
        signal, noise = self._squares(logsnr, power)
        return power * torch.sqrt(signal / noise) * (0.5 / self._angle)

    def _squares(self, logsnr: Tensor, power: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """cos²φ and sin²φ, with `power` = sigmoid(−λ)."""
        power = torch.sigmoid(-logsnr) if power is None else power
        share = torch.sigmoid(logsnr)
        return math.cos(self._start) ** 2 * share, torch.add(
            power, share, alpha=math.sin(self._start) ** 2
        )

    def _phi(self, logsnr: Tensor) -> Tensor:
        signal, noise = self._squares(logsnr)
        return torch.atan(torch.sqrt(noise / signal))


class LinearBetaLaw(Law):
    """DDPM's linear β in continuous time: λ = −log expm1(B), B = β₀t + ½(β₁ − β₀)t² (Score SDE,
    arXiv:2011.13456).

    >>> LinearBetaLaw().quantile(torch.tensor(0.5))
    tensor(-2.4551)
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min, self.beta_max = (
            finite("LinearBetaLaw", "beta_min", beta_min, above=0.0),
            finite("LinearBetaLaw", "beta_max", beta_max),
        )
        if self.beta_max < self.beta_min:
            raise ValueError(
                must(
                    "LinearBetaLaw",
                    "beta_max",
                    f"be at least beta_min = {self.beta_min:g}",
                    f"{self.beta_max:g}",
                    "swapped?",
                )
            )

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        integral = t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)
        return -torch.log(torch.expm1(integral))

    def survival(self, logsnr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-logsnr)
        return 2.0 * integral / (self.beta_min + self._beta(integral))

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr) / self._beta(torch.nn.functional.softplus(-logsnr))

    def _beta(self, integral: Tensor) -> Tensor:
        """β at the time where ∫β = `integral`."""
        return torch.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * integral)


class Logistic(Law):
    """A logistic law; rectified flow with uniform t is the one of mean 0 and scale 2: λ = 2 log((1
    − t)/t).

    >>> Logistic().quantile(torch.tensor(0.1))
    tensor(4.3944)
    """

    def __init__(self, mean: float = 0.0, scale: float = 2.0) -> None:
        self.mean, self.scale = (
            finite("Logistic", "mean", mean),
            finite("Logistic", "scale", scale, above=0.0),
        )

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        rest = 1.0 - t if rest is None else rest
        return self.mean + self.scale * torch.log(rest / t)

    def survival(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid((self.mean - logsnr) / self.scale)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid((logsnr - self.mean) / self.scale)

    def density(self, logsnr: Tensor) -> Tensor:
        return self.survival(logsnr) * self.cdf(logsnr) / self.scale


class Gaussian(Law):
    """A normal law N(mean, std²): EDM's log-normal σ is N(−2 P_mean, (2 P_std)²), SD3's
    logit-normal t N(−2m, (2s)²).

    >>> Gaussian(2.4, 2.4).quantile(torch.tensor(0.5))
    tensor(2.4000)
    """

    def __init__(self, mean: float = 2.4, std: float = 2.4) -> None:
        self.mean, self.std = (
            finite("Gaussian", "mean", mean),
            finite("Gaussian", "std", std, above=0.0),
        )

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        rest = 1.0 - t if rest is None else rest
        score = torch.where(t < 0.5, -torch.special.ndtri(t), torch.special.ndtri(rest))
        return self.mean + self.std * score

    def survival(self, logsnr: Tensor) -> Tensor:
        return _normal_cdf((self.mean - logsnr) / self.std)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return _normal_cdf((logsnr - self.mean) / self.std)

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.exp((logsnr - self.mean).square() * (-0.5 / self.std**2)) * (
            1.0 / (self.std * math.sqrt(2.0 * math.pi))
        )


class DoubleExponential(Law):
    """A Laplace law (Hang et al., arXiv:2407.03297): p = e^{−|λ − μ|/b}/2b.

    >>> DoubleExponential(0.0, 0.5).density(torch.tensor(0.0))
    tensor(1.)
    """

    def __init__(self, mean: float = 0.0, scale: float = 0.5) -> None:
        self.mean, self.scale = (
            finite("DoubleExponential", "mean", mean),
            finite("DoubleExponential", "scale", scale, above=0.0),
        )

    def quantile(self, t: Tensor, rest: Tensor | None = None) -> Tensor:
        rest = 1.0 - t if rest is None else rest
        return self.mean + self.scale * torch.where(
            t < 0.5, -torch.log(2.0 * t), torch.log(2.0 * rest)
        )

    def survival(self, logsnr: Tensor) -> Tensor:
        return self._tail(logsnr - self.mean)

    def cdf(self, logsnr: Tensor) -> Tensor:
        return self._tail(self.mean - logsnr)

    def density(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-(logsnr - self.mean).abs() / self.scale) / (2.0 * self.scale)

    def _tail(self, distance: Tensor) -> Tensor:
        """The mass beyond the mean plus `distance`."""
        half = 0.5 * torch.exp(-distance.abs() / self.scale)
        return torch.where(distance > 0, half, 1.0 - half)


def _normal_cdf(score: Tensor) -> Tensor:
    """Φ, to full relative accuracy in the lower tail, where torch's ndtr cancels."""
    return 0.5 * torch.erfc(score * -math.sqrt(0.5))


__all__ = [
    "DoubleExponential",
    "Gaussian",
    "HyperbolicSecant",
    "Law",
    "LinearBetaLaw",
    "Logistic",
    "OffsetCosine",
]

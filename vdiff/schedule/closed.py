"""The schedules of the literature: a law over λ, truncated to finite end points with its density
renormalised."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff.errors import finite, must
from vdiff.schedule.base import Schedule
from vdiff.schedule.law import (
    DoubleExponential,
    Gaussian,
    HyperbolicSecant,
    Law,
    LinearBetaLaw,
    Logistic,
    OffsetCosine,
)


class Truncated(Schedule):
    """A law over λ restricted to [λ_min, λ_max]: uniform in the part of the law's own time between
    the ends.

    λ(t) = Q(t₀ + (t₁ − t₀) t) with t₀ = P(Λ > λ_max), t₁ = P(Λ > λ_min); p(λ) = p_law(λ)/(t₁ −
    t₀). The untruncated law stays public as `law`, with its `quantile` and `density`.

    >>> Truncated(Logistic(), 10.0, -10.0).law.quantile(torch.tensor(0.25))
    tensor(2.1972)
    """

    def __init__(self, law: Law, logsnr_max: float, logsnr_min: float) -> None:
        super().__init__(logsnr_max, logsnr_min)
        self.law = law
        ends = torch.tensor(self._ends, dtype=torch.float64, device="cpu")
        self._before = law.survival(ends)[0].item()  # mass above λ_max
        self._after = law.cdf(ends)[
            1
        ].item()  # mass below λ_min; zero, to rounding, where the law itself stops there
        self._mass = 1.0 - self._before - self._after
        reached = (
            self.logsnr_at(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu"))
            if self._mass > 0
            else ends * torch.nan
        )
        if self._after < -1e-9 or not torch.allclose(reached, ends, rtol=1e-9, atol=1e-6):
            name = (
                "logsnr_min"
                if math.isclose(reached[0].item(), ends[0].item(), rel_tol=1e-9, abs_tol=1e-6)
                else "logsnr_max"
            )
            came = f"[{logsnr_min:g}, {logsnr_max:g}], of which it reaches [{reached[1]:g}, {reached[0]:g}]"
            raise ValueError(
                must(
                    type(self).__name__,
                    name,
                    f"lie where {law!r} has mass in float64",
                    came,
                    "the end is too far out: no time is ever spent there",
                )
            )

    def logsnr_at(self, t: Tensor) -> Tensor:
        return self.law.quantile(
            self._before + self._mass * t, self._after + self._mass * (1.0 - t)
        )

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self._mass / self.law.density(logsnr)

    def time_at(self, logsnr: Tensor) -> Tensor:
        return (self.law.survival(logsnr) - self._before) / self._mass

    def density_at(self, logsnr: Tensor) -> Tensor:
        return self.law.density(logsnr) / self._mass


class Cosine(Truncated):
    """The cosine schedule, λ = −2 log tan(πt/2) + shift (Nichol & Dhariwal 2021 with s = 0; shift:
    Hoogeboom 2023).

    With `offset`, iDDPM's own s (0.008), in continuous time and without its clip of β.

    >>> Cosine(13.3, -5.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([13.3000,  0.1614, -5.0000])
    """

    def __init__(
        self,
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
        *,
        shift: float = 0.0,
        offset: float = 0.0,
    ) -> None:
        if shift and offset:
            raise ValueError(
                must(
                    "Cosine",
                    "offset",
                    "be zero where shift is given",
                    offset,
                    "Shifted(Cosine(offset=…), shift) has both",
                )
            )
        shift, offset = (
            finite("Cosine", "shift", shift),
            finite("Cosine", "offset", offset, at_least=0.0),
        )
        super().__init__(
            OffsetCosine(offset) if offset else HyperbolicSecant(shift), logsnr_max, logsnr_min
        )


class LinearBeta(Truncated):
    """DDPM's linear β in continuous time (β from 0.1 to 20), between λ(t = 1e-3) and λ(1) by
    default.

    >>> LinearBeta()(torch.tensor([0.0, 1.0]))
    tensor([  9.1154, -10.0500])
    """

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float | None = None,
        *,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
    ) -> None:
        law = LinearBetaLaw(beta_min, beta_max)
        start, stop = law.quantile(
            torch.tensor([1e-3, 1.0], dtype=torch.float64, device="cpu")
        ).tolist()
        super().__init__(
            law,
            start if logsnr_max is None else logsnr_max,
            stop if logsnr_min is None else logsnr_min,
        )


class OptimalTransport(Truncated):
    """Rectified flow and OT flow matching with uniform t: λ = 2 log((1 − t)/t), a Logistic(0, 2)
    law.

    >>> OptimalTransport()(torch.tensor(0.5))
    tensor(0.)
    """

    def __init__(self, logsnr_max: float = 15.0, logsnr_min: float = -15.0) -> None:
        super().__init__(Logistic(0.0, 2.0), logsnr_max, logsnr_min)


class Normal(Truncated):
    """λ ~ N(mean, std²): EDM's training noise by default (P_mean = −1.2, P_std = 1.2), ends at
    mean ± 5 std.

    SD3's logit-normal(m, s) is `Normal(-2 * m, 2 * s)`.

    >>> Normal()(torch.tensor(0.5))
    tensor(2.4000)
    """

    def __init__(
        self,
        mean: float = 2.4,
        std: float = 2.4,
        logsnr_max: float | None = None,
        logsnr_min: float | None = None,
    ) -> None:
        law = Gaussian(finite("Normal", "mean", mean), finite("Normal", "std", std, above=0.0))
        high = law.mean + 5 * law.std if logsnr_max is None else logsnr_max
        low = law.mean - 5 * law.std if logsnr_min is None else logsnr_min
        super().__init__(law, high, low)


class Laplace(Truncated):
    """λ ~ Laplace(mean, scale) (Hang et al., arXiv:2407.03297), on [−15, 15] by default.

    >>> Laplace().law.quantile(torch.tensor(0.1))
    tensor(0.8047)
    """

    def __init__(
        self,
        mean: float = 0.0,
        scale: float = 0.5,
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
    ) -> None:
        law = DoubleExponential(
            finite("Laplace", "mean", mean), finite("Laplace", "scale", scale, above=0.0)
        )
        super().__init__(law, logsnr_max, logsnr_min)


class Spectral(Truncated):
    """A logistic law fitted to the data's covariance, with `variances` v_i for its eigenvalues
    (ITDiffusion).

    A Gaussian of that covariance has E‖e‖² = Σ_i sigmoid(λ + log v_i): it rises by a mixture of
    logistic densities of scale 1 at −log v_i, whose mean and variance this law has: mean = −E log
    v, scale² = 1 + (3/π²) Var log v. (The paper's code has 3/π.) Ends at mean ± 4 scale, as there.
    Zero eigenvalues (pixels that never change) must be left out.

    Kong, Brekelmans & Ver Steeg, arXiv:2302.03792.

    >>> Spectral([1.0, 0.25])(torch.tensor([0.5]))
    tensor([0.6931])
    """

    def __init__(
        self,
        variances: Tensor | Sequence[float],
        logsnr_max: float | None = None,
        logsnr_min: float | None = None,
    ) -> None:
        log_v = torch.as_tensor(variances, dtype=torch.float64, device="cpu").log()
        if log_v.ndim != 1 or len(log_v) == 0 or not log_v.isfinite().all():
            came = f"shape {tuple(log_v.shape)}, of them {int((~log_v.isfinite()).sum())} not"
            raise ValueError(
                must(
                    "Spectral",
                    "variances",
                    "be a vector of positive eigenvalues",
                    came,
                    "torch.linalg.eigvalsh(x.T.cov())",
                )
            )
        law = Logistic(
            -log_v.mean().item(), math.sqrt(1 + 3 / math.pi**2 * log_v.var(correction=0).item())
        )
        high = law.mean + 4 * law.scale if logsnr_max is None else logsnr_max
        low = law.mean - 4 * law.scale if logsnr_min is None else logsnr_min
        super().__init__(law, high, low)


class SignalPower(Schedule):
    """p(λ) ∝ α², the signal's power: softplus(λ) is linear in t (i-DODE, Zheng et al.,
    arXiv:2305.03935).

    >>> SignalPower(10.0, -10.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 10.0000,   4.9933, -10.0000])
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0) -> None:
        super().__init__(logsnr_max, logsnr_min)
        ends = torch.nn.functional.softplus(
            torch.tensor(self._ends, dtype=torch.float64, device="cpu")
        )
        self._least, self._span = ends[1].item(), (ends[0] - ends[1]).item()

    def logsnr_at(self, t: Tensor) -> Tensor:
        power = self._least + self._span * (1 - t)
        return power + torch.log(-torch.expm1(-power))

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return self._span * (1 + torch.exp(-logsnr))

    def time_at(self, logsnr: Tensor) -> Tensor:
        return 1 - (torch.nn.functional.softplus(logsnr) - self._least) / self._span


class Karras(Schedule):
    """EDM's sampling grid in continuous time: σ^{1/ρ} is linear in t (Karras et al.,
    arXiv:2206.00364, eq. 5).

    `Karras(0.002, 80.0).sigmas(18)` is the published grid without its final zero.

    >>> Karras(0.002, 80.0).sigmas(3)
    tensor([8.0000e+01, 2.5152e+00, 2.0000e-03], dtype=torch.float64)
    """

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        zero = "σ = 0 is λ = +∞; a sampler's last step to σ = 0 is no level of the schedule"
        self.sigma_min, self.sigma_max = (
            finite("Karras", "sigma_min", sigma_min, above=0.0, hint=zero),
            finite("Karras", "sigma_max", sigma_max),
        )
        self.rho = finite("Karras", "rho", rho, above=0.0)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                must(
                    "Karras",
                    "sigma_min",
                    f"be below sigma_max = {self.sigma_max:g}",
                    f"{self.sigma_min:g}",
                    "swapped?",
                )
            )
        self._low: float = self.sigma_min ** (1 / self.rho)
        self._high: float = self.sigma_max ** (1 / self.rho)
        super().__init__(-2 * math.log(self.sigma_min), -2 * math.log(self.sigma_max))

    def logsnr_at(self, t: Tensor) -> Tensor:
        return -2 * self.rho * torch.log(self._low + (self._high - self._low) * t)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        return torch.exp(logsnr / (2 * self.rho)) * (2 * self.rho * (self._high - self._low))

    def time_at(self, logsnr: Tensor) -> Tensor:
        return (torch.exp(-logsnr / (2 * self.rho)) - self._low) * (1 / (self._high - self._low))

    def sigmas(self, steps: int) -> Tensor:
        """σ̃ = e^{−λ/2} at `steps` equidistant times, from σ_max down to σ_min, in float64."""
        return torch.exp(-0.5 * self.logsnr_at(torch.linspace(1, 0, steps, dtype=torch.float64)))

"""What a network predicts, as a row (a, b): its target is o = a·x + b·ε.

With z = α x + σ ε, one 2×2 solve gives (x̂, ε̂) from ô, and ‖ε − ε̂‖² = ‖o − ô‖²/κ² with κ = b − a
e^{−λ/2}. The error is computed in the network's own units: in float32 that is a hundred times more
accurate at λ = −10 than a conversion to ε̂.
"""

import abc
import math
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import Steps
from vdiff._precision import to_float64
from vdiff._validate import Given, Number, require, validated
from vdiff.gaussian import Step, alpha, combine, per_example, scales, sigma
from vdiff.schedule import Schedule

Coefficient = Tensor | float
Scale = Annotated[float, Number(above=0.0, hint="the standard deviation of the data")]
DIGITS = 1e-3  # relative rounding error of x̂ or ε̂ above which users are warned


class Parameterization(abc.ABC):
    """A target o = a·x + b·ε: `row(logsnr)` returns (a, b), numbers or (batch,) tensors.

    >>> V().kappa(torch.tensor([0.0]))                       # 1 + e^{-λ} = 2 is its square
    tensor([1.4142])
    """

    __example__ = "an instance, for instance V()"

    @staticmethod
    def __validate__(value: "Parameterization", argument: str, given: Given) -> "Parameterization":
        """A row of numbers and (batch,) tensors that determines ε̂."""
        logsnr = torch.linspace(-10.0, 10.0, 21, dtype=torch.float64, device="cpu")
        for entry in (*value.row(logsnr), value.input_scale(logsnr)):
            what = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
            fits = isinstance(entry, float | int) or what == logsnr.shape
            numbers = "have a row and an input scale of numbers or (batch,) tensors"
            require(
                fits, argument, numbers, f"{what} from {value!r} for {len(logsnr)} values of λ"
            )
        low, high = value.inverse_kappa2(logsnr).reciprocal().aminmax()
        fits = bool(torch.isfinite(high - low) and high > 1e-20)
        solves, hint = "have a row that determines ε̂ from z and the output", "(a, b) ∝ (α, σ) is z"
        require(fits, argument, solves, f"κ² from {low:g} to {high:g} with {value!r}", hint)
        return value

    @abc.abstractmethod
    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        """(a, b) at each λ."""

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        """c_in: the network's input is c_in·z."""
        return 1.0

    @validated
    def kappa(self, logsnr: Tensor) -> Tensor:
        """κ = |b − a e^{−λ/2}|: the target's error is κ times the error of ε.

        >>> X().kappa(torch.tensor([0.0, 2.0]))
        tensor([1.0000, 0.3679])
        """
        return self.inverse_kappa2(logsnr).rsqrt()

    def inverse_kappa2(self, logsnr: Tensor) -> Tensor:
        """1/κ²: the squared error of ε is the target's squared error times this."""
        a, b = self.row(logsnr)
        kappa: Tensor = b - a * torch.exp(-0.5 * logsnr)
        return kappa.pow(-2)

    def rounding(self, logsnr: Float[Tensor, " 1"], dtype: torch.dtype) -> tuple[float, float]:
        """The errors of x̂ and ε̂ from rounding an output of order one: u σ/|αb − σa| and
        u α/|αb − σa|.

        >>> X().rounding(torch.tensor([20.0]), torch.float32)[1] > 1e-3
        True
        """
        v = to_float64(logsnr)
        a, b = self.row(v)
        scale = torch.finfo(dtype).eps / (alpha(v) * b - sigma(v) * a).abs()
        return (sigma(v) * scale).item(), (alpha(v) * scale).item()

    @validated
    def target(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        """o = a·x + b·ε, the output of a perfect network.

        >>> V().target(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1))
        tensor([[-0.7071]])
        """
        return self.combination(x, eps, logsnr)

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        """o = a·x + b·ε, unchecked: from the row, or without the operations that it does not
        need."""
        a, b = (torch.as_tensor(c, dtype=logsnr.dtype, device=x.device) for c in self.row(logsnr))
        return combine(a, x, b, eps)

    def solve_x(self, z: Tensor, output: Tensor, logsnr: Tensor) -> Tensor:
        """x̂ = (b z − σ ô)/(α b − σ a)."""
        (a, b), (signal, noise) = self.row(logsnr), scales(logsnr)
        scale = (signal * b - noise * a).reciprocal()
        return combine(b * scale, z, -noise * scale, output)

    def solve_eps(self, z: Tensor, output: Tensor, logsnr: Tensor) -> Tensor:
        """ε̂ = (α ô − a z)/(α b − σ a)."""
        (a, b), (signal, noise) = self.row(logsnr), scales(logsnr)
        scale = (signal * b - noise * a).reciprocal()
        return combine(-a * scale, z, signal * scale, output)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


class Eps(Parameterization):
    """Noise prediction, o = ε (DDPM, VDM). Ill-conditioned for x̂ as λ → −∞.

    >>> Eps().row(torch.zeros(1))
    (0.0, 1.0)
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return 0.0, 1.0

    def inverse_kappa2(self, logsnr: Tensor) -> Tensor:
        return torch.ones_like(logsnr)

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return eps

    def solve_eps(self, z: Tensor, output: Tensor, logsnr: Tensor) -> Tensor:
        return output


class X(Parameterization):
    """Data prediction, o = x. Ill-conditioned for ε̂ as λ → +∞: in float32, keep λ_max at 20 or
    below.

    >>> X().row(torch.zeros(1))
    (1.0, 0.0)
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return 1.0, 0.0

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return x

    def solve_x(self, z: Tensor, output: Tensor, logsnr: Tensor) -> Tensor:
        return output

    def inverse_kappa2(self, logsnr: Tensor) -> Tensor:
        return torch.exp(logsnr)


class V(Parameterization):
    """v-prediction, o = α ε − σ x at σ_data = 1 (Salimans & Ho 2022); for another σ_data, minus
    EDM's F.

    c_in = (α² σ_d² + σ²)^{−½}, a = −σ c_in/σ_d, b = α σ_d c_in: target and input have unit
    variance for data of standard deviation σ_d (Karras et al., arXiv:2206.00364, table 1).
    `V(0.5)` is EDM's preconditioning. EDM's F predicts −v: `Denoiser(F, V(0.5), time=edm_time,
    output=torch.neg)`.

    >>> V(0.5).input_scale(torch.tensor([0.0]))
    tensor([1.2649])
    """

    @validated
    def __init__(self, sigma_data: Scale = 1.0) -> None:
        self.sigma_data = sigma_data

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        signal, noise = scales(self._normalized(logsnr))
        return noise * (-1.0 / self.sigma_data), signal

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        signal, noise = scales(self._normalized(logsnr)).to(x.dtype)
        signal, noise = per_example(signal, x), per_example(noise, x)
        return torch.addcmul(signal * eps, noise, x, value=-1.0 / self.sigma_data)

    def inverse_kappa2(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(self._normalized(logsnr))  # κ = α' + σ' e^{−λ'/2} = 1/α'

    def _normalized(self, logsnr: Tensor) -> Tensor:
        """λ' of x/σ_d, for which this is plain v."""
        return logsnr if self.sigma_data == 1.0 else logsnr + 2.0 * math.log(self.sigma_data)

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        if self.sigma_data == 1.0:
            return 1.0
        return (1.0 + torch.sigmoid(logsnr) * (self.sigma_data**2 - 1.0)).rsqrt()


class Flow(Parameterization):
    """Rectified-flow velocity, o = ε − x. The network's input is z on the straight path, c_in =
    1/(α + σ).

    Time runs from data to noise (`flow_time`). A network with t = 1 at the data and target x − ε
    is `Denoiser(network, Flow(), time=lambda v: 1 - flow_time(v), output=torch.neg)`.

    >>> Flow().kappa(torch.tensor([0.0]))
    tensor([2.])
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return -1.0, 1.0

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return eps - x

    def inverse_kappa2(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(0.5 * logsnr).square()  # κ = 1 + e^{−λ/2}

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        t = torch.sigmoid(-0.5 * logsnr)  # c_in z is (1 − t) x + t ε, and α² + σ² = 1
        return torch.hypot(1.0 - t, t)


class Score(Parameterization):
    """Score prediction, o = ∇ log q(z | x) = −ε/σ.

    >>> Score().row(torch.tensor([0.0]))
    (0.0, tensor([-1.4142]))
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return 0.0, -sigma(logsnr).reciprocal()

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return per_example(-sigma(logsnr).reciprocal(), eps) * eps


class PosteriorMean(Parameterization):
    """The posterior mean of a T-step chain, o = μ_Q(z_t, x) = α_s (e^{−Δ} z_t/α_t + c x), as a row
    of (x, ε).

    Its row is (α_s, α_s e^{−Δ} σ_t/α_t), with (λ_s, Δ) from the step of `schedule` that ends at
    λ_t. Its error is α_s c e^{−λ_t/2} times the error of ε. That is small, so in float32 this is
    the least accurate target (with DDPM's table the loss is off by 0.4 % at T = 1000, and by a
    third at 1e5). It needs a chain: at t = 0 there is no step, and κ is zero.

    >>> from vdiff.schedule import Linear
    >>> PosteriorMean(Linear(), steps=10).kappa(torch.tensor([0.0]))
    tensor([0.7794])
    """

    @validated
    def __init__(self, schedule: Schedule, steps: Steps) -> None:
        self.schedule, self.steps = schedule, steps

    def step(self, logsnr: Tensor) -> Step:
        """The chain's step that ends at λ_t."""
        t = self.schedule.inverse(to_float64(logsnr), clamp=True)
        return Step(to_float64(logsnr), self.schedule.delta(t, self.steps))

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        step = self.step(logsnr)
        a = alpha(step.logsnr_s)
        b = a * torch.exp(-step.delta - 0.5 * step.logsnr_t)
        return a.to(logsnr.dtype), b.to(logsnr.dtype)


class VarianceExploding(Parameterization):
    """Another target from a network whose input is z/α = x + σ̃ n with σ̃ = e^{−λ/2}, the variance
    exploding coordinates.

    EDM's preconditioned denoiser D(x; σ) is `Denoiser(D, VarianceExploding(X()),
    time=sigma_time)`.

    >>> VarianceExploding(X()).input_scale(torch.tensor([0.0]))
    tensor([1.4142])
    """

    @validated
    def __init__(self, parameterization: Parameterization) -> None:
        self.parameterization = parameterization

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return self.parameterization.row(logsnr)

    def combination(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        return self.parameterization.combination(x, eps, logsnr)

    def inverse_kappa2(self, logsnr: Tensor) -> Tensor:
        return self.parameterization.inverse_kappa2(logsnr)

    def solve_x(self, z: Tensor, output: Tensor, logsnr: Tensor) -> Tensor:
        return self.parameterization.solve_x(z, output, logsnr)

    def solve_eps(self, z: Tensor, output: Tensor, logsnr: Tensor) -> Tensor:
        return self.parameterization.solve_eps(z, output, logsnr)

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        return alpha(logsnr).reciprocal()


__all__ = [
    "Eps",
    "Flow",
    "Parameterization",
    "PosteriorMean",
    "Score",
    "V",
    "VarianceExploding",
    "X",
]

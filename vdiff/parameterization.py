"""What a network predicts, as a row (a, b): its target is o = a·x + b·ε.

With z = α x + σ ε, one 2×2 solve gives (x̂, ε̂) from ô, and ‖ε − ε̂‖² = ‖o − ô‖²/κ² with κ = b − a
e^{−λ/2}. Nothing is converted in pairs, and the error is computed in the network's own units: in
float32 that is a hundred times more accurate at λ = −10 than going through ε̂.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff.errors import check_steps, finite, must, names_arrays, shown
from vdiff.gaussian import Step, ValuesCopied, alpha, combine, per_example, sigma, sum_dims, wide
from vdiff.schedule import Schedule
from vdiff.variance import Posterior, ReverseVariance

Coefficient = Tensor | float
DIGITS = 1e-3  # relative rounding error of x̂ or ε̂ from which on a user hears of it
_POSTERIOR = Posterior()


class Parameterization:
    """A target as a row: `row(logsnr)` returns (a, b), numbers or (batch,) tensors, of o = a·x +
    b·ε.

    `input_scale(logsnr)` is c_in, what the network's input z is multiplied by (1 unless the class
    says otherwise).

    >>> V().kappa(torch.tensor([0.0]))                       # 1 + e^{-λ} = 2 is its square
    tensor([1.4142])
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        """(a, b) at each λ."""
        raise NotImplementedError

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        """c_in: the network sees c_in·z."""
        return 1.0

    def kappa(self, logsnr: Tensor) -> Coefficient:
        """κ = |b − a e^{−λ/2}|: an error of the target is κ times the error of ε.

        >>> X().kappa(torch.tensor([0.0, 2.0]))
        tensor([1.0000, 0.3679])
        """
        squared: Coefficient = self.kappa2(logsnr) ** 0.5
        return squared

    @names_arrays
    def kappa2(self, logsnr: Tensor) -> Coefficient:
        """κ², by which a squared error of ε is multiplied to be one of the target.

        >>> V().kappa2(torch.tensor([0.0]))
        tensor([2.0000])
        """
        return _kappa2(*self.row(logsnr), logsnr)

    def rounding(self, logsnr: Float[Tensor, " 1"], dtype: torch.dtype) -> tuple[float, float]:
        """How large an error the rounding of an output of order one makes in x̂ and in ε̂: u σ/|αb
        − σa| and u α/|αb − σa|.

        >>> X().rounding(torch.tensor([20.0]), torch.float32)[1] > 1e-3
        True
        """
        level = wide(logsnr)
        a, b = self.row(level)
        scale = torch.finfo(dtype).eps / (alpha(level) * b - sigma(level) * a).abs()
        return (sigma(level) * scale).item(), (alpha(level) * scale).item()

    @names_arrays
    def target(self, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
        """o = a·x + b·ε, what a perfect network would return.

        >>> V().target(torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1))
        tensor([[-0.7071]])
        """
        a, b = self.row(logsnr)
        return combine(a, x, b, eps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


class Eps(Parameterization):
    """Noise prediction, o = ε (DDPM, VDM). Ill-conditioned for x̂ as λ → −∞.

    >>> Eps().row(torch.zeros(1))
    (0.0, 1.0)
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return 0.0, 1.0


class X(Parameterization):
    """Data prediction, o = x. Ill-conditioned for ε̂ as λ → +∞: in float32, keep λ_max at 20 or
    below.

    >>> X().row(torch.zeros(1))
    (1.0, 0.0)
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return 1.0, 0.0


class V(Parameterization):
    """v-prediction, o = α ε − σ x at σ_data = 1 (Salimans & Ho 2022); for another σ_data, minus
    EDM's F.

    c_in = (α² σ_d² + σ²)^{−½},  a = −σ c_in/σ_d,  b = α σ_d c_in: target and input have unit
    variance for data of standard deviation σ_d (Karras et al., arXiv:2206.00364, table 1).
    `V(0.5)` is EDM's preconditioning; a network trained as EDM's F says −v: `Denoiser(F, V(0.5),
    time=edm_time, output=torch.neg)`.

    >>> V(0.5).input_scale(torch.tensor([0.0]))
    tensor([1.2649])
    """

    def __init__(self, sigma_data: float = 1.0) -> None:
        self.sigma_data = finite(
            "V",
            "sigma_data",
            sigma_data,
            above=0.0,
            hint="the standard deviation of the data, 1 for plain v-prediction",
        )

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        if self.sigma_data == 1.0:
            return -sigma(logsnr), alpha(logsnr)
        normalized = logsnr + 2.0 * math.log(
            self.sigma_data
        )  # the log-SNR of data divided by σ_d: there this is plain v
        return sigma(normalized) * (-1.0 / self.sigma_data), alpha(normalized)

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        if self.sigma_data == 1.0:
            return 1.0
        return (1.0 + torch.sigmoid(logsnr) * (self.sigma_data**2 - 1.0)).rsqrt()


class Flow(Parameterization):
    """Rectified-flow velocity, o = ε − x, from a network that sees z on the straight path: c_in =
    1/(α + σ).

    Time runs from data to noise (`flow_time`). For a network trained the other way, with t = 1 at
    the data and target x − ε: `Denoiser(network, Flow(), time=lambda logsnr: 1 -
    flow_time(logsnr), output=torch.neg)`.

    >>> Flow().kappa(torch.tensor([0.0]))
    tensor([2.])
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return -1.0, 1.0

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        return (alpha(logsnr) + sigma(logsnr)).reciprocal()


class Score(Parameterization):
    """Score prediction, o = ∇ log q(z | x) = −ε/σ.

    >>> Score().row(torch.tensor([0.0]))
    (0.0, tensor([-1.4142]))
    """

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return 0.0, -sigma(logsnr).reciprocal()


class PosteriorMean(Parameterization):
    """The posterior mean of a T-step chain, o = μ_Q(z_t, x) = α_s (e^{−Δ} z_t/α_t + c x), as a row
    of (x, ε).

    Its row is (α_s, α_s e^{−Δ} σ_t/α_t), with (λ_s, Δ) from the step of `schedule` that ends at
    λ_t. An error of it is α_s c e^{−λ_t/2} times the error of ε: small, so in float32 this is the
    worst of the targets (DDPM's table: the loss is off by 0.4 % at T = 1000, and by a third at
    1e5). It is a target of chains: at t = 0 there is no step, and κ is zero.

    >>> from vdiff import Linear
    >>> PosteriorMean(Linear(), steps=10).kappa(torch.tensor([0.0]))
    tensor([0.7794])
    """

    def __init__(self, schedule: Schedule, steps: int) -> None:
        check_steps("PosteriorMean", steps)
        self.schedule, self.steps = schedule, steps

    def step(self, logsnr: Tensor) -> Step:
        """The chain's step that ends at λ_t."""
        delta = self.schedule.delta(self.schedule.inverse(wide(logsnr), clamp=True), self.steps)
        return Step(wide(logsnr), delta)

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        step = self.step(logsnr)
        a = alpha(step.logsnr_s)
        b = a * torch.exp(-step.delta - 0.5 * step.logsnr_t)
        return a.to(logsnr.dtype), b.to(logsnr.dtype)


class Exploding(Parameterization):
    """Another target from a network that sees z/α, variance exploding coordinates: x + σ̃ n with
    σ̃ = e^{−λ/2}.

    EDM's preconditioned denoiser D(x; σ) is `Denoiser(D, Exploding(X()), time=sigma_time)`.

    >>> Exploding(X()).input_scale(torch.tensor([0.0]))
    tensor([1.4142])
    """

    def __init__(self, parameterization: Parameterization) -> None:
        check_parameterization("Exploding", parameterization)
        self.parameterization = parameterization

    def row(self, logsnr: Tensor) -> tuple[Coefficient, Coefficient]:
        return self.parameterization.row(logsnr)

    def input_scale(self, logsnr: Tensor) -> Coefficient:
        return alpha(logsnr).reciprocal()


def check_parameterization(function: str, parameterization: object) -> None:
    """Raise unless `parameterization` is one, whose row is made of numbers and (batch,)
    tensors."""
    if not isinstance(parameterization, Parameterization):
        raise TypeError(
            must(
                function,
                "parameterization",
                "be a Parameterization",
                shown(parameterization),
                "an instance, for instance V()",
            )
        )
    logsnr = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, device="cpu")
    for entry in (*parameterization.row(logsnr), parameterization.input_scale(logsnr)):
        if not isinstance(entry, float | int) and not (
            isinstance(entry, Tensor) and entry.shape == logsnr.shape
        ):
            what = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
            raise ValueError(
                must(
                    function,
                    "parameterization",
                    "have a row and an input scale of numbers or (batch,) tensors",
                    f"{what} from {parameterization!r} for 3 levels",
                )
            )
    logsnr = torch.linspace(-10.0, 10.0, 21, dtype=torch.float64, device="cpu")
    kappa2 = parameterization.kappa2(logsnr) + torch.zeros_like(logsnr)
    nothing, bad = kappa2 < 1e-20, ~torch.isfinite(kappa2)
    if (
        nothing.all() or bad.any()
    ):  # nothing at some levels is a posterior mean's, beyond its first
        i = int((bad | nothing).nonzero()[0])
        came, hint = (
            f"κ² = {kappa2[i]:g} at λ = {logsnr[i]:g} from {parameterization!r}",
            "z itself says nothing of x: (a, b) ∝ (α, σ)",
        )
        raise ValueError(
            must(
                function,
                "parameterization",
                "have a row that determines ε̂ from z and the output",
                came,
                hint,
            )
        )


class Prediction(ValuesCopied):
    """What a model says about z: one output, readable in any dialect.

    `.x`, `.eps`, `.v` and `.score` are solved from z = α x + σ ε and the network's own row;
    `.squared_error(x, eps)` is ‖ε − ε̂‖² per example, computed in the network's own units.
    `source` is what the network itself predicts, where a wrapper (`Clipped`) has turned that into
    something else: its rounding stays in x̂ and ε̂. A prediction is a pytree of its tensors:
    `torch.export`, `torch.vmap` and `tree_map` take and return it.

    `copy.copy` and `pickle` work on it; `copy.deepcopy` has the values, detached from the graph.

    >>> z, out = torch.zeros(1, 2), torch.ones(1, 2)
    >>> Prediction(z, torch.zeros(1), out, Eps()).x
    tensor([[-1.0000, -1.0000]])
    """

    def __init__(
        self,
        z: Float[Tensor, "batch *dims"],
        logsnr: Float[Tensor, " batch"],
        out: Float[Tensor, "batch *dims"],
        parameterization: Parameterization,
        variance: ReverseVariance = _POSTERIOR,
        head: Float[Tensor, "batch *dims"] | None = None,
        source: Parameterization | None = None,
    ) -> None:
        self.z, self.logsnr, self.out, self.parameterization = z, logsnr, out, parameterization
        self.variance, self.head, self.source = variance, head, source or parameterization

    @property
    def x(self) -> Tensor:
        """x̂ = (b z − σ ô)/(α b − σ a)."""
        a, b = self.parameterization.row(self.logsnr)
        scale = self._inverse_determinant(a, b)
        return (
            combine(b * scale, self.z, -sigma(self.logsnr) * scale, self.out)
            if not _is(a, b, 1.0, 0.0)
            else self.out
        )

    @property
    def eps(self) -> Tensor:
        """ε̂ = (α ô − a z)/(α b − σ a)."""
        a, b = self.parameterization.row(self.logsnr)
        scale = self._inverse_determinant(a, b)
        return (
            combine(-a * scale, self.z, alpha(self.logsnr) * scale, self.out)
            if not _is(a, b, 0.0, 1.0)
            else self.out
        )

    @property
    def v(self) -> Tensor:
        """v̂ = α ε̂ − σ x̂."""
        return self.read(V())

    @property
    def score(self) -> Tensor:
        """∇ log p(z), −ε̂/σ."""
        return self.read(Score())

    def read(self, parameterization: Parameterization) -> Tensor:
        """The prediction as another target."""
        return parameterization.target(self.x, self.eps, self.logsnr)

    @names_arrays
    def squared_error(
        self,
        x: Float[Tensor, "batch *dims"],
        eps: Float[Tensor, "batch *dims"],
        factor: Float[Tensor, " batch"] | float = 1.0,
        weight: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """factor · ‖ε − ε̂‖² of each example, summed over dimensions: ‖o − ô‖² · factor/κ², that
        ratio rounded once.

        A `weight` that broadcasts over x multiplies each dimension's square before the sum.
        """
        a, b = self.parameterization.row(self.logsnr)
        squares = F.mse_loss(self.out, combine(a, x, b, eps), reduction="none")
        error = sum_dims(squares if weight is None else squares * weight)
        kappa2 = _kappa2(a, b, self.logsnr)
        ratio = factor if isinstance(kappa2, float) and kappa2 == 1.0 else factor / kappa2
        return error * (ratio.to(error.dtype) if isinstance(ratio, Tensor) else ratio)

    def stopped(self) -> "Prediction":
        """The same prediction with its mean cut off from the gradient; the variance's head keeps
        its own.

        >>> out = torch.ones(1, 1, requires_grad=True)
        >>> Prediction(out.detach(), torch.zeros(1), out, Eps()).stopped().out.requires_grad
        False
        """
        return self.but(out=self.out.detach())

    def but(self, **changes: Any) -> "Prediction":
        """The same prediction but for what is named, as in the constructor.

        >>> z = torch.ones(1, 1)
        >>> Prediction(z, torch.zeros(1), z, Eps()).but(out=3 * z).eps
        tensor([[3.]])
        """
        return Prediction(**{**vars(self), **changes})

    @names_arrays
    def error(
        self, x: Float[Tensor, "batch *dims"], eps: Float[Tensor, "batch *dims"]
    ) -> Float[Tensor, "batch *dims"]:
        """ε̂ − ε in each dimension, computed in the network's own units: (ô − o)/κ with the sign
        of its row.

        >>> x, eps = torch.ones(1, 1), torch.ones(1, 1)
        >>> Prediction(2**0.5 * x, torch.zeros(1), 0.5 * x, X()).error(x, eps)
        tensor([[0.5000]])
        """
        a, b = self.parameterization.row(self.logsnr)
        kappa = b - a * torch.exp(-0.5 * self.logsnr)
        return (self.out - combine(a, x, b, eps)) * per_example(kappa.reciprocal(), x)

    def _inverse_determinant(self, a: Coefficient, b: Coefficient) -> Tensor:
        return (alpha(self.logsnr) * b - sigma(self.logsnr) * a).reciprocal()


_PARTS = "z", "logsnr", "out", "head"
_WORDS = "parameterization", "variance", "source"
_Context = tuple[Parameterization, ReverseVariance, Parameterization]


def _flatten(prediction: Prediction) -> tuple[list[Any], _Context]:
    what: _Context = (prediction.parameterization, prediction.variance, prediction.source)
    parts = [getattr(prediction, part) for part in _PARTS]
    return parts[:-1] if prediction.head is None else parts, what


def _flatten_with_keys(prediction: Prediction) -> tuple[list[Any], _Context]:
    parts, what = _flatten(prediction)
    keys = map(torch.utils._pytree.GetAttrKey, _PARTS)
    return list(zip(keys, parts, strict=False)), what


def _unflatten(parts: Iterable[Any], what: _Context) -> Prediction:
    prediction = object.__new__(Prediction)  # a leaf need not be a tensor
    vars(prediction).update(head=None, **dict(zip(_WORDS, what, strict=True)))
    vars(prediction).update(zip(_PARTS, parts, strict=False))
    return prediction


def _dumped(what: object) -> Any:
    """A target, a choice of Σ or a number as JSON; raises TypeError for what holds more than
    such.
    """
    if what is None or isinstance(what, bool | int | float | str):
        return what
    if isinstance(what, tuple):
        return [_dumped(one) for one in what]
    if isinstance(what, Parameterization | ReverseVariance):
        name = f"{type(what).__module__}.{type(what).__qualname__}"
        return {"name": name, "of": {word: _dumped(value) for word, value in vars(what).items()}}
    hint = "torch.export.save keeps targets and variances that are made of numbers"
    came, made = type(what).__name__, "be made of numbers to be saved"
    raise TypeError(must("Prediction", "parameterization", made, came, hint))


def _loaded(what: Any) -> Any:
    """What `_dumped` made JSON of, from the classes that are there: none is imported for it."""
    if isinstance(what, list):
        return tuple(_loaded(one) for one in what)
    if not isinstance(what, dict):
        return what
    classes = _subclasses(Parameterization, ReverseVariance)
    known, name = {f"{one.__module__}.{one.__qualname__}": one for one in classes}, what["name"]
    if name not in known:
        hint, asked = "import the module that has it", "be of a class that is known"
        raise ValueError(must("Prediction", "parameterization", asked, name, hint))
    made: Any = object.__new__(known[name])
    vars(made).update({word: _loaded(value) for word, value in what["of"].items()})
    return made


def _subclasses(*classes: type) -> Iterator[type]:
    for one in classes:
        yield one
        yield from _subclasses(*one.__subclasses__())


torch.utils._pytree.register_pytree_node(  # for torch.export, torch.vmap and fully_shard
    Prediction,
    _flatten,
    _unflatten,
    serialized_type_name="vdiff.Prediction",
    to_dumpable_context=_dumped,
    from_dumpable_context=_loaded,
    flatten_with_keys_fn=_flatten_with_keys,
)


def _kappa2(a: Coefficient, b: Coefficient, logsnr: Tensor) -> Coefficient:
    """(b − a e^{−λ/2})²."""
    if isinstance(a, float) and a == 0.0:
        return b**2
    kappa: Tensor = b - a * torch.exp(-0.5 * logsnr)
    return kappa.square()


def _is(a: Coefficient, b: Coefficient, first: float, second: float) -> bool:
    return isinstance(a, float) and isinstance(b, float) and (a, b) == (first, second)


__all__ = [
    "Eps",
    "Exploding",
    "Flow",
    "Parameterization",
    "PosteriorMean",
    "Prediction",
    "Score",
    "V",
    "X",
]

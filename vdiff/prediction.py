"""What a model predicts from z."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vdiff._modules import ValuesCopied
from vdiff._precision import to_float64
from vdiff._validate import validated
from vdiff.errors import InvalidType
from vdiff.gaussian import Level, per_example, scales, sum_dims, weighted_sum
from vdiff.parameterization import Parameterization, Score, V
from vdiff.schedule.noise_levels import NoiseLevels
from vdiff.variance import FixedSmall, ReverseVariance

_POSTERIOR = FixedSmall()


class ModelOutput(ValuesCopied, ABC):
    """What a model returns: it scores x, and rows of it can be taken."""

    @abstractmethod
    def loss(self, x: Any, eps: Any, at: NoiseLevels, weight: Any = 1.0) -> Tensor:
        """One draw of the weighted loss, nats per example."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The shape of the z that it is of."""

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether it determines data, without NaN or infinity. Reads values."""

    @abstractmethod
    def beside(self, x: Any, modelled: Tensor) -> "ModelOutput":
        """The same prediction where `modelled` is True, and x elsewhere."""

    @abstractmethod
    def guided(self, without: Any, scale: Tensor) -> "ModelOutput":
        """The prediction that lies `scale` times as far from `without` as this one."""


@dataclass(eq=False)
class Prediction(ModelOutput):
    """What a model predicts from z: one output, which can be converted into any target.

    `.x`, `.eps`, `.v` and `.score` solve z = α x + σ ε together with the network's own row.
    `.squared_error(x, eps)` is ‖ε − ε̂‖² per example, computed in the network's own units.
    `source` is the network's own target if a wrapper (`Clipped`) has changed
    `parameterization`: the network's rounding error stays in x̂ and ε̂.

    `logsnr` is (batch,), or a field that broadcasts over z. Sums over dimensions are over those
    where `modelled` is True; None is all of them.

    A prediction is a pytree of its tensors, so `torch.export`, `torch.vmap` and `tree_map` accept
    it. `copy.deepcopy` copies the values, detached from the graph.

    >>> z, output = torch.zeros(1, 2), torch.ones(1, 2)
    >>> Prediction(z, torch.zeros(1), output, Eps()).x
    tensor([[-1.0000, -1.0000]])
    """

    __example__ = "the last of trajectory(…); of a sample itself, decoder.decode(x)"

    z: Float[Tensor, "batch *dims"]
    logsnr: Level
    output: Float[Tensor, "batch *dims"]
    parameterization: Parameterization
    variance: ReverseVariance = _POSTERIOR
    variance_output: Float[Tensor, "batch *dims"] | None = None
    source: Parameterization = None  # type: ignore[assignment]  # `parameterization` if left out
    modelled: Bool[Tensor, "batch *#dims"] | None = None

    def __post_init__(self) -> None:
        self.source = self.source or self.parameterization

    @property
    def shape(self) -> torch.Size:
        """The shape of the output."""
        return self.output.shape

    @property
    def finite(self) -> bool:
        """Whether the output is finite. Reads values."""
        return bool(torch.isfinite(self.output).all())

    @property
    def x(self) -> Tensor:
        """x̂ = (b z − σ ô)/(α b − σ a)."""
        return self.parameterization.solve_x(self.z, self.output, self.logsnr)

    @property
    def eps(self) -> Tensor:
        """ε̂ = (α ô − a z)/(α b − σ a)."""
        return self.parameterization.solve_eps(self.z, self.output, self.logsnr)

    @property
    def v(self) -> Tensor:
        """v̂ = α ε̂ − σ x̂."""
        return self.as_target(V())

    @property
    def score(self) -> Tensor:
        """∇ log p(z), −ε̂/σ."""
        return self.as_target(Score())

    def as_target(self, parameterization: Parameterization) -> Tensor:
        """The prediction converted into another target."""
        return parameterization.target(self.x, self.eps, self.logsnr)

    @validated
    def squared_error(
        self,
        x: Float[Tensor, "batch *dims"],
        eps: Float[Tensor, "batch *dims"],
        factor: Level | float = 1.0,
        weight: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """factor · ‖ε − ε̂‖² of each example, computed as ‖o − ô‖² · factor/κ². The ratio is
        rounded once. A factor (batch,) multiplies the sum over dimensions, a field its terms.

        A `weight` that broadcasts over x multiplies the square of each dimension before the sum.
        """
        target = self.parameterization.combination(x, eps, self.logsnr)
        squares = F.mse_loss(self.output, target, reduction="none")
        squares = squares if weight is None else squares * weight
        ratio = factor * self.parameterization.inverse_kappa2(self.logsnr)
        return weighted_sum(squares, ratio, self.modelled)

    def loss(
        self, x: Tensor, eps: Tensor, at: NoiseLevels, weight: Tensor | float = 1.0
    ) -> Float[Tensor, " batch"]:
        """½ w(λ) (−dλ/dt) ‖ε − ε̂‖², one draw of the weighted loss, nats per example."""
        return self.squared_error(x, eps, factor=0.5 * weight * at.rate)

    def sum(self, terms: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
        """The sum over the modelled dimensions."""
        return sum_dims(terms, self.modelled)

    def beside(self, x: Tensor, modelled: Tensor) -> "Prediction":
        """The same prediction where `modelled` is True. Elsewhere x̂ is x."""
        a, s = scales(to_float64(self.logsnr)).to(x.dtype)
        eps = (self.z - per_example(a, self.z) * x) / per_example(s, self.z)
        output = self.parameterization.combination(x, eps, self.logsnr)
        return self.replace(output=torch.where(modelled, self.output, output))

    def guided(self, without: "Prediction", scale: Tensor) -> "Prediction":
        """ô = ô_u + scale (ô − ô_u), where ô_u is the output of `without`."""
        scale = torch.as_tensor(per_example(scale, self.z))
        return self.replace(output=torch.lerp(without.output, self.output, scale))

    def detach_mean(self) -> "Prediction":
        """The same prediction without gradient for the mean. `variance_output` keeps its own."""
        return self.replace(output=self.output.detach())

    def replace(self, **changes: Any) -> "Prediction":
        """The same prediction with some fields changed.

        >>> z = torch.ones(1, 1)
        >>> Prediction(z, torch.zeros(1), z, Eps()).replace(output=3 * z).eps
        tensor([[3.]])
        """
        return replace(self, **changes)

    def rows(self, index: Tensor) -> "Prediction":
        """The prediction for some examples of the batch.

        >>> z = torch.ones(3, 1)
        >>> Prediction(z, torch.zeros(3), z, Eps()).rows(torch.tensor([0, 2])).z.shape
        torch.Size([2, 1])
        """
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return self.replace(**{name: v[index] for name, v in tensors.items() if v is not None})

    @validated
    def error(
        self, x: Float[Tensor, "batch *dims"], eps: Float[Tensor, "batch *dims"]
    ) -> Float[Tensor, "batch *dims"]:
        """ε̂ − ε in each dimension, computed in the network's own units: (ô − o)/κ with the sign
        of κ.

        >>> x, eps = torch.ones(1, 1), torch.ones(1, 1)
        >>> Prediction(2**0.5 * x, torch.zeros(1), 0.5 * x, X()).error(x, eps)
        tensor([[0.5000]])
        """
        a, b = self.parameterization.row(self.logsnr)
        kappa = b - a * torch.exp(-0.5 * self.logsnr)
        target = self.parameterization.combination(x, eps, self.logsnr)
        return (self.output - target) * per_example(kappa.reciprocal(), x)


_TENSORS = "z", "logsnr", "output", "variance_output", "modelled"
_SETTINGS = "parameterization", "variance", "source"


def as_output(returned: object) -> ModelOutput:
    """What a model returned. Raises TypeError unless it is a prediction, of any process."""
    if not isinstance(returned, ModelOutput):
        hint = "wrap the network, which says what it predicts: Denoiser(network, V())"
        raise InvalidType("model", "return a Prediction", type(returned).__name__, hint)
    return returned


def as_prediction(returned: object) -> Prediction:
    """What a model returned. Raises TypeError unless it is a Prediction."""
    output = as_output(returned)
    if not isinstance(output, Prediction):
        raise InvalidType("model", "return a Prediction", type(output).__name__)
    return output


def register(cls: type, tensors: tuple[str, ...], settings: tuple[str, ...], *bases: type) -> None:
    """Make predictions of a class pytrees of their tensors, for torch.export, torch.vmap and
    fully_shard. Settings are saved that are made of numbers, of subclasses of `bases`."""

    def flatten(prediction: Any) -> tuple[list[Any], tuple[Any, ...]]:
        names = tuple(name for name in tensors if getattr(prediction, name) is not None)
        values = tuple(getattr(prediction, name) for name in settings)
        return [getattr(prediction, name) for name in names], (*values, names)

    def flatten_with_keys(prediction: Any) -> tuple[list[Any], tuple[Any, ...]]:
        leaves, context = flatten(prediction)
        keys = map(torch.utils._pytree.GetAttrKey, context[-1])
        return list(zip(keys, leaves, strict=True)), context

    def unflatten(leaves: Iterable[Any], context: tuple[Any, ...]) -> Any:
        prediction: Any = object.__new__(cls)  # a leaf need not be a tensor
        values = dict(zip(settings, context, strict=False))
        vars(prediction).update(dict.fromkeys(tensors), **values)
        vars(prediction).update(zip(context[-1], leaves, strict=True))
        return prediction

    torch.utils._pytree.register_pytree_node(
        cls, flatten, unflatten, serialized_type_name=f"vdiff.{cls.__name__}",
        to_dumpable_context=partial(_to_json, bases=bases),
        from_dumpable_context=partial(_from_json, bases=bases),
        flatten_with_keys_fn=flatten_with_keys,
    )  # fmt: skip


def _to_json(value: object, bases: tuple[type, ...]) -> Any:
    """A part of these classes or a number as JSON. Raises TypeError for anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_to_json(item, bases) for item in value]
    name = type(value).__name__
    if isinstance(value, bases):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        of = {key: _to_json(item, bases) for key, item in vars(value).items()}
        return {"name": name, "of": of}
    raise TypeError(
        f"a Prediction is saved with targets and variances made of numbers, not {name}"
    )


def _from_json(value: Any, bases: tuple[type, ...]) -> Any:
    """The inverse of `_to_json`, for classes that are already imported."""
    if isinstance(value, list):
        return tuple(_from_json(item, bases) for item in value)
    if not isinstance(value, dict):
        return value
    classes = _subclasses(*bases)
    by_name, name = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}, value["name"]
    if name not in by_name:
        raise ValueError(f"a saved Prediction holds the class {name}: import its module first")
    restored: Any = object.__new__(by_name[name])
    vars(restored).update({key: _from_json(v, bases) for key, v in value["of"].items()})
    return restored


def _subclasses(*classes: type) -> Iterator[type]:
    for cls in classes:
        yield cls
        yield from _subclasses(*cls.__subclasses__())


register(Prediction, _TENSORS, _SETTINGS, Parameterization, ReverseVariance)

__all__ = ["Prediction"]

"""What a model says about z."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import validated
from vdiff.gaussian import ValuesCopied, alpha, combine, per_example, sigma, sum_dims
from vdiff.parameterization import (
    Coefficient,
    Parameterization,
    Score,
    V,
    is_number,
)
from vdiff.variance import FixedSmall, ReverseVariance

_POSTERIOR = FixedSmall()


@dataclass(eq=False)
class Prediction(ValuesCopied):
    """What a model says about z: one output, which can be read as any target.

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

    __example__ = "the last of trajectory(…); of a sample itself, decoder.decode(x)"

    z: Float[Tensor, "batch *dims"]
    logsnr: Float[Tensor, " batch"]
    out: Float[Tensor, "batch *dims"]
    parameterization: Parameterization
    variance: ReverseVariance = _POSTERIOR
    head: Float[Tensor, "batch *dims"] | None = None
    source: Parameterization = None  # type: ignore[assignment]  # `parameterization` if left out

    def __post_init__(self) -> None:
        self.source = self.source or self.parameterization

    @property
    def x(self) -> Tensor:
        """x̂ = (b z − σ ô)/(α b − σ a)."""
        a, b = self.parameterization.row(self.logsnr)
        if is_number(a, 1.0) and is_number(b, 0.0):
            return self.out
        scale = self._inverse_determinant(a, b)
        return combine(b * scale, self.z, -sigma(self.logsnr) * scale, self.out)

    @property
    def eps(self) -> Tensor:
        """ε̂ = (α ô − a z)/(α b − σ a)."""
        a, b = self.parameterization.row(self.logsnr)
        if is_number(a, 0.0) and is_number(b, 1.0):
            return self.out
        scale = self._inverse_determinant(a, b)
        return combine(-a * scale, self.z, alpha(self.logsnr) * scale, self.out)

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

    @validated
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
        kappa2 = self.parameterization.squared_kappa(self.logsnr)
        ratio = factor if is_number(kappa2, 1.0) else factor / kappa2
        return error * (ratio.to(error.dtype) if isinstance(ratio, Tensor) else ratio)

    def detach_mean(self) -> "Prediction":
        """The same prediction whose mean gets no gradient; the variance's head still does.

        >>> out = torch.ones(1, 1, requires_grad=True)
        >>> Prediction(out.detach(), torch.zeros(1), out, Eps()).detach_mean().out.requires_grad
        False
        """
        return self.replace(out=self.out.detach())

    def replace(self, **changes: Any) -> "Prediction":
        """The same prediction with some arguments of the constructor changed.

        >>> z = torch.ones(1, 1)
        >>> Prediction(z, torch.zeros(1), z, Eps()).replace(out=3 * z).eps
        tensor([[3.]])
        """
        return replace(self, **changes)

    def rows(self, index: Tensor) -> "Prediction":
        """The prediction for some examples of the batch.

        >>> z = torch.ones(3, 1)
        >>> Prediction(z, torch.zeros(3), z, Eps()).rows(torch.tensor([0, 2])).z.shape
        torch.Size([2, 1])
        """
        head = None if self.head is None else self.head[index]
        z, logsnr, out = self.z[index], self.logsnr[index], self.out[index]
        return self.replace(z=z, logsnr=logsnr, out=out, head=head)

    @validated
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
    """A target, a choice of Σ or a number as JSON; raises TypeError for anything else."""
    if what is None or isinstance(what, bool | int | float | str):
        return what
    if isinstance(what, tuple):
        return [_dumped(one) for one in what]
    if isinstance(what, Parameterization | ReverseVariance):
        name = f"{type(what).__module__}.{type(what).__qualname__}"
        return {"name": name, "of": {word: _dumped(value) for word, value in vars(what).items()}}
    name = type(what).__name__
    raise TypeError(
        f"a Prediction is saved with targets and variances made of numbers, not {name}"
    )


def _loaded(what: Any) -> Any:
    """The inverse of `_dumped`, from the classes that are imported already."""
    if isinstance(what, list):
        return tuple(_loaded(one) for one in what)
    if not isinstance(what, dict):
        return what
    classes = _subclasses(Parameterization, ReverseVariance)
    known, name = {f"{one.__module__}.{one.__qualname__}": one for one in classes}, what["name"]
    if name not in known:
        raise ValueError(f"a saved Prediction holds the class {name}: import its module first")
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


__all__ = ["Prediction"]

"""Random masks to train with: which dimensions of an example are modelled, given, or absent.

A mask is a function of one example and a generator of the CPU. `mask(x, generator)` returns a bool
tensor that broadcasts over x, True where it is modelled; the rest is given. Or it returns a pair
of them: what is modelled, and what is absent. A function of your own is one too:

    def bottom(x, generator):
        rows = torch.arange(x.shape[-2])[:, None]
        return rows >= torch.randint(x.shape[-2], (), generator=generator)

    def missing(x, generator):  # of data with NaN for missing values: nothing is given
        return ~x.isnan(), x.isnan()

Dimensions are those of one example, without the batch; −1 is the last one.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._inputs import broadcasts
from vdiff._validate import Count, Given, Number, Whole, require, validated
from vdiff.errors import InvalidType, shown
from vdiff.times import generator_of


def _sampler(value: Any, argument: str, given: Given) -> Any:
    """A function of (x, generator), and no class or tensor."""
    if not callable(value) or isinstance(value, type):
        hint = f"an instance: {value.__name__}()" if isinstance(value, type) else "RandomHalf()"
        if isinstance(value, Tensor):
            hint = "a tensor is the mask of a loss; lambda x, generator: mask is the same for all"
        raise InvalidType(argument, "be a function of (x, generator)", shown(value), hint)
    try:
        inspect.signature(value).bind(None, None)
    except TypeError as error:
        hint = "lambda x, generator: x > 0"
        raise InvalidType(argument, "take (x, generator)", str(error), hint) from None
    except ValueError:  # some builtins have no signature
        pass
    return value


def _whole(values: Sequence[int], argument: str) -> tuple[int, ...]:
    """Dimensions as a tuple of whole numbers, at least one."""
    hint = "(-2, -1) are the height and width of an image, (-1,) is the last dimension alone"
    if not isinstance(values, list | tuple):
        raise InvalidType(argument, "be a tuple of dimensions", shown(values), hint)
    return tuple(Whole(at_least=-99)(dim, argument, {}) for dim in values)


Drawn = Tensor | tuple[Tensor, Tensor]  # what is modelled; with it, what is absent
MaskSampler = Annotated[Callable[[Tensor, torch.Generator], Drawn], _sampler]


@dataclass(frozen=True)
class NothingGiven:
    """All dimensions are modelled: the loss is of the whole example.

    >>> bool(NothingGiven()(torch.zeros(1, 8, 8), torch.Generator()).all())
    True
    """

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.ones(x.shape, dtype=torch.bool)


@dataclass(frozen=True)
class RandomHalf:
    """The first or the second half along one of `dims` is modelled; the other is given. Each of
    the 2 · len(dims) halves is equally likely. Of an odd size, the second half is the longer one.

    >>> RandomHalf(dims=(-1,))(torch.zeros(2, 4), torch.Generator().manual_seed(0))
    tensor([[ True,  True, False, False],
            [ True,  True, False, False]])
    """

    dims: Sequence[int] = (-2, -1)

    @validated
    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", _whole(self.dims, "dims"))
        require(len(self.dims) > 0, "dims", "hold at least one", "none")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        dims = [_within(dim, x, self) for dim in self.dims]
        which = int(torch.randint(2 * len(dims), (), generator=generator))
        dim, first = dims[which // 2], which % 2 == 0
        size = x.shape[dim]
        inside = (torch.arange(size) < size // 2) == first
        return _along(inside, dim, x).expand(x.shape)


@dataclass(frozen=True)
class RandomBox:
    """A box over `dims` is modelled, what surrounds it is given. With `outside`, the box is given.

    Its size along a dimension of size n is uniform on 1 … n, and its place uniform where it fits.

    >>> mask = RandomBox()(torch.zeros(1, 8, 8), torch.Generator().manual_seed(0))
    >>> mask.shape, bool(mask.any())
    (torch.Size([1, 8, 8]), True)
    """

    dims: Sequence[int] = (-2, -1)
    outside: bool = False

    @validated
    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", _whole(self.dims, "dims"))
        require(len(self.dims) > 0, "dims", "hold at least one", "none")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        box = torch.ones(x.shape, dtype=torch.bool)
        for dim in self.dims:
            n = x.shape[_within(dim, x, self)]
            size = 1 + int(torch.randint(n, (), generator=generator))
            first = int(torch.randint(n - size + 1, (), generator=generator))
            place = torch.arange(n)
            box = box & _along((place >= first) & (place < first + size), dim, x)
        return ~box if self.outside else box


@dataclass(frozen=True)
class Bernoulli:
    """Each dimension is modelled with this probability, independently. Along the `shared`
    dimensions one draw decides: −3 for the channels of a pixel in (channels, height, width).

    An example with nothing modelled has the loss 0.

    >>> mask = Bernoulli(0.5, shared=(0,))(torch.zeros(3, 4), torch.Generator().manual_seed(0))
    >>> torch.equal(mask[0], mask[2])
    True
    """

    probability: float = 0.5
    shared: Sequence[int] = ()

    @validated
    def __post_init__(self) -> None:
        probability = Number(at_least=0.0, at_most=1.0)(self.probability, "probability", {})
        object.__setattr__(self, "probability", probability)
        object.__setattr__(self, "shared", _whole(self.shared, "shared"))

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        shape = list(x.shape)
        for dim in self.shared:
            shape[_within(dim, x, self, "shared")] = 1
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (u < self.probability).expand(x.shape)


@dataclass(frozen=True)
class Absent:
    """What a mask does not model is absent instead of given: the loss is of −log p(x_modelled).

    >>> mask, absent = Absent(RandomHalf())(torch.zeros(4, 4), torch.Generator().manual_seed(0))
    >>> torch.equal(absent, ~mask)
    True
    """

    mask: MaskSampler

    @validated
    def __post_init__(self) -> None:
        _sampler(self.mask, "mask", {})

    def __call__(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mask, absent = _both(self.mask(x, generator), x)
        return mask, absent | ~mask


@dataclass(frozen=True)
class Mixture:
    """One of several masks, drawn for each example with probabilities in proportion to `weights`;
    equal ones by default.

    >>> Mixture([NothingGiven(), RandomHalf()], weights=[1, 3])
    Mixture(masks=(NothingGiven(), RandomHalf(dims=(-2, -1))), weights=(1.0, 3.0))
    """

    masks: Sequence[MaskSampler]
    weights: Sequence[float] | None = None

    @validated
    def __post_init__(self) -> None:
        if not isinstance(self.masks, list | tuple):
            hint = "Mixture([NothingGiven(), RandomHalf()])"
            raise InvalidType("masks", "be a list of masks", shown(self.masks), hint)
        masks = tuple(_sampler(mask, "masks", {}) for mask in self.masks)
        weights = (1.0,) * len(masks) if self.weights is None else tuple(map(float, self.weights))
        require(len(masks) > 0, "masks", "hold at least one", "none")
        what = f"be one number for each of {len(masks)} masks, at least 0, not all 0"
        fits = len(weights) == len(masks) and min(weights) >= 0 and 0 < sum(weights) < float("inf")
        require(fits, "weights", what, weights)
        object.__setattr__(self, "masks", masks)
        object.__setattr__(self, "weights", weights)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Drawn:
        weights = torch.tensor(self.weights, dtype=torch.float64)
        which = int(torch.multinomial(weights, 1, generator=generator))
        drawn: Drawn = self.masks[which](x, generator)
        return drawn


@validated
def masks_of_step(
    mask: MaskSampler, x: Tensor, *, seed: int, step: int, index: int = 0, count: Count = 1
) -> tuple[Tensor, Tensor | None]:
    """The masks of one share of a training step, for a loop of your own.

    Each is a pure function of (seed, step, slot), as the noise of `vdiff.times.draws_of_step`, so
    a run resumes with the same masks, also on another number of ranks. They are drawn on the CPU,
    so that they are the same on every device.

    Args:
        mask: a function of (x, generator) for one example.
        x: (batch, …) the examples of this share, with the slots index, index + count, ….

    Returns:
        `mask` and `absent` for `Objective(…)(x, mask=mask, absent=absent)` and the other verbs:
        bool, of the shape of x; `absent` is None where nothing is.

    Raises:
        TypeError, ValueError: if a mask is not a bool tensor that broadcasts over an example.

    >>> x = torch.zeros(4, 1, 8, 8)
    >>> whole, _ = masks_of_step(RandomHalf(), x, seed=0, step=7)
    >>> share, _ = masks_of_step(RandomHalf(), x[1::2], seed=0, step=7, index=1, count=2)
    >>> torch.equal(share, whole[1::2])
    True
    """
    slots = range(index, len(x) * count, count)
    generators = (generator_of(seed, step, f"mask {slot}") for slot in slots)
    drawn = [_both(mask(row, g), row) for row, g in zip(x, generators, strict=True)]
    masks, absent = (torch.stack(each) for each in zip(*drawn, strict=True))
    some = absent.to(x.device, non_blocking=True) if absent.any() else None
    return masks.to(x.device, non_blocking=True), some


def _both(drawn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is modelled and what is absent, of the shape of x."""
    if isinstance(drawn, tuple) and len(drawn) == 2:
        mask, absent = (_checked(each, x) for each in drawn)
        return mask, absent
    mask = _checked(drawn, x)
    return mask, torch.zeros_like(mask)


def _checked(drawn: Any, x: Tensor) -> Tensor:
    """What a mask returned, if it fits an example."""
    what = f"return a bool tensor that broadcasts over an example, {tuple(x.shape)}"
    if not isinstance(drawn, Tensor) or drawn.dtype != torch.bool:
        got = drawn.dtype if isinstance(drawn, Tensor) else type(drawn).__name__
        hint = "torch.from_numpy(array)" if type(drawn).__module__ == "numpy" else ""
        hint = ".bool(): True where it is modelled" if isinstance(drawn, Tensor) else hint
        raise InvalidType("mask", what, got, hint)
    require(broadcasts(drawn, x), "mask", what, tuple(drawn.shape))
    return drawn.cpu().expand(x.shape)


def name_of(mask: Callable[..., Any]) -> str:
    """A mask in words, for a record: its settings, or the name of a function."""
    made = not hasattr(mask, "__qualname__")  # an object, not a function
    named = type(mask) if made else mask
    name = f"{named.__module__}.{named.__qualname__}"
    if not made:
        return name
    if " at 0x" not in repr(mask):  # no address
        return repr(mask)
    values: list[Any] = []
    settings = getattr(mask, "__dict__", {})
    if isinstance(mask, functools.partial):
        values, settings = [mask.func, *mask.args], mask.keywords
    texts = [_words(v) for v in values] + [f"{word}={_words(v)}" for word, v in settings.items()]
    known = [text for text in texts if " at 0x" not in text]
    return f"{name}({', '.join(known)})" if known else name


def _words(value: object) -> str:
    """A setting of a mask for a record."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_words, value))})"
    return name_of(value) if callable(value) else repr(value)


def _within(dim: int, x: Tensor, mask: object, name: str = "dims") -> int:
    """A dimension of an example, counted from its first."""
    what = f"name dimensions of an example, {tuple(x.shape)}"
    hint = f"without the batch; {type(mask).__name__}({name}=(-1,)) is along the last one"
    require(-x.ndim <= dim < x.ndim, name, what, f"{dim} of {mask!r}", hint)
    return dim % x.ndim


def _along(inside: Tensor, dim: int, x: Tensor) -> Tensor:
    """A vector along one dimension of x."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return inside.view(shape)


__all__ = [
    "Absent", "Bernoulli", "MaskSampler", "Mixture", "NothingGiven", "RandomBox", "RandomHalf",
    "masks_of_step",
]  # fmt: skip

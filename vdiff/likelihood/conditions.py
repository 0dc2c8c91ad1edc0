"""Conditions, by which a model is given more than z and λ: one for each image, or one for all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from vdiff.errors import InvalidType, InvalidValue


@dataclass(frozen=True)
class Shared:
    """A condition that all images share, whatever its size: the model is given `value` as it is.

    A tensor, an array or a list whose first size is the number of images counts as one row for
    each image. Wrap it where that is not meant: `condition={"context": Shared(context)}`.

    >>> of_rows({"context": Shared(["a", "b"]), "label": [5, 6]}, torch.tensor([1]), 2)
    {'context': ['a', 'b'], 'label': [6]}
    """

    value: Any


def of_rows(condition: Mapping[str, Any], rows: Tensor, images: int) -> dict[str, Any]:
    """The conditions of the images `rows`. What has no row for each image is passed on as it is.

    Tensors, arrays and sequences have a row for each image where their first size is the number of
    images. An object with `__array__` counts as an array. Mappings, and sequences of another size,
    are searched for such parts.

    >>> of_rows({"label": torch.tensor([5, 6, 7]), "scale": 2.0}, torch.tensor([2, 0]), 3)
    {'label': tensor([7, 5]), 'scale': 2.0}
    >>> of_rows({"added": {"text": ["a", "b", "c"]}}, torch.tensor([2, 2]), 3)
    {'added': {'text': ['c', 'c']}}
    """

    def taken(part: Any) -> Any:
        if isinstance(part, Shared):
            return part.value
        return _taken(part, rows) if _has_rows(part, images) else part

    found: dict[str, Any] = _each(taken, dict(condition), images)
    return found


def of_kept(condition: Mapping[str, Any], kept: Tensor, images: int) -> dict[str, Any]:
    """The conditions where only the images `kept` remain. What all of them shared stays shared.

    >>> of_kept({"label": [5, 6, 7], "context": ["a", "b"]}, torch.tensor([2, 0]), 3)
    {'label': [7, 5], 'context': Shared(value=['a', 'b'])}
    """

    def taken(part: Any) -> Any:
        if isinstance(part, Shared):
            return part
        if _has_rows(part, images):
            return _taken(part, kept)
        if isinstance(part, Sequence) and _holds_rows(part, images):
            return _each(taken, part, images)
        return Shared(part) if _has_rows(part, len(kept)) else part

    found: dict[str, Any] = _each(taken, dict(condition), images, len(kept))
    return found


def conditions_by_row(x: Tensor, condition: Mapping[str, Any] | None) -> None:
    """A rule: it is clear which image each part of a condition belongs to.

    >>> conditions_by_row(torch.zeros(2, 1), {"label": {5, 6}})
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidType: argument 'label' must be a tensor, an array or a list of 2 rows, ...
    """
    images = len(x)
    for word, given in (condition or {}).items():
        parts: list[Any] = []
        _each(parts.append, given, images)
        shared = f"Shared({word}) where all images share it"
        for part in parts:
            known, kind = _has_rows(part, images), type(part).__name__
            if isinstance(part, Iterator) or (not known and _length(part) == images):
                what = f"be a tensor, an array or a list of {images} rows, one for each image"
                raise InvalidType(word, what, kind, shared)
            if images > 1 and not known and (field := _field_of_rows(part, images)):
                what = "be tensors, arrays, lists or mappings of them, which are cut into rows"
                came = f"a {kind} whose {field!r} has {images} rows"
                raise InvalidType(word, what, came, f"vars({word}); {shared}")
            if images > 1 and known and isinstance(part, Sequence) and _holds_rows(part, images):
                what = "have either one entry or one row for each image"
                came = f"a {kind} of {images} entries that have {images} rows themselves"
                hint = f"torch.stack({word}) where each entry belongs to an image; {shared}"
                raise InvalidValue(word, what, came, hint)


def conditions_by_image(data: Tensor, condition: Mapping[str, Any] | None) -> None:
    """A rule: `conditions_by_row` of `data`."""
    conditions_by_row(data, condition)


def _each(function: Callable[[Any], Any], value: Any, *sizes: int) -> Any:
    """Apply `function` to each part that has as many rows as one of `sizes`, and to each leaf."""

    def whole(part: Any) -> bool:
        return isinstance(part, Shared) or any(_has_rows(part, size) for size in sizes)

    def inner(part: Any) -> Any:  # a mapping that torch does not know
        return _each(function, dict(part), *sizes) if isinstance(part, Mapping) else function(part)

    return tree_map(inner, value, is_leaf=whole)


def _has_rows(part: Any, images: int) -> bool:
    """Whether this has a row for each image."""
    if isinstance(part, Tensor) or hasattr(part, "__array__"):
        return tuple(part.shape if isinstance(part, Tensor) else np.shape(part))[:1] == (images,)
    if not isinstance(part, Sequence) or isinstance(part, str | bytes) or hasattr(part, "_fields"):
        return False
    return len(part) == images and not (images == 1 and _holds_rows(part, 1))


def _holds_rows(part: Any, images: int) -> bool:
    leaves = (leaf for leaf in tree_leaves(part) if not isinstance(leaf, Sequence))
    return any(_has_rows(leaf, images) for leaf in leaves)


def _taken(part: Any, rows: Tensor) -> Any:
    if isinstance(part, Tensor):
        return part[rows.to(part.device)]
    if hasattr(part, "__array__"):
        return np.asarray(part)[rows.cpu().numpy()]
    chosen = [part[i] for i in rows.tolist()]
    return tuple(chosen) if isinstance(part, tuple) else chosen


def _field_of_rows(part: Any, images: int) -> str | None:
    """The first attribute of an object, such as a dataclass, that has a row for each image."""
    if callable(part) or isinstance(part, Tensor | Shared):
        return None
    fields = getattr(part, "__dict__", {})
    return next((word for word, one in fields.items() if _has_rows(one, images)), None)


def _length(part: Any) -> int | None:
    """The number of entries, or None where they cannot be one for each image."""
    if isinstance(part, str | bytes | Mapping | nn.Module | Shared):
        return None
    try:
        return len(part)
    except TypeError:
        return None


__all__ = ["Shared", "of_kept", "of_rows"]

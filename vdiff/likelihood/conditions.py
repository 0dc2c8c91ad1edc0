"""Conditions, which a model gets beside z and λ: one for each image, or one for all images."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from vdiff.errors import InvalidType, InvalidValue
from vdiff.likelihood.digest import data_hash, digest

FEW = 8  # the longest list that a protocol shows as it is
DEEP = 3  # how many dataclasses within each other are searched


@dataclass(frozen=True)
class Shared:
    """A condition that all images share: the model gets `value` as it is.

    A tensor, an array or a list whose first size is the number of images counts as one row for
    each image. Wrap it where that is not meant: `condition={"context": Shared(context)}`.

    >>> select_rows({"context": Shared(["a", "b"]), "label": [5, 6]}, torch.tensor([1]), 2)
    {'context': ['a', 'b'], 'label': [6]}
    """

    value: Any


def select_rows(condition: Mapping[str, Any], rows: Tensor, images: int) -> dict[str, Any]:
    """The conditions of the images `rows`. Values without a row for each image stay as they are.

    Tensors, arrays and sequences have a row for each image where their first size is the number of
    images. An object with `__array__` counts as an array. Mappings, and sequences of another size,
    are searched for such parts.

    >>> select_rows({"label": torch.tensor([5, 6, 7]), "scale": 2.0}, torch.tensor([2, 0]), 3)
    {'label': tensor([7, 5]), 'scale': 2.0}
    >>> select_rows({"added": {"text": ["a", "b", "c"]}}, torch.tensor([2, 2]), 3)
    {'added': {'text': ['c', 'c']}}
    """

    def select(part: Any) -> Any:
        if isinstance(part, Shared):
            return part.value
        return _index(part, rows) if _has_rows(part, images) else part

    selected: dict[str, Any] = _map_parts(select, dict(condition), images)
    return selected


def condition_digest(condition: Mapping[str, object]) -> dict[str, object]:
    """Conditions as plain data. Tensors, arrays and long lists become a hash.

    >>> condition_digest({"scale": 2.0, "text": "a word"})
    {'scale': 2.0, 'text': 'a word'}
    """
    return {str(word): _value_digest(value) for word, value in condition.items()}


def _value_digest(value: object) -> object:
    if isinstance(value, Tensor):
        return data_hash(value)
    if isinstance(value, Mapping):
        return condition_digest(value)
    if isinstance(value, Shared):
        return {"shared": _value_digest(value.value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        entries = [_value_digest(entry) for entry in value]
        return entries if len(entries) <= FEW else digest(f"{entries}".encode())
    if hasattr(value, "__array__") and np.ndim(value):
        array = np.asarray(value)
        return digest(f"{array.dtype} {array.tolist()}".encode())
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def conditions_by_row(x: Tensor, condition: Mapping[str, Any] | None) -> None:
    """Rule: it is clear which image each part of a condition belongs to.

    >>> conditions_by_row(torch.zeros(2, 1), {"label": {5, 6}})
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidType: argument 'label' must be a tensor, an array or a list of 2 rows, ...
    """
    for word, given in (condition or {}).items():
        _map_parts(functools.partial(_check_part, word, len(x)), given, len(x))


def _check_part(word: str, images: int, part: Any) -> None:
    if isinstance(part, PackedSequence):
        hint = f"pad_packed_sequence({word}, batch_first=True) gives a tensor and the lengths"
        raise InvalidType(word, "be padded to a tensor", "PackedSequence", hint)
    if isinstance(part, Tensor) and (part.is_nested or part.layout != torch.strided):
        hint = f"{word}.to_dense(); of a nested tensor, {word}.to_padded_tensor(0.0)"
        raise InvalidType(word, "be a tensor whose rows can be indexed", part.layout, hint)
    by_row, kind = _has_rows(part, images), type(part).__name__
    shared = f"Shared({word}) where all images share it"
    whole = isinstance(part, Iterator) or (not by_row and _length(part) == images)
    searched = images > 1 and not by_row and not whole
    field = _field_of_rows(part, images) if searched else None
    if whole or field:
        what = f"be a tensor, an array or a list of {images} rows, one for each image"
        came = f"a {kind} whose {field!r} has {images} rows" if field else kind
        raise InvalidType(word, what, came, f"vars({word}); {shared}" if field else shared)
    if images > 1 and by_row and isinstance(part, Sequence) and _holds_rows(part, images):
        came = f"a {kind} of {images} entries that have {images} rows themselves"
        hint = f"torch.stack({word}) where each entry belongs to an image; {shared}"
        raise InvalidValue(word, "have one entry or one row for each image", came, hint)


def conditions_by_image(data: Tensor, condition: Mapping[str, Any] | None) -> None:
    """Rule: `conditions_by_row` of `data`."""
    conditions_by_row(data, condition)


def _map_parts(function: Callable[[Any], Any], value: Any, images: int) -> Any:
    """Apply `function` to each part that has a row for each image, and to each leaf."""

    def is_part(part: Any) -> bool:
        return isinstance(part, Shared | PackedSequence) or _has_rows(part, images)

    def apply(part: Any) -> Any:  # torch's tree_map takes an unknown kind of mapping for a leaf
        if isinstance(part, Mapping):
            return _map_parts(function, dict(part), images)
        return function(part)

    return tree_map(apply, value, is_leaf=is_part)


def _has_rows(part: Any, images: int) -> bool:
    """Whether this has a row for each image."""
    if isinstance(part, Mapping):
        return False
    if isinstance(part, Tensor) or hasattr(part, "__array__"):
        return tuple(part.shape if isinstance(part, Tensor) else np.shape(part))[:1] == (images,)
    if not isinstance(part, Sequence) or isinstance(part, str | bytes) or hasattr(part, "_fields"):
        return False
    return len(part) == images and not (images == 1 and _holds_rows(part, 1))


def _holds_rows(part: Any, images: int) -> bool:
    leaves = (leaf for leaf in tree_leaves(part) if not isinstance(leaf, Sequence))
    return any(_has_rows(leaf, images) for leaf in leaves)


def _index(part: Any, rows: Tensor) -> Any:
    if isinstance(part, Tensor):
        return part[rows.to(part.device)]
    if hasattr(part, "__array__"):
        return np.asarray(part)[rows.cpu().numpy()]
    chosen = [part[i] for i in rows.tolist()]
    return tuple(chosen) if isinstance(part, tuple) else chosen


def _field_of_rows(part: Any, images: int, depth: int = DEEP) -> str | None:
    """The first attribute of an object, such as a dataclass, with a part that has a row for each
    image."""
    if callable(part) or isinstance(part, Tensor | Shared):
        return None
    slots = (vars(kind).get("__slots__", ()) for kind in type(part).__mro__)
    names: list[str] = [n for one in slots for n in ([one] if isinstance(one, str) else one)]

    def by_row(value: Any) -> bool:
        inner = depth > 0 and is_dataclass(value)
        field = _field_of_rows(value, images, depth - 1) if inner else None
        return field is not None or _has_rows(value, images)

    for name in [*vars(part), *names] if hasattr(part, "__dict__") else names:
        leaves: list[Any] = []
        _map_parts(leaves.append, getattr(part, name, None), images)
        if any(map(by_row, leaves)):
            return name
    return None


def _length(part: Any) -> int | None:
    """The number of entries, or None where they cannot be one for each image."""
    if isinstance(part, str | bytes | Mapping | nn.Module | Shared):
        return None
    try:
        return len(part)
    except TypeError:
        return None

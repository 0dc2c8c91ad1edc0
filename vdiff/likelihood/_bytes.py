"""Bytes as counted in the texts: what bits per byte are per."""

from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._diffusion import diffusion_of
from vdiff._partial import Partial
from vdiff._validate import Given, Whole, require
from vdiff.errors import InvalidType, InvalidValue, shown
from vdiff.likelihood.digest import data_hash

HINT = "[len(text.encode()) for text in texts]"


def _bytes(value: Any, argument: str, given: Given) -> Any:
    """An int in all, or a whole number for each text, as a tensor (texts,)."""
    if isinstance(value, int):
        return Whole(hint=HINT)(value, argument, given)
    listed = value.tolist() if hasattr(value, "__array__") else value
    if not isinstance(listed, list | tuple) or not all(_whole(v) for v in listed):
        what = "be a whole number for each text, or one for all of them"
        raise InvalidType(argument, what, shown(value), HINT)
    texts = len(given["data"])
    same = f"have a number for each of {texts} texts"
    require(len(listed) == texts, argument, same, len(listed), HINT)
    return torch.tensor(listed, dtype=torch.int64, device="cpu")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Bytes = Annotated[int | Tensor, _bytes]


def bytes_of_texts(
    model: Any, data: Tensor, bytes: Any, mask: Tensor | None, absent: Tensor | None
) -> None:
    """Rule: bytes are those of tokens, and positive wherever a token is modelled."""
    if bytes is None:
        return
    process = diffusion_of(model)
    require(not process.continuous, "bytes", "be left out for data that is not tokens", bytes)
    if isinstance(bytes, Tensor):
        bad = bytes < 1
        modelled = Partial.of(data, mask, absent).modelled
        if modelled is not None:  # a text without a modelled token counts nothing
            bad = bad & modelled.expand_as(data).flatten(1).any(1).cpu()
        if bad.any():
            text = int(bad.nonzero()[0])
            got = f"{int(bytes[text])} for text {text}"
            raise InvalidValue("bytes", "be at least 1 for each text", got, HINT)


def in_texts(bytes: int | Tensor | None, counted: Tensor | None) -> int | Tensor | None:
    """The bytes of each text, 0 where no token of it is modelled."""
    if not isinstance(bytes, Tensor) or counted is None:
        return bytes
    return torch.zeros_like(bytes).index_copy(0, counted.cpu(), bytes[counted.cpu()])


def count_of(bytes: int | Tensor) -> int:
    """The bytes of all texts."""
    return int(torch.as_tensor(bytes).sum())


def protocol_of_bytes(bytes: int | Tensor | None) -> dict[str, object]:
    """The number of bytes, and a hash of those of each text."""
    if bytes is None:
        return {}
    each = {"bytes by text": data_hash(bytes)} if isinstance(bytes, Tensor) else {}
    return {"bytes": count_of(bytes), **each}


__all__ = ["Bytes", "bytes_of_texts", "count_of", "in_texts", "protocol_of_bytes"]

"""What an encoder and a decoder must have in common, as plain data, and images as both read
them."""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from vdiff._arguments import Model, denoisers, original
from vdiff._validate import Given, Instance, require
from vdiff._version import __version__
from vdiff.codec.code import Code
from vdiff.codec.container import DTYPES, Identity
from vdiff.decoder import Decoder, Levels
from vdiff.errors import InvalidType
from vdiff.likelihood.conditions import condition_digest
from vdiff.likelihood.digest import digest, weights_digest
from vdiff.sampling.guidance import Wrapped

CHUNK = 1 << 22  # values that are read at a time
PADDING = 0x76646966  # the key of the first words of every stack
_LEVELS = "a file holds whole numbers: for instance Categorical(levels=256)"


def with_levels(value: Any, argument: str, given: Given) -> Levels:
    """A decoder of levels."""
    Instance((Decoder,))(value, argument, given)
    decoder: Levels = Instance((Levels,), _LEVELS)(value, argument, given)
    return decoder


def images(value: Any, argument: str, given: Given) -> Any:
    """A tensor or an array (n, …) of whole numbers, at least one."""
    if not isinstance(value, Tensor | np.ndarray):
        what, hint = "be a tensor or a NumPy array", "np.load(file, mmap_mode='r') reads few rows"
        raise InvalidType(argument, what, type(value).__name__, hint)
    shape = tuple(value.shape)
    full = len(shape) > 1 and 0 not in shape
    require(full, argument, "have shape (n, …) with at least one example", shape)
    kind, hint = dtype_of(value), "those of a density are not finitely many"
    if kind not in DTYPES:
        raise InvalidType(argument, "be whole numbers", kind, hint)
    return value


LevelDecoder = Annotated[Levels, with_levels]
Images = Annotated[Tensor | np.ndarray, images]


def dtype_of(data: Tensor | np.ndarray) -> str:
    """The name of a dtype, the same for a tensor and an array."""
    if isinstance(data, Tensor):
        return str(data.dtype).removeprefix("torch.")
    return data.dtype.newbyteorder("=").name


def rows_of(data: Tensor | np.ndarray, first: int, last: int) -> Tensor:
    """Some images as a tensor. Only these are read."""
    part = data[first:last]
    if isinstance(part, Tensor):
        return part.cpu()
    kind = part.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(part, dtype=kind, order="C"))


class DataHash:
    """The hash of images that come in parts, in order."""

    def __init__(self, shape: list[int], dtype: str) -> None:
        self._hash = hashlib.sha256(f"{dtype} {shape}".encode())

    def update(self, part: Tensor) -> None:
        """Add the next images."""
        values = part.contiguous().flatten().view(torch.uint8).numpy()
        self._hash.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)

    def __str__(self) -> str:
        return self._hash.hexdigest()[:16]


def in_chunks(data: Tensor | np.ndarray) -> Iterator[Tensor]:
    """All images in order, some at a time."""
    step = max(1, CHUNK // int(np.prod(data.shape[1:])))
    for first in range(0, len(data), step):
        yield rows_of(data, first, first + step)


def identity(model: Model, code: Code, condition: Mapping[str, Any] | None) -> Identity:
    """Hashes of all that the code depends on, and the software."""
    parts = [(repr(d.parameterization), repr(d.variance)) for d in denoisers(model)]
    text = f"{type(original(model)).__name__} {parts}"
    settings = _settings_of(model)
    facts: Identity = {
        "weights": " ".join(weights_digest(model)) or "none",
        "model": digest(text.encode()),
        **({"settings": settings} if settings else {}),
        **code.identity(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "device": _name_of(code.device),
        "threads": torch.get_num_threads(),
        "vdiff": __version__,
        **{name: version(name) for name in ("torch", "numpy", "constriction")},
        "platform": f"{platform.system()} {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}",
    }
    return facts | ({"condition": condition_digest(condition)} if condition else {})


def _settings_of(model: Model) -> list[Any]:
    """Classes and settings of the wrappers in a model: a temperature, a scale of guidance."""
    inner = original(model)
    modules = inner.modules() if isinstance(inner, nn.Module) else ()
    return [
        {"class": type(module).__name__, **condition_digest(_settings(module))}
        for module in modules
        if isinstance(module, Wrapped)
    ]


def _settings(module: nn.Module) -> dict[str, Any]:
    own = vars(module).items()
    return {word: v for word, v in own if word != "training" and not word.startswith("_")}


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def padding(first: int, count: int) -> np.ndarray:
    """Words number first, first + 1, … of those that a stack has before any image, from the
    bottom to the top: the later words lie below."""
    raw = np.random.Philox(key=PADDING).random_raw((first + count) // 2 + 1).view(np.uint32)
    words = raw[: first + count].copy()
    words[:1] |= 1  # the top of a stack is not 0
    return words[first:][::-1]

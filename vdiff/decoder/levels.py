"""Decoders of integer data: the levels and their encoding."""

import abc
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import batch, cheap_to_read, dense, is_integer
from vdiff._precision import as_float64, at_least_float32, keep_dtype, to_float64
from vdiff._validate import Given, Whole, require, validated
from vdiff.decoder.base import Decoder, by_dim
from vdiff.errors import InvalidType, validation_enabled
from vdiff.gaussian import alpha, per_example, sum_dims
from vdiff.prediction import Prediction

SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


Level = Annotated[int, Whole(2, "256 for bytes, 17 for scikit-learn's digits")]


def signed(levels: Tensor) -> Tensor:
    """Levels in a dtype with all operations: torch has few for uint16, uint32 and uint64.

    >>> signed(torch.tensor([3], dtype=torch.uint16)).aminmax()[0]
    tensor(3, dtype=torch.int32)
    """
    return levels.to(SIGNED.get(levels.dtype, levels.dtype))


def integers(value: Tensor, argument: str, given: Given) -> Tensor:
    """A dense (batch, …) tensor of integers. Reads no value."""
    dense(value, argument, given)
    if not is_integer(value):
        hint = "binary data has two levels: data.long()"
        if value.dtype != torch.bool:
            hint = (
                f"pixels in [0, 1] are (x * {_levels(given) - 1}).round().long(); dequantised or "
            )
            hint += "scaled data needs a Gaussian decoder, and its bits/dim are those of a density"
        levels = f"be integer levels, 0 to {_levels(given) - 1}"
        raise InvalidType(argument, levels, value.dtype, hint)
    batch(value, argument, given)
    return value


def in_range(value: Tensor, argument: str, given: Given) -> Tensor:
    """Levels in 0 … levels − 1, where they are cheap to read."""
    if cheap_to_read(value):
        (low, high), levels = (int(v) for v in signed(value).aminmax()), _levels(given)
        hint = f"values are not on the {levels}-level grid"
        if levels <= high < 256:
            hint += "; bytes have levels=256"
        got = f"values from {low} to {high}"
        require(0 <= low <= high < levels, argument, f"lie in 0 … {levels - 1}", got, hint)
    return value


def _levels(given: Given) -> int:
    return int(given["levels"] if "levels" in given else given["self"].levels)


Integers = Annotated[Tensor, integers]
LevelData = Annotated[Tensor, integers, in_range]


class Levels(Decoder):
    """A decoder of integer data, 0 … levels − 1.

    The levels lie at x_k = 2(k + ½)/levels − 1, bins filling [−1, 1] (VDM's convention), or, if
    `levels_at_ends`, at x_k = 2k/(levels − 1) − 1 with the end levels on ±1 (DDPM's).

    >>> Categorical(2).level_values, Categorical(2, levels_at_ends=True).level_values
    (tensor([-0.5000,  0.5000], dtype=torch.float64), tensor([-1.,  1.], dtype=torch.float64))
    """

    factorises = True

    @validated
    def __init__(self, levels: Level, *, levels_at_ends: bool) -> None:
        super().__init__()
        self.levels, self.levels_at_ends = levels, levels_at_ends
        self.spacing = 2.0 / (levels - 1 if levels_at_ends else levels)
        self._tables: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}

    @abc.abstractmethod
    def _log_probs(self, mean: Tensor, prediction: Prediction) -> Tensor:
        """log p(k | mean) of every level, (batch, …, levels)."""

    @abc.abstractmethod
    def _table(self, logsnr: Tensor) -> Float[Tensor, "*dims levels"]:
        """E[−log p(k | z₀)] of every level."""

    @property
    def level_values(self) -> Tensor:
        """x_k for every level, in float64."""
        return self._value(torch.arange(self.levels, dtype=torch.float64, device="cpu"))

    def _value(self, level: Tensor) -> Tensor:
        return level * self.spacing + (-1.0 if self.levels_at_ends else -1.0 + 0.5 * self.spacing)

    @validated
    def encode(self, data: LevelData) -> Tensor:
        """Levels as x in [−1, 1], in the default dtype or float32, whichever is wider.

        Raises if data is not integer or not within 0 … levels − 1. Values are read on a CPU, and
        on other devices where no gradient is recorded.

        >>> Categorical(4).encode(torch.tensor([[0, 3]]))
        tensor([[-0.7500,  0.7500]])
        """
        return self._value(data.to(at_least_float32(torch.get_default_dtype())))

    @validated
    def decode(self, x: Tensor) -> Tensor:
        """The nearest level of each value.

        >>> Categorical(4).decode(torch.tensor([[-0.7, 3.0]]))
        tensor([[0, 3]])
        """
        x = x.to(at_least_float32(x.dtype))
        level = (x - self._value(torch.zeros_like(x[:1]))) / self.spacing
        return level.round().clamp(0, self.levels - 1).long()

    @validated
    def table(self, logsnr: Tensor | float) -> Float[Tensor, "*dims levels"]:
        """E[−log p(k | z₀)] for every level k, in nats and float64.

        >>> Categorical(2).table(0.0)
        tensor([0.5817, 0.5817], dtype=torch.float64)
        """
        device = logsnr.device if isinstance(logsnr, Tensor) else torch.device("cpu")
        return self._table(as_float64(logsnr, device))

    @validated
    def expected_nll(
        self, data: Integers, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        level = by_dim(logsnr, data) if isinstance(logsnr, Tensor) else logsnr
        if not isinstance(level, Tensor) or level.ndim == 0:
            return self._expected_nll(data, level, mask)
        what, hint = "be one number where it is learned", "share the learned ends"
        require(not level.requires_grad, "logsnr", what, f"a field {tuple(level.shape)}", hint)
        total = torch.zeros(len(data), dtype=level.dtype, device=data.device)
        for value in torch.unique(level).tolist():
            here = level == value if mask is None else (level == value) & mask
            total = total + self._expected_nll(data, value, here.expand(data.shape))
        return total

    def _expected_nll(self, data: Tensor, logsnr: Tensor | float, mask: Tensor | None) -> Tensor:
        if isinstance(logsnr, Tensor):
            table = self._table(to_float64(logsnr.to(data.device)))
        else:
            key = (logsnr, data.device, at_least_float32(torch.get_default_dtype()))
            if key not in self._tables:
                with torch.no_grad():
                    self._tables[key] = self._table(as_float64(logsnr, data.device)).to(key[2])
            table = self._tables[key]
        if table.ndim == 1:
            nll = F.embedding(data.long(), table[:, None])
            return sum_dims(nll, mask if mask is None else mask[..., None])
        if validation_enabled():
            dims, hint = data.shape[1:], "Categorical.fit(…, per_dim=False) is for all dimensions"
            shapes = f"have shape (levels,) or {(*dims, self.levels)}, as the data has"
            require(table.shape[:-1] == dims, "prior", shapes, tuple(table.shape), hint)
        chosen = table.expand(data.shape[0], *table.shape).gather(-1, data.long()[..., None])
        return sum_dims(chosen, mask if mask is None else mask[..., None])

    @validated
    def log_probs(self, prediction: Prediction) -> Float[Tensor, "batch *dims levels"]:
        """log p(k | z₀) of every level k in each dimension, from the prediction at z₀; nats,
        float64.

        >>> from vdiff.parameterization import X
        >>> z, x, logsnr = torch.tensor([[0.1]]), torch.tensor([[0.2]]), torch.tensor([2.0])
        >>> Categorical(2).log_probs(Prediction(z, logsnr, x, X())).exp()
        tensor([[[0.3127, 0.6873]]], dtype=torch.float64)
        """
        if self.uses_network:
            mean = self.denoised(prediction)
        else:
            mean = prediction.z / per_example(alpha(prediction.logsnr), prediction.z)
        return self._log_probs(to_float64(mean)[..., None], prediction)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Levels":
        self._tables.clear()
        module: Levels = super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return module

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._tables.clear()

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._tables.clear()  # a loaded prior has other tables
        super()._load_from_state_dict(*args, **options)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, levels_at_ends={self.levels_at_ends}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

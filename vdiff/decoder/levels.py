"""Decoders of integer data."""

import abc
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._validate import (
    Given,
    Number,
    Whole,
    batch,
    finite_values,
    require,
    tensor,
    validated,
)
from vdiff.decoder.base import Decoder, Mean, normal_nodes
from vdiff.errors import InvalidType, has_values, validation_enabled
from vdiff.gaussian import (
    alpha,
    as_float64,
    at_least_float32,
    keep_dtype,
    per_example,
    sum_dims,
    to_float64,
)
from vdiff.prediction import Prediction

PIECE = 2**22  # elements at a time, where data is counted and a table is made: 32 MiB in 8 bytes
FAINTEST = -600.0  # log-probabilities above it can be added as probabilities: none underflows
SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}

Level = Annotated[int, Whole(2, "256 for bytes, 17 for scikit-learn's digits")]
Pseudocount = Annotated[
    float,
    Number(above=0.0, hint="without one, a level that training data lacks has probability zero"),
]


def signed(levels: Tensor) -> Tensor:
    """Levels in a dtype that has all operations: torch has few for uint16, uint32 and uint64.

    >>> signed(torch.tensor([3], dtype=torch.uint16)).aminmax()[0]
    tensor(3, dtype=torch.int32)
    """
    return levels.to(SIGNED.get(levels.dtype, levels.dtype))


def integers(value: Tensor, argument: str, given: Given) -> Tensor:
    """A dense (batch, …) tensor of integers. Reads no value."""
    tensor(value, argument, given)
    if value.layout is not torch.strided:
        raise InvalidType(argument, "be dense", value.layout, "call .to_dense() first")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        hint = (
            "a discrete decoder takes levels 0, 1, 2, …; dequantised or scaled data needs a "
            "Gaussian decoder, and its bits/dim are those of a density"
        )
        if value.dtype == torch.bool:
            hint = "binary data has two levels: data.long()"
        levels = f"be integer levels, 0 to {_levels(given) - 1}"
        raise InvalidType(argument, levels, value.dtype, hint)
    batch(value, argument, given)
    return value


def in_range(value: Tensor, argument: str, given: Given) -> Tensor:
    """Levels in 0 … levels − 1. Values are read on a CPU, and elsewhere where no gradient is
    recorded."""
    if has_values(value) and (value.device.type == "cpu" or not torch.is_grad_enabled()):
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

    >>> Categorical(2).grid, Categorical(2, levels_at_ends=True).grid
    (tensor([-0.5000,  0.5000], dtype=torch.float64), tensor([-1.,  1.], dtype=torch.float64))
    """

    @validated
    def __init__(self, levels: Level, *, levels_at_ends: bool) -> None:
        super().__init__()
        self.levels, self.levels_at_ends = levels, levels_at_ends
        self.spacing = 2.0 / (levels - 1 if levels_at_ends else levels)
        self._tables: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}

    @abc.abstractmethod
    def _law(self, mean: Tensor, prediction: Prediction) -> Tensor:
        """log p(k | mean) of every level, (batch, …, levels)."""

    @abc.abstractmethod
    def _table(self, logsnr: Tensor) -> Float[Tensor, "*dims levels"]:
        """E[−log p(k | z₀)] of every level."""

    @property
    def grid(self) -> Tensor:
        """x_k for every level, in float64.

        >>> Categorical(2).grid
        tensor([-0.5000,  0.5000], dtype=torch.float64)
        """
        return self._place(torch.arange(self.levels, dtype=torch.float64, device="cpu"))

    def _place(self, level: Tensor) -> Tensor:
        return level * self.spacing + (-1.0 if self.levels_at_ends else -1.0 + 0.5 * self.spacing)

    @validated
    def encode(self, data: LevelData) -> Tensor:
        """Levels as x in [−1, 1], in the default dtype or float32, whichever is wider.

        Raises for data that is not integer or leaves 0 … levels − 1. Values are read on a CPU,
        and elsewhere where no gradient is recorded.

        >>> Categorical(4).encode(torch.tensor([[0, 3]]))
        tensor([[-0.7500,  0.7500]])
        """
        return self._place(data.to(at_least_float32(torch.get_default_dtype())))

    @validated
    def decode(self, x: Tensor) -> Tensor:
        """The nearest level of each value.

        >>> Categorical(4).decode(torch.tensor([[-0.7, 3.0]]))
        tensor([[0, 3]])
        """
        x = x.to(at_least_float32(x.dtype))
        level = (x - self._place(torch.zeros_like(x[:1]))) / self.spacing
        return level.round().clamp(0, self.levels - 1).long()

    @validated
    def table(self, logsnr: Tensor | float) -> Float[Tensor, "*dims levels"]:
        """E[−log p(k | z₀)] for every level k, in nats and float64.

        >>> Categorical(2).table(0.0)
        tensor([0.5817, 0.5817], dtype=torch.float64)
        """
        place = logsnr.device if isinstance(logsnr, Tensor) else torch.device("cpu")
        return self._table(as_float64(logsnr, place))

    @validated
    def expected_nll(self, data: Integers, logsnr: Tensor | float) -> Float[Tensor, " batch"]:
        if isinstance(logsnr, Tensor):
            table = self._table(to_float64(logsnr.to(data.device)))
        else:
            key = (logsnr, data.device, at_least_float32(torch.get_default_dtype()))
            if key not in self._tables:
                with torch.no_grad():
                    self._tables[key] = self._table(as_float64(logsnr, data.device)).to(key[2])
            table = self._tables[key]
        if table.ndim == 1:
            return sum_dims(F.embedding(data.long(), table[:, None]))
        if validation_enabled():
            dims, hint = data.shape[1:], "Categorical.fit(…, per_dim=False) is for all dimensions"
            shapes = f"have shape (levels,) or {(*dims, self.levels)}, as the data has"
            require(table.shape[:-1] == dims, "prior", shapes, tuple(table.shape), hint)
        chosen = table.expand(data.shape[0], *table.shape).gather(-1, data.long()[..., None])
        return sum_dims(chosen)

    @validated
    def law(self, prediction: Prediction) -> Float[Tensor, "batch *dims levels"]:
        """log p(k | z₀) of every level k, each dimension by itself, from the prediction at z₀;
        nats, in float64.

        >>> from vdiff.parameterization import X
        >>> z, x, logsnr = torch.tensor([[0.1]]), torch.tensor([[0.2]]), torch.tensor([2.0])
        >>> Categorical(2).law(Prediction(z, logsnr, x, X())).exp()
        tensor([[[0.3127, 0.6873]]], dtype=torch.float64)
        """
        if self.uses_network:
            mean = self.denoised(prediction)
        else:
            mean = prediction.z / per_example(alpha(prediction.logsnr), prediction.z)
        return self._law(to_float64(mean)[..., None], prediction)

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


def _log_prior(value: Tensor, argument: str, given: Given) -> Tensor:
    tensor(value, argument, given)
    levels, shape = given["levels"], tuple(value.shape)
    require(shape[-1:] == (levels,), argument, f"have shape (…, levels) = (…, {levels})", shape)
    return finite_values(value, argument, given)


class Categorical(Levels):
    """VDM's decoder: log p(k | z₀) = log softmax_k( −½ e^{λ_max} (z₀/α₀ − x_k)² + log π_k ), each
    dimension by itself (arXiv:2107.00630, appendix).

    π is uniform unless `prior` is given: log-probabilities (levels,) for all dimensions or (*dims,
    levels) for each, for instance from `Categorical.fit`. Published numbers use the uniform one.

    >>> decoder = Categorical(levels=256, levels_at_ends=True)
    >>> round(decoder.table(13.3)[128].item(), 7)
    0.0069714
    """

    prior: Tensor | None

    @validated
    def __init__(
        self,
        levels: Level,
        *,
        levels_at_ends: bool = False,
        prior: Annotated[Tensor, _log_prior] | None = None,
    ) -> None:
        super().__init__(levels, levels_at_ends=levels_at_ends)
        prior = None if prior is None else torch.log_softmax(to_float64(prior), -1)
        self.register_constructed("prior", prior)

    @classmethod
    @validated
    def fit(
        cls,
        data: LevelData,
        levels: Level,
        *,
        per_dim: bool = True,
        levels_at_ends: bool = False,
        pseudocount: Pseudocount = 1.0,
    ) -> "Categorical":
        """With π counted on training data, per dimension or for all together, plus a pseudocount
        for each level.

        Beside the data it takes 8 bytes a count: 3 × 32 × 32 × 256 of them for CIFAR-10, 6 MiB.

        >>> Categorical.fit(torch.tensor([[0, 1], [0, 1]]), 2).prior.exp()
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
        """
        counts = _counts(data.flatten(1) if per_dim else data.reshape(-1, 1), levels)
        prior = (to_float64(counts) + pseudocount).log()
        prior = prior.view(*(data.shape[1:] if per_dim else ()), levels)
        return cls(levels, levels_at_ends=levels_at_ends, prior=prior)

    @validated
    def log_prob(
        self, data: LevelData, mean: Mean, logsnr: Tensor | float
    ) -> Float[Tensor, " batch"]:
        log_p = self._log_softmax(
            to_float64(mean)[..., None], as_float64(logsnr, mean.device).exp()
        )
        return sum_dims(log_p.gather(-1, data.long()[..., None])).to(at_least_float32(mean.dtype))

    def _law(self, mean: Tensor, prediction: Prediction) -> Tensor:
        snr = per_example(to_float64(prediction.logsnr).exp(), mean)
        return self._log_softmax(mean, torch.as_tensor(snr))

    def _log_softmax(self, mean: Tensor, snr: Tensor) -> Tensor:
        logits = -0.5 * snr * (mean - self.grid.to(mean.device)).square()
        return torch.log_softmax(logits if self.prior is None else logits + self.prior, -1)

    def _table(self, logsnr: Tensor) -> Float[Tensor, "*dims levels"]:
        nodes, weights = normal_nodes(logsnr.device)
        ratio = self.spacing * torch.exp(0.5 * logsnr)  # of the spacing to the noise
        if self.prior is not None:
            prior = self.prior.view(-1, self.levels)
            return self._table_of_prior(prior, ratio, nodes, weights).view(self.prior.shape)
        # −log p = log1p of the levels below and above; one m away has e^{−½m²r² ∓ nmr}
        away = to_float64(torch.arange(1, self.levels, device=logsnr.device)) * ratio
        exponent = -away * (0.5 * away + nodes[:, None])
        # where e^x is zero in float64 it takes ten times as long on a CPU
        below = F.pad(exponent.clamp(min=FAINTEST).exp().cumsum(1), (1, 0))
        return weights @ torch.log1p(below + below.flip(0, 1))

    def _table_of_prior(
        self, prior: Tensor, ratio: Tensor, nodes: Tensor, weights: Tensor
    ) -> Tensor:
        """The table of each row of a prior: E log Σ_j e^{−½m²r² + nmr} π_j/π_k over n, with m = j
        − k."""
        levels = to_float64(torch.arange(self.levels, device=prior.device))
        total = torch.zeros_like(prior)
        away = (levels[:, None] - levels) * ratio  # (k, j)
        add = validation_enabled() and has_values(prior) and bool(prior.min() > FAINTEST)
        together = max(1, PIECE // (self.levels * max(self.levels, len(prior))))
        for n, weight in zip(*(torch.split(v, together) for v in (nodes, weights)), strict=True):
            exponent = -away * (0.5 * away + n[:, None, None])  # at most ½n², 40
            if add:
                log_sum = (exponent.exp() @ prior.exp().T).log()
            else:
                log_sum = torch.stack([torch.logsumexp(exponent + row, -1) for row in prior], -1)
            total = total + torch.einsum("nkp,n->pk", log_sum, weight)
        return total - prior

    def extra_repr(self) -> str:
        prior = "" if self.prior is None else f", prior={tuple(self.prior.shape)}"
        return super().extra_repr() + prior


def _counts(data: Tensor, levels: int) -> Tensor:
    """How often each level is in each column of (n, dims) data: (dims, levels) integers."""
    dims = data.shape[1]
    counts = torch.zeros(dims * levels, dtype=torch.long, device=data.device)
    place = levels * torch.arange(dims, device=data.device)
    for rows in torch.split(data, max(1, max(PIECE, len(counts)) // dims)):
        counts += torch.bincount((rows.long() + place).flatten(), minlength=len(counts))
    return counts.view(dims, levels)


__all__ = ["Categorical", "Levels"]

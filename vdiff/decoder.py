"""p(data | z₀): how the first noise level is read back as data, and how data is laid out for the
network.

A decoder encodes data into the range of the network, knows the number of grey levels, and gives
the reconstruction term of the bound. One that does not look at the network depends on the level
and on λ_max alone, so that its term is a small table, exact and without variance.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff.errors import (
    check_batch,
    check_data,
    check_finite,
    check_tensor,
    checking,
    finite,
    has_values,
    must,
    names_arrays,
)
from vdiff.gaussian import (
    RestorableModule,
    StepToData,
    alpha,
    at_least_float32,
    diffuse,
    moving_only,
    per_example,
    sum_dims,
    wide,
    wide_number,
)
from vdiff.parameterization import PosteriorMean, Prediction
from vdiff.reverse import excess
from vdiff.variance import Optimal

NODE_SPACING, NODE_REACH = (
    0.1,
    9.0,
)  # trapezoid nodes of a standard normal: spectral accuracy, below 1e-13 here
PIECE = 2**22  # elements at a time, where data is counted and a table is made: 32 MiB in 8 bytes
FAINTEST = -600.0  # log-probabilities above it can be added as probabilities: none underflows
SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def normal_nodes(device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Equidistant nodes n and weights φ(n)·dn: Σ w f(n) is E f(N(0, 1)) for smooth f."""
    half = round(NODE_REACH / NODE_SPACING)
    nodes = wide(torch.arange(-half, half + 1, device=device)) * NODE_SPACING
    weights = torch.exp(-0.5 * nodes.square())
    return nodes, weights / weights.sum()


def signed(levels: Tensor) -> Tensor:
    """Levels in a dtype that has all operations: torch has few for uint16, uint32 and uint64.

    >>> signed(torch.tensor([3], dtype=torch.uint16)).aminmax()[0]
    tensor(3, dtype=torch.int32)
    """
    return levels.to(SIGNED.get(levels.dtype, levels.dtype))


class Decoder(RestorableModule):
    """p(data | z₀) with its encoding. `denoise` says whether it looks at the network: its mean is
    then x̂(z₀), else z₀/α₀.

    >>> data = torch.tensor([[0, 128, 255]])
    >>> decoders = Categorical(levels=256), DiscretizedGaussian(levels=256)
    >>> [torch.equal(decoder.decode(decoder.encode(data)), data) for decoder in decoders]
    [True, True]
    """

    denoise: bool = False

    def encode(self, data: Tensor) -> Tensor:
        """Data as the network sees it, in the default dtype or float32, whichever is wider."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        """The most likely data for a clean x."""
        raise NotImplementedError

    def log_prob(
        self, data: Tensor, mean: Tensor, logsnr: Tensor | float
    ) -> Float[Tensor, " batch"]:
        """log p(data | mean) in nats per example, at noise level λ = `logsnr`."""
        raise NotImplementedError

    def expected_nll(self, data: Tensor, logsnr: Tensor | float) -> Float[Tensor, " batch"]:
        """E[−log p(data | z₀)] over z₀ ~ q(z₀ | x), exactly, for a decoder that does not look at
        the network."""
        raise NotImplementedError

    @names_arrays
    def reconstruction(
        self,
        data: Tensor,
        x: Tensor,
        logsnr: Tensor | float,
        predict: Callable[[Tensor, Tensor], Prediction],
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """E[−log p(data | z₀)], nats per example: exact where it can be, else one sample of z₀
        (from `eps` if given)."""
        if not self.denoise:
            return self.expected_nll(data, logsnr).to(at_least_float32(x.dtype))
        if eps is None:
            eps = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self.nll(data, diffuse(x, eps, _level(logsnr, x)), logsnr, predict)

    @names_arrays
    def nll(
        self,
        data: Tensor,
        z: Tensor,
        logsnr: Tensor | float,
        predict: Callable[[Tensor, Tensor], Prediction],
    ) -> Float[Tensor, " batch"]:
        """−log p(data | z₀) at one given z₀, nats per example."""
        level = _level(logsnr, z)
        mean = (
            self._denoised(predict(z, level)) if self.denoise else z / per_example(alpha(level), z)
        )
        return -self.log_prob(data, mean, logsnr)

    def _denoised(self, prediction: Prediction) -> Tensor:
        if isinstance(prediction.parameterization, PosteriorMean):
            hint = "at the first level no step ends, and its target is z itself: predict x, ε or v, or a decoder without denoise"
            raise ValueError(
                must(
                    type(self).__name__,
                    "denoise",
                    "be False where the network predicts a chain's posterior mean",
                    True,
                    hint,
                )
            )
        return prediction.x


class Levels(Decoder):
    """A decoder of integer data, 0 … levels − 1.

    The levels lie at x_k = 2(k + ½)/levels − 1, bins filling [−1, 1] (VDM's convention), or, if
    `closed`, at x_k = 2k/(levels − 1) − 1 with the end levels on ±1 (DDPM's).

    >>> Categorical(2).grid, Categorical(2, closed=True).grid
    (tensor([-0.5000,  0.5000], dtype=torch.float64), tensor([-1.,  1.], dtype=torch.float64))
    """

    def __init__(self, levels: int, *, closed: bool) -> None:
        super().__init__()
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(
                must(
                    type(self).__name__,
                    "levels",
                    "be an integer of at least 2",
                    levels,
                    "256 for bytes, 17 for scikit-learn's digits",
                )
            )
        self.levels, self.closed = levels, closed
        self.spacing = 2.0 / (levels - 1 if closed else levels)
        self._tables: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}

    @property
    def grid(self) -> Tensor:
        """x_k for every level, in float64.

        >>> Categorical(2).grid
        tensor([-0.5000,  0.5000], dtype=torch.float64)
        """
        return self._place(torch.arange(self.levels, dtype=torch.float64, device="cpu"))

    def _place(self, level: Tensor) -> Tensor:
        return level * self.spacing + (-1.0 if self.closed else -1.0 + 0.5 * self.spacing)

    def encode(self, data: Tensor) -> Tensor:
        """Levels as x in [−1, 1], in the default dtype or float32, whichever is wider.

        Raises for data that is not integer or leaves 0 … levels − 1. Values are read where that
        costs no synchronisation (on a CPU), and always where no gradient is recorded.

        >>> Categorical(4).encode(torch.tensor([[0, 3]]))
        tensor([[-0.7500,  0.7500]])
        """
        if checking():
            self._check(data, "encode")
        return self._place(data.to(at_least_float32(torch.get_default_dtype())))

    @names_arrays
    def decode(self, x: Tensor) -> Tensor:
        """The nearest level of each value.

        >>> Categorical(4).decode(torch.tensor([[-0.7, 3.0]]))
        tensor([[0, 3]])
        """
        x = x.to(at_least_float32(x.dtype))
        return (
            ((x - self._place(torch.zeros_like(x[:1]))) / self.spacing)
            .round()
            .clamp(0, self.levels - 1)
            .long()
        )

    def _check(self, data: Tensor, method: str) -> None:
        """Raise unless `data` is a (batch, …) tensor of levels; values are read where `encode`
        says."""
        self._check_kind(data, method)
        if has_values(data) and (data.device.type == "cpu" or not torch.is_grad_enabled()):
            low, high = (int(v) for v in signed(data).aminmax())
            if low < 0 or high >= self.levels:
                hint = f"values are not on the {self.levels}-level grid" + (
                    "; bytes have levels=256" if self.levels <= high < 256 else ""
                )
                raise ValueError(
                    must(
                        f"{type(self).__name__}.{method}",
                        "data",
                        f"lie in 0 … {self.levels - 1}",
                        f"values from {low} to {high}",
                        hint,
                    )
                )

    def _check_kind(self, data: Tensor, method: str) -> None:
        name = f"{type(self).__name__}.{method}"
        check_tensor(name, "data", data)
        if data.layout is not torch.strided:
            raise TypeError(must(name, "data", "be dense", data.layout, "call .to_dense() first"))
        if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            hint = "a discrete decoder takes levels 0, 1, 2, …; dequantised or scaled data needs a Gaussian decoder, and its bits/dim are those of a density"
            if data.dtype == torch.bool:
                hint = "binary data has two levels: data.long()"
            raise TypeError(
                must(name, "data", f"be integer levels, 0 to {self.levels - 1}", data.dtype, hint)
            )
        check_batch(name, data, "data")

    def table(self, logsnr: Tensor | float) -> Float[Tensor, "*dims levels"]:
        """E[−log p(k | z₀)] for every level k, in nats and float64; kept where λ is a number."""
        raise NotImplementedError

    def expected_nll(self, data: Tensor, logsnr: Tensor | float) -> Float[Tensor, " batch"]:
        if checking():
            self._check_kind(data, "expected_nll")
        if isinstance(logsnr, Tensor):
            table = self.table(logsnr.to(data.device))
        else:
            key = (logsnr, data.device, at_least_float32(torch.get_default_dtype()))
            if key not in self._tables:
                with torch.no_grad():
                    self._tables[key] = self.table(wide_number(logsnr, data.device)).to(key[2])
            table = self._tables[key]
        if checking() and table.ndim > 1 and table.shape[:-1] != data.shape[1:]:
            hint = "Categorical.fit(…, per_dim=False) is for all dimensions"
            raise ValueError(
                must(
                    type(self).__name__,
                    "prior",
                    f"have shape (levels,) or {(*data.shape[1:], self.levels)}, as the data has",
                    tuple(table.shape),
                    hint,
                )
            )
        if table.ndim == 1:
            return sum_dims(F.embedding(data.long(), table[:, None])).to(
                at_least_float32(table.dtype)
            )
        chosen = table.expand(data.shape[0], *table.shape).gather(-1, data.long()[..., None])
        return sum_dims(chosen)

    def law(self, prediction: Prediction) -> Float[Tensor, "batch *dims levels"]:
        """log p(k | z₀) of every level k, each dimension by itself, from the prediction at z₀;
        nats, in float64.

        >>> from vdiff import X
        >>> last = Prediction(torch.tensor([[0.1]]), torch.tensor([2.0]), torch.tensor([[0.2]]), X())
        >>> Categorical(2).law(last).exp()
        tensor([[[0.3127, 0.6873]]], dtype=torch.float64)
        """
        mean = (
            self._denoised(prediction)
            if self.denoise
            else prediction.z / per_example(alpha(prediction.logsnr), prediction.z)
        )
        return self._law(wide(mean)[..., None], prediction)

    def _law(self, mean: Tensor, prediction: Prediction) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Levels":
        self._tables.clear()
        module: Levels = super()._apply(moving_only(fn), recurse)  # type: ignore[no-untyped-call]
        return module

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._tables.clear()

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._tables.clear()  # a loaded prior has other tables
        super()._load_from_state_dict(*args, **options)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, closed={self.closed}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Categorical(Levels):
    """VDM's decoder: log p(k | z₀) = log softmax_k( −½ e^{λ_max} (z₀/α₀ − x_k)² + log π_k ), each
    dimension by itself (arXiv:2107.00630, appendix).

    π is uniform unless `prior` is given: log-probabilities (levels,) for all dimensions or (*dims,
    levels) for each, for instance from `Categorical.fit`. Published numbers use the uniform one.

    >>> decoder = Categorical(levels=256, closed=True)
    >>> round(decoder.table(13.3)[128].item(), 7)
    0.0069714
    """

    prior: Tensor | None

    def __init__(self, levels: int, *, closed: bool = False, prior: Tensor | None = None) -> None:
        super().__init__(levels, closed=closed)
        if prior is not None:
            check_tensor("Categorical", "prior", prior)
            if prior.shape[-1:] != (levels,):
                raise ValueError(
                    must(
                        "Categorical",
                        "prior",
                        f"have shape (…, levels) = (…, {levels})",
                        tuple(prior.shape),
                    )
                )
            check_finite("Categorical", prior, "prior")
            prior = torch.log_softmax(wide(prior), -1)
        self.register_constructed("prior", prior)

    @classmethod
    def fit(
        cls,
        data: Tensor,
        levels: int,
        *,
        per_dim: bool = True,
        closed: bool = False,
        pseudocount: float = 1.0,
    ) -> "Categorical":
        """With π counted on training data, per dimension or for all together, plus a pseudocount
        for each level.

        Beside the data it takes 8 bytes a count: 3 × 32 × 32 × 256 of them for CIFAR-10, 6 MiB.

        >>> Categorical.fit(torch.tensor([[0, 1], [0, 1]]), 2).prior.exp()
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
        """
        with torch.no_grad():
            cls(levels, closed=closed)._check(data, "fit")
        pseudocount = finite(
            "Categorical.fit",
            "pseudocount",
            pseudocount,
            above=0.0,
            hint="without one, a level that training data lacks has probability zero",
        )
        counts = _counts(data.flatten(1) if per_dim else data.reshape(-1, 1), levels)
        prior = (
            (wide(counts) + pseudocount).log().view(*(data.shape[1:] if per_dim else ()), levels)
        )
        return cls(levels, closed=closed, prior=prior)

    def log_prob(
        self, data: Tensor, mean: Tensor, logsnr: Tensor | float
    ) -> Float[Tensor, " batch"]:
        if checking():
            self._check(data, "log_prob")
            _check_mean(type(self).__name__, mean, data)
        chosen = self._log_softmax(
            wide(mean)[..., None], wide_number(logsnr, mean.device).exp()
        ).gather(-1, data.long()[..., None])
        return sum_dims(chosen).to(at_least_float32(mean.dtype))

    def _law(self, mean: Tensor, prediction: Prediction) -> Tensor:
        return self._log_softmax(
            mean, torch.as_tensor(per_example(wide(prediction.logsnr).exp(), mean))
        )

    def _log_softmax(self, mean: Tensor, snr: Tensor) -> Tensor:
        logits = -0.5 * snr * (mean - self.grid.to(mean.device)).square()
        return torch.log_softmax(logits if self.prior is None else logits + self.prior, -1)

    def table(self, logsnr: Tensor | float) -> Float[Tensor, "*dims levels"]:
        logsnr = (
            wide(logsnr)
            if isinstance(logsnr, Tensor)
            else wide_number(logsnr, torch.device("cpu"))
        )
        nodes, weights = normal_nodes(logsnr.device)
        ratio = self.spacing * torch.exp(
            0.5 * logsnr
        )  # levels' spacing in standard deviations of the noise
        if self.prior is None:
            # −log p = log1p of the levels below plus those above; a level m away has e^{−½m²r² ∓
            # nmr}
            away = wide(torch.arange(1, self.levels, device=logsnr.device)) * ratio
            below = F.pad(torch.exp(-away * (0.5 * away + nodes[:, None])).cumsum(1), (1, 0))
            return weights @ torch.log1p(below + below.flip(0, 1))
        return self._table_of_prior(self.prior.view(-1, self.levels), ratio, nodes, weights).view(
            self.prior.shape
        )

    def _table_of_prior(
        self, prior: Tensor, ratio: Tensor, nodes: Tensor, weights: Tensor
    ) -> Tensor:
        """The table of each row of a prior: E log Σ_j e^{−½m²r² + nmr} π_j/π_k over n, with m = j
        − k."""
        levels, total = (
            wide(torch.arange(self.levels, device=prior.device)),
            torch.zeros_like(prior),
        )
        away = (levels[:, None] - levels) * ratio  # (k, j)
        add = checking() and has_values(prior) and bool(prior.min() > FAINTEST)
        together = max(1, PIECE // (self.levels * max(self.levels, len(prior))))
        for n, weight in zip(
            torch.split(nodes, together), torch.split(weights, together), strict=True
        ):
            exponent = -away * (0.5 * away + n[:, None, None])  # at most ½n², 40
            if add:
                log_sum = (exponent.exp() @ prior.exp().T).log()
            else:
                log_sum = torch.stack([torch.logsumexp(exponent + row, -1) for row in prior], -1)
            total = total + torch.einsum("nkp,n->pk", log_sum, weight)
        return total - prior

    def extra_repr(self) -> str:
        return super().extra_repr() + (
            "" if self.prior is None else f", prior={tuple(self.prior.shape)}"
        )


class DiscretizedGaussian(Levels):
    """DDPM's decoder: a Gaussian integrated over each level's bin, the end bins reaching to ±∞
    (arXiv:2006.11239, eq. 13).

    Its standard deviation is the noise of z₀/α₀, e^{−λ_max/2}, or √variance where that is given
    (DDPM: β₁ or β̃₂); its mean is z₀/α₀, or x̂(z₀) with `denoise`, as in DDPM. The edges are told
    by the data, in log space and without a clamp.

    With `clip` the variance is the model's own, as in iDDPM: that of its reverse step from z₀ to
    data, where the posterior's is zero and is taken as `clip` (β̃₂, `first_variance(schedule,
    steps)`). For a learned range that is log Σ = v log σ₀² + (1 − v) log clip; for `Forward()` it
    is σ₀², where DDPM's code has β̃₂ too (`variance=β̃₂`).

    >>> decoder = DiscretizedGaussian(256)
    >>> round(decoder.table(13.3)[0].item() < decoder.table(13.3)[1].item())
    1
    """

    def __init__(
        self,
        levels: int = 256,
        *,
        closed: bool = True,
        variance: float | None = None,
        denoise: bool = False,
        clip: float | None = None,
    ) -> None:
        super().__init__(levels, closed=closed)
        self.variance, self.denoise = _check_variance("DiscretizedGaussian", variance), denoise
        self.clip = (
            None
            if clip is None
            else finite(
                "DiscretizedGaussian",
                "clip",
                clip,
                above=0.0,
                hint="a variance, not its logarithm",
            )
        )
        if clip is not None and (variance is not None or not denoise):
            came = f"variance={variance}, denoise={denoise}"
            hint = "the variance is then the network's own"
            raise ValueError(
                must(
                    "DiscretizedGaussian",
                    "clip",
                    "come with denoise=True and without variance",
                    came,
                    hint,
                )
            )

    def log_prob(
        self, data: Tensor, mean: Tensor, logsnr: Tensor | float
    ) -> Float[Tensor, " batch"]:
        if checking():
            self._check(data, "log_prob")
            _check_mean(type(self).__name__, mean, data)
        return self._log_prob(data, mean, _std(self.variance, logsnr, mean.device))

    def _log_prob(self, data: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        center = self._place(wide(data)) - wide(mean)
        log_p = self._log_bin(center, std, data == 0, data == self.levels - 1)
        return sum_dims(log_p).to(at_least_float32(mean.dtype))

    @names_arrays
    def nll(
        self,
        data: Tensor,
        z: Tensor,
        logsnr: Tensor | float,
        predict: Callable[[Tensor, Tensor], Prediction],
    ) -> Float[Tensor, " batch"]:
        if self.clip is None:
            return super().nll(data, z, logsnr, predict)
        prediction = predict(z, _level(logsnr, z))
        return -self._log_prob(
            data, self._denoised(prediction), self._own_std(prediction, self.clip)
        )

    def _own_std(self, prediction: Prediction, clip: float) -> Tensor:
        """That of the model's reverse step to data, in each dimension."""
        if isinstance(prediction.variance, Optimal):
            hint = "its limit here is the error of x̂ alone: measure that, and give variance=…"
            raise ValueError(
                must(
                    "DiscretizedGaussian",
                    "clip",
                    "be left out with a variance fitted to the chain",
                    "Optimal",
                    hint,
                )
            )
        z = wide(prediction.z)
        u, std = (
            excess(prediction, StepToData(wide(prediction.logsnr), clip), z),
            torch.full_like(z, math.sqrt(clip)),
        )
        return std if u is None else std * torch.exp(0.5 * u)

    def _law(self, mean: Tensor, prediction: Prediction) -> Tensor:
        if self.clip is None:
            std = torch.as_tensor(
                per_example(_std(self.variance, prediction.logsnr, mean.device), mean)
            )
        else:
            std = self._own_std(prediction, self.clip)[..., None]
        k = torch.arange(self.levels, device=mean.device)
        return self._log_bin(self.grid.to(mean.device) - mean, std, k == 0, k == self.levels - 1)

    def table(self, logsnr: Tensor | float) -> Float[Tensor, "*dims levels"]:
        logsnr = (
            wide(logsnr)
            if isinstance(logsnr, Tensor)
            else wide_number(logsnr, torch.device("cpu"))
        )
        nodes, weights = normal_nodes(logsnr.device)
        std = _std(self.variance, logsnr, logsnr.device)
        center = -nodes * torch.exp(-0.5 * logsnr)
        no, yes = (
            torch.zeros_like(nodes, dtype=torch.bool),
            torch.ones_like(nodes, dtype=torch.bool),
        )
        edge, inner = (-(weights @ self._log_bin(center, std, first, no)) for first in (yes, no))
        table = inner.repeat(self.levels)
        return torch.cat([edge[None], table[1:-1], edge[None]])

    def _log_bin(self, center: Tensor, std: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """log probability of the bin around `center` = x_k − mean."""
        lower, upper = (center - 0.5 * self.spacing) / std, (center + 0.5 * self.spacing) / std
        inner = log_normal_interval(lower, upper)
        edge = log_normal_cdf(torch.where(first, upper, -lower))
        return torch.where(first | last, edge, inner)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, variance={self.variance}, denoise={self.denoise}, clip={self.clip}"


class Gaussian(Decoder):
    """p(x | z₀) = N(z₀/α₀, e^{−λ_max} I) for continuous data; or N(x̂(z₀), variance I) with
    `denoise`.

    Without `denoise` and `variance` its term is ½d (log 2πe − λ_max): it falls without end as
    λ_max grows, so a learned λ_max is refused with this decoder.

    >>> Gaussian().expected_nll(torch.zeros(1, 2), 0.0)
    tensor([2.8379])
    """

    def __init__(self, *, variance: float | None = None, denoise: bool = False) -> None:
        super().__init__()
        self.variance, self.denoise = _check_variance("Gaussian", variance), denoise

    def encode(self, data: Tensor) -> Tensor:
        """Continuous data as it is. Raises where it is not floating; NaN is looked for where no
        gradient is recorded."""
        if checking():
            check_data("Gaussian.encode", data, "data")
            if not torch.is_grad_enabled() and has_values(data):
                check_finite("Gaussian.encode", data, "data")
        return data

    def decode(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def log_prob(
        self, data: Tensor, mean: Tensor, logsnr: Tensor | float
    ) -> Float[Tensor, " batch"]:
        if checking():
            check_data("Gaussian.log_prob", data, "data")
            _check_mean("Gaussian", mean, data)
        std = _std(self.variance, logsnr, mean.device)
        score = (wide(data) - wide(mean)) / std
        return sum_dims(-0.5 * score.square() - std.log() - 0.5 * math.log(2 * math.pi)).to(
            at_least_float32(mean.dtype)
        )

    @names_arrays
    def expected_nll(self, data: Tensor, logsnr: Tensor | float) -> Float[Tensor, " batch"]:
        logsnr = wide_number(logsnr, data.device)
        log_variance = (
            -logsnr if self.variance is None else torch.full_like(logsnr, math.log(self.variance))
        )
        per_dim = 0.5 * (math.log(2 * math.pi) + log_variance + torch.exp(-logsnr - log_variance))
        return (data[0].numel() * per_dim).to(at_least_float32(data.dtype)).expand(data.shape[0])

    def __repr__(self) -> str:
        return f"Gaussian(variance={self.variance}, denoise={self.denoise})"


def _counts(data: Tensor, levels: int) -> Tensor:
    """How often each level is in each column of (n, dims) data: (dims, levels) integers."""
    dims = data.shape[1]
    counts = torch.zeros(dims * levels, dtype=torch.long, device=data.device)
    place = levels * torch.arange(dims, device=data.device)
    for rows in torch.split(data, max(1, max(PIECE, len(counts)) // dims)):
        counts += torch.bincount((rows.long() + place).flatten(), minlength=len(counts))
    return counts.view(dims, levels)


def log_normal_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Φ(upper) − Φ(lower)) for lower < upper, in log space: exact far in the tails, with a
    gradient there.

    >>> log_normal_interval(torch.tensor(-41.0), torch.tensor(-40.0))
    tensor(-804.6085)
    """
    flip = lower + upper > 0  # work in the lower tail, where Φ keeps its digits
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_high = log_normal_cdf(high)
    log_p: Tensor = log_high + torch.log(-torch.expm1(log_normal_cdf(low) - log_high))
    return log_p


def log_normal_cdf(score: Tensor) -> Tensor:
    """log Φ(score), with a gradient that keeps its digits: −score far in the lower tail.

    `torch.special.log_ndtr` has the same values, but computes its gradient as
    e^{−score²/2 − log Φ}/√2π, with a relative error of 1e-16 · score². From −1e8 on that gradient
    is zero or infinite.

    >>> score = torch.tensor([-1e9], dtype=torch.float64, requires_grad=True)
    >>> log_normal_cdf(score).sum().backward()
    >>> score.grad
    tensor([1.0000e+09], dtype=torch.float64)
    """
    # each formula overflows on the side of the other
    below, above = score.clamp(max=0.0), score.clamp(min=0.0)
    tail = torch.log(0.5 * torch.special.erfcx(below * -math.sqrt(0.5))) - 0.5 * below.square()
    return torch.where(score < 0, tail, torch.log1p(-0.5 * torch.erfc(above * math.sqrt(0.5))))


def _level(logsnr: Tensor | float, z: Tensor) -> Tensor:
    return wide_number(logsnr, z.device).expand(z.shape[0])


def _std(variance: float | None, logsnr: Tensor | float, device: torch.device) -> Tensor:
    if variance is not None:
        return wide_number(math.sqrt(variance), device)
    return torch.exp(-0.5 * wide_number(logsnr, device))


def _check_mean(name: str, mean: Tensor, data: Tensor) -> None:
    check_tensor(f"{name}.log_prob", "mean", mean)
    if mean.shape != data.shape:
        raise ValueError(
            must(
                f"{name}.log_prob",
                "mean",
                f"have the shape of data, {tuple(data.shape)}",
                tuple(mean.shape),
                "it would broadcast in silence",
            )
        )


def _check_variance(name: str, variance: float | None) -> float | None:
    return (
        None
        if variance is None
        else finite(name, "variance", variance, above=0.0, hint="a variance, not its logarithm")
    )


__all__ = [
    "Categorical",
    "Decoder",
    "DiscretizedGaussian",
    "Gaussian",
    "Levels",
    "log_normal_cdf",
    "log_normal_interval",
]

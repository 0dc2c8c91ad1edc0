"""VDM's categorical decoder."""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import finite_values
from vdiff._precision import at_least_float32, to_float64
from vdiff._validate import Given, Number, require, tensor, validated
from vdiff.decoder.base import Mean, by_dim, normal_nodes
from vdiff.decoder.levels import Level, LevelData, Levels
from vdiff.errors import has_values, validation_enabled
from vdiff.gaussian import sum_dims
from vdiff.prediction import Prediction

PIECE = 2**22  # elements of one chunk, for counts and tables: 32 MiB in 8 bytes
FAINTEST = -600.0  # no exponential of a log-probability above this underflows

_UNSEEN = "without one, a level that training data lacks has probability zero"
Pseudocount = Annotated[float, Number(above=0.0, hint=_UNSEEN)]


def _log_prior(value: Tensor, argument: str, given: Given) -> Tensor:
    tensor(value, argument, given)
    levels, shape = given["levels"], tuple(value.shape)
    require(shape[-1:] == (levels,), argument, f"have shape (…, levels) = (…, {levels})", shape)
    return finite_values(value, argument, given)


class Categorical(Levels):
    """VDM's decoder: log p(k | z₀) = log softmax_k( −½ e^{λ_max} (z₀/α₀ − x_k)² + log π_k ) in
    each dimension (arXiv:2107.00630, appendix).

    π is uniform, as in published numbers, unless `prior` is given: log-probabilities (levels,) for
    all dimensions or (*dims, levels) for each. `Categorical.fit` makes one.

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
        for each level. The counts of CIFAR-10 take 6 MiB.

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
        self, data: LevelData, mean: Mean, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        snr = by_dim(logsnr, mean).exp()
        log_p = self._log_softmax(to_float64(mean)[..., None], snr[..., None])
        of_data = log_p.gather(-1, data.long()[..., None])[..., 0]
        return sum_dims(of_data, mask).to(at_least_float32(mean.dtype))

    def _log_probs(self, mean: Tensor, prediction: Prediction) -> Tensor:
        snr = by_dim(prediction.logsnr, prediction.z).exp()
        return self._log_softmax(mean, snr[..., None])

    def _log_softmax(self, mean: Tensor, snr: Tensor) -> Tensor:
        logits = -0.5 * snr * (mean - self.level_values.to(mean.device)).square()
        return torch.log_softmax(logits if self.prior is None else logits + self.prior, -1)

    def _table(self, logsnr: Tensor) -> Float[Tensor, "*dims levels"]:
        nodes, weights = normal_nodes(logsnr.device)
        ratio = self.spacing * torch.exp(0.5 * logsnr)  # of the spacing to the noise
        if self.prior is not None:
            prior = self.prior.view(-1, self.levels)
            return self._table_of_prior(prior, ratio, nodes, weights).view(self.prior.shape)
        # −log p = log1p of the sum over other levels; the one m away has e^{−½m²r² ∓ nmr}
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
        k = to_float64(torch.arange(self.levels, device=prior.device))
        total = torch.zeros_like(prior)
        away = (k[:, None] - k) * ratio  # (k, j)
        fast = validation_enabled() and has_values(prior) and bool(prior.min() > FAINTEST)
        chunk = max(1, PIECE // (self.levels * max(self.levels, len(prior))))
        chunks = (torch.split(v, chunk) for v in (nodes, weights))
        for n, weight in zip(*chunks, strict=True):
            exponent = -away * (0.5 * away + n[:, None, None])  # at most ½n², 40
            if fast:
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
    start = levels * torch.arange(dims, device=data.device)
    for rows in torch.split(data, max(1, max(PIECE, len(counts)) // dims)):
        counts += torch.bincount((rows.long() + start).flatten(), minlength=len(counts))
    return counts.view(dims, levels)

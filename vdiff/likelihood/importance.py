"""Importance-weighted bounds −log (1/K) Σ_k w_k, from any log-weights or from whole paths of a
chain.

If E[w] = p(x), then E[−log (1/K) Σ w_k] ≥ −log p(x) for every K, and it falls as K grows (Burda et
al., arXiv:1509.00519, theorem 1). Without −log K the number is no bound.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import (
    Condition,
    GaussianModel,
    Model,
    decoder_fits,
    finite_end,
    same_noise_for_all,
)
from vdiff._inputs import Batch, Steps
from vdiff._validate import Count, require, unchecked, validated
from vdiff.chain import path_bound
from vdiff.decoder import Decoder
from vdiff.gaussian import Step, alpha
from vdiff.likelihood._models import Finite
from vdiff.likelihood._rules import MASKS, known_range, schedule_fits
from vdiff.likelihood.chunks import Progress, Run, Share, State
from vdiff.likelihood.conditions import conditions_by_image, select_rows
from vdiff.likelihood.digest import schedule_digest
from vdiff.likelihood.replicated import Replicated, Replicates, example_generators, run_replicates
from vdiff.reverse import reverse_mean, reverse_sample
from vdiff.schedule import Schedule
from vdiff.weighting._check import divides_table

_Self = TypeVar("_Self", bound="ImportanceBound")
_ALONE = Share()
DOMINATED = 0.5  # the largest share of one weight in a mean that can be trusted


@dataclass(frozen=True, kw_only=True)
class ImportanceBound(Replicated):
    """−log (1/K) Σ w of each example, nats, in independent replicates of K = `samples` weights.

    `elbo` is the mean of −log w, the bound at K = 1. `effective_sample_size` is (Σ w)²/Σ w² and
    `largest_weight` is max w/Σ w, both averaged over replicates. If one weight is larger than all
    others together (`dominated`), the mean is still a bound but not close to −log p.

    >>> log_weights = torch.tensor([[[0.0], [0.0]], [[0.0], [-3.0]]])
    >>> bound = ImportanceBound.of(log_weights, dims=1, evaluations=torch.tensor([4]))
    >>> bound.replicates.T, bound.effective_sample_size
    (tensor([[-0.0000, 0.6446]]), tensor([1.5497]))
    """

    samples: int
    elbo: Float[Tensor, " batch"]
    effective_sample_size: Float[Tensor, " batch"]
    largest_weight: Float[Tensor, " batch"]

    @property
    def dominated(self) -> Tensor:
        """Whether one sample has half of all weight: more samples would change the number."""
        return self.largest_weight > DOMINATED

    @classmethod
    def of(
        cls: type[_Self],
        log_weights: Float[Tensor, "replicates samples batch"],
        dims: int,
        evaluations: Tensor,
        **fields: Any,
    ) -> _Self:
        """From log w, nats, and the other fields of the class."""
        share = log_weights.softmax(1)
        return cls(
            -importance_weighted(log_weights), dims, evaluations, samples=log_weights.shape[1],
            elbo=-log_weights.mean((0, 1)),
            effective_sample_size=share.square().sum(1).reciprocal().mean(0),
            largest_weight=share.amax(1).mean(0), **fields,
        )  # fmt: skip


@validated
def importance_weighted(
    log_weights: Float[Tensor, "*replicates samples batch"],
) -> Float[Tensor, "*replicates batch"]:
    """log (1/K) Σ_k w_k = logsumexp_k log w_k − log K.

    >>> importance_weighted(torch.zeros(8, 1))
    tensor([0.])
    """
    return torch.logsumexp(log_weights, -2) - math.log(log_weights.shape[-2])


@validated(
    rules=[
        finite_end, divides_table, decoder_fits, conditions_by_image, known_range,
        same_noise_for_all, schedule_fits,
    ],
    elsewhere=MASKS,
)  # fmt: skip
def path_importance(
    model: GaussianModel,
    data: Batch,
    *,
    schedule: Schedule,
    decoder: Decoder,
    steps: Steps,
    samples: Count,
    replicates: Replicates = 2,
    batch: Count = 4096,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    condition: Condition = None,
) -> ImportanceBound:
    """The importance-weighted bound of a T-step chain over `samples` whole paths, nats per
    example.

    The weight of a path is p(x, z₀ … z₁)/q(z₀ … z₁ | x) = exp(−log_ratio) of `path_bound`. Each
    path takes T evaluations of the model.

    Args:
        model, data, schedule, decoder, steps: as in `path_bound`.
        samples: K, the paths of one bound.
        replicates: independent bounds of each example, for its standard error; at least 2.
        batch: how many paths the model gets at once.
        seed: of the noise. It is a function of the seed, the replicate and the example's place;
            for K > batch also of the batch.
        progress: called as progress(done, all) with numbers of bounds of examples.
        share, resume, checkpoint, record, condition: as in `evaluate`.

    Raises:
        TypeError, ValueError: as `path_bound`, and if the model is not finite, with the example
            and λ.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> from vdiff.decoder import Gaussian
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> chain = {"schedule": Linear(6.0, -5.0), "decoder": Gaussian(), "steps": 8}
    >>> bound = path_importance(oracle, torch.zeros(1, 1), samples=100, **chain)
    >>> (bound.nats < bound.elbo).item()
    True
    """
    with torch.no_grad():  # so that values are checked
        encoded = decoder.encode(data)
    together = min(samples, batch)  # paths of one example in a batch

    def work(replicate: int, rows: Tensor) -> State:
        log_weights = []
        for first in range(0, samples, together):
            paths = min(together, samples - first)
            numbers, name = rows.repeat_interleave(paths), f"paths {first} … of "
            path = unchecked(path_bound)(
                Finite(model, numbers), data[numbers], schedule=schedule, decoder=decoder,
                steps=steps,
                generator=example_generators(seed, replicate, rows, data.device, name),
                condition=select_rows(condition or {}, numbers, len(data)),
            )  # fmt: skip
            log_weights.append(-path.log_ratio.view(len(rows), paths))
        return {"log_weight": torch.cat(log_weights, 1)}

    settings = {
        "decoder": repr(decoder), "schedule": repr(schedule),
        "path": schedule_digest(schedule, data.ndim), "T": steps, "K": samples,
        "replicates": replicates,
    }  # fmt: skip
    results, protocol = run_replicates(
        work, data, shapes={"log_weight": (samples,)}, repetitions=replicates, model=model,
        dtype=encoded.dtype, condition=condition or {}, settings=settings, record=record,
        run=Run(batch // together, seed, share, progress, checkpoint, resume), key=(together,),
    )  # fmt: skip
    count, dims = torch.full((len(data),), replicates * samples * steps), encoded[0].numel()
    return ImportanceBound.of(results["log_weight"].mT, dims, count, protocol=protocol)


def one_dimension(x: Tensor) -> None:
    """Rule: examples are numbers."""
    hint = "a grid has one dimension: path_importance"
    require(x.ndim == 2 and x.shape[1] == 1, "x", "have shape (n, 1)", tuple(x.shape), hint)


@validated(rules=[one_dimension])
@torch.no_grad()
def chain_log_prob(
    model: Model,
    x: Float[Tensor, "n dims"],
    *,
    schedule: Schedule,
    steps: Steps,
    decoder: Decoder,
    reach: float = 14.0,
    points: int = 2001,
) -> Float[Tensor, " n"]:
    """The exact log p(x) of a T-step chain in one dimension, nats, to test estimators with.

    p(x | z₀) is integrated over every p(z_s | z_t) by the trapezoid rule, on `points` equidistant
    z within ± `reach`. This is exact if the spacing is below the standard deviations of the
    reverse kernels and of p(x | z₀). Raises ValueError for data of more dimensions.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> from vdiff.decoder import Gaussian
    >>> oracle, x = GaussianMixture([1.0], [[0.0]], [[0.25]]), torch.zeros(1, 1).double()
    >>> chain = {"schedule": Linear(6.0, -5.0), "decoder": Gaussian(), "steps": 20}
    >>> log_p = chain_log_prob(oracle, x, points=1001, **chain)
    >>> round(log_p.item(), 2), round(oracle.log_prob(x).item(), 2)
    (-0.11, -0.23)
    """
    grid = torch.linspace(-reach, reach, points, dtype=torch.float64)[:, None]
    width = grid[1, 0] - grid[0, 0]
    clean = schedule(torch.zeros(1, dtype=torch.float64))
    scaled, x = grid / alpha(clean), x.to(torch.float64)
    log_p = [decoder.log_prob(example.expand_as(grid), scaled, clean) for example in x]
    likelihood = torch.stack(log_p, 1).exp()  # p(x | z) at each z of the grid
    for i in range(1, steps + 1):
        t = torch.full((points,), i / steps, dtype=torch.float64)
        step = Step(schedule(t), schedule.delta(t, steps))
        prediction = model(grid, step.logsnr_t)
        mean = reverse_mean(prediction, step)
        spread = reverse_sample(prediction, step, torch.ones_like(grid)) - mean
        density = torch.exp(-0.5 * ((grid.T - mean) / spread).square())
        kernel = density / (spread * math.sqrt(2 * math.pi))
        likelihood = kernel @ likelihood * width
    prior = torch.exp(-0.5 * grid.square()) / math.sqrt(2 * math.pi)
    return (prior.T @ likelihood * width).log().squeeze(0)

"""A validation curve: the bound, or the loss, of held-out data, always on the same times and
noise."""

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff._arguments import Condition
from vdiff._diffusion import diffusion_of
from vdiff._partial import Partial
from vdiff._precision import device_of, float64_for, to_float64
from vdiff._validate import Count, require, validated
from vdiff.likelihood import VarianceReduction, evaluate
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.chunks import OtherProcessFailed, Run, State, run_in_chunks
from vdiff.likelihood.conditions import conditions_by_image, select_rows
from vdiff.likelihood.digest import state_key
from vdiff.likelihood.estimate import Estimate
from vdiff.likelihood.integrand import NonFiniteBound
from vdiff.likelihood.pilot import bin_index
from vdiff.likelihood.replicated import Replicated, example_generators
from vdiff.masks import MaskSampler, masks_of_step
from vdiff.objective import Objective
from vdiff.training.ranks import share_of_rank

FIXED = VarianceReduction(importance=False, controls=(), antithetic=False, baseline=False)
BINS = 8  # ranges of log-SNR
GRID = 1000  # times that find the range of a schedule


class Band(NamedTuple):
    """The part of a loss between two log-SNR, in the unit of the loss."""

    logsnr_max: float
    logsnr_min: float
    loss: Estimate


@dataclass(frozen=True)
class LossEstimate(Estimate):
    """The mean of a loss over held-out data, in nats over d ln 2 as a run's `train_loss`, with the
    errors of an `Estimate`, and its parts by log-SNR, which sum to it.

    >>> part = Estimate(1.0, 0.1, 0.2)
    >>> print(LossEstimate(1.0, 0.1, 0.2, bands=(Band(5.0, -5.0, part),)))
    1.0000 ± 0.1000 (Monte Carlo) ± 0.2000 (images)
    log-SNR [-5.0, 5.0]: 1.0000 ± 0.1000 (Monte Carlo) ± 0.2000 (images)
    """

    bands: tuple[Band, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"log-SNR [{band.logsnr_min:.1f}, {band.logsnr_max:.1f}]: {band.loss}"
            for band in self.bands
        ]
        return "\n".join([super().__str__(), *lines])


class Validation:
    """A number for held-out data with its errors, for `train(…, validate=Validation(data))`.

    With a decoder it is the bound in bits/dim, of tokens that in bits/token, whatever loss is
    trained. Without one, as for latents, audio or vectors, it is the loss that is trained, as a
    `LossEstimate` with its parts by log-SNR.

    Every call uses the same noise and the same times, stratified for each example: two points of a
    curve differ only by what was learned between them. Processes share the examples. `condition`
    is as in `evaluate`.

    >>> from vdiff.training import Config
    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> validate = Validation(torch.randint(0, 17, (8, 1, 8, 8)))
    >>> validate(config.objective()).value > 3.0
    True

    Args:
        data: (n, …), as the objective takes it.
        draws: times for each example, in each replicate.
        replicates: independent repetitions, from whose spread the Monte Carlo error comes.
        batch: how many (example, time) pairs the network sees at once.
        seed: of times, noise and masks.
        mask: a function of (x, generator) as in `train`. Each example gets one mask for the whole
            curve, a function of the seed and its place in the data, and the number is of what is
            modelled given the rest. By default nothing is given, also if the training has masks.

    Losses with independent times are measured at one time for each example.
    """

    @validated(rules=[conditions_by_image])
    def __init__(
        self,
        data: Tensor,
        *,
        draws: Count = 8,
        replicates: Count = 2,
        batch: Count = 1024,
        seed: int = 0,
        mask: MaskSampler | None = None,
        condition: Condition = None,
    ) -> None:
        self.data, self.condition = data, dict(condition or {})
        masks = () if mask is None else masks_of_step(mask, data, seed=seed, step=0)
        names = dict(zip(("mask", "absent"), masks, strict=False))
        self.masks = {name: m for name, m in names.items() if m is not None}
        bad, absent = ~data.isfinite(), self.masks.get("absent")
        bad = bad if absent is None else bad & ~absent
        hint = "Validation(data, mask=lambda x, g: (~x.isnan(), x.isnan())) for missing values"
        require(not bad.any(), "data", "be finite where it is not absent", "NaN or infinity", hint)
        self.effort = {"draws": draws, "replicates": replicates, "batch": batch, "seed": seed}

    @validated
    def __call__(self, averaged: Objective) -> Estimate:
        """The total of the bound in bits/dim or bits/token, or the loss without a decoder. NaN if
        the bound of an image is not finite: training logs it and continues."""
        self.check(averaged)
        if averaged.decoder is None:
            return self._loss(averaged)
        share = share_of_rank()
        options: dict[str, Any] = {"plan": FIXED, "share": share, **self.effort}
        options |= {"schedule": averaged.schedule, "decoder": averaged.decoder}
        options |= {"steps": averaged.steps, "condition": self.condition}
        options |= self.masks
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*more than uniform noise")  # a curve begins there
            try:
                return evaluate(averaged.model, self.data, **options).total
            except Exception as error:  # on every process, for they fail together
                known = isinstance(error, NonFiniteBound | OtherProcessFailed)
                if share.sum(torch.tensor([float(not known)])).item() > 0:
                    raise
                return Estimate(math.nan, math.nan, math.nan)

    def check(self, objective: Objective) -> None:
        """Raise where the objective is over tokens and the data hold anything else."""
        process = diffusion_of(objective.model)
        if not process.continuous:
            process.check(self.data, "data", {"absent": self.masks.get("absent")})

    def _loss(self, objective: Objective) -> Estimate:
        draws, seed = self.effort["draws"], self.effort["seed"]
        edges = _edges(objective)

        def work(replicate: int, rows: Tensor) -> State:
            generators = example_generators(seed, replicate, rows)
            shift = torch.cat(
                [torch.rand(1, generator=g, dtype=torch.float64) for g in generators]
            )
            strata = torch.arange(draws, dtype=torch.float64)
            u = ((strata + shift[:, None]) / draws).flatten()
            every = rows.repeat_interleave(draws)
            return {"loss": self._by_band(objective, u, every, generators, edges)}

        run = Run(max(1, self.effort["batch"] // draws), seed, share_of_rank())
        size: Any = {"repetitions": self.effort["replicates"], "rows": len(self.data)}
        with evaluating(objective):
            shapes: dict[str, tuple[int, ...]] = {"loss": (BINS,)}
            parts = run_in_chunks(work, shapes=shapes, key=state_key(), run=run, **size)["loss"]
        dims: Any = self.data[0].numel()
        if self.masks:
            dims = Partial.of(self.data, **{"mask": None, **self.masks}).dims(self.data)
        calls = torch.full((len(self.data),), draws * self.effort["replicates"])
        total = Replicated(parts.sum(2), dims, calls).estimate
        if not diffusion_of(objective.model).continuous:  # only a part of a bound is one of λ
            return total
        bands = tuple(
            Band(high, low, Replicated(parts[..., i], dims, calls).estimate)
            for i, (low, high) in enumerate(pairwise(edges.tolist()))
        )
        return LossEstimate(**vars(total), bands=bands)

    def _by_band(
        self,
        objective: Objective,
        u: Tensor,
        rows: Tensor,
        generators: list[torch.Generator],
        edges: Tensor,
    ) -> Tensor:
        """The loss of the examples at the times of `u`, by range of log-SNR: (examples, BINS)."""
        x, n = self.data[rows.to(self.data.device)], len(generators)
        u = u.to(float64_for(x.device)).to(x.device)
        process = diffusion_of(objective.model)
        eps = process.noise(process.ready(x), None, generators)
        given = select_rows(self.condition, rows, len(self.data))
        masked = {name: m[rows.to(m.device)] for name, m in self.masks.items()}
        t, draws = objective.times(u), {"eps": eps, "condition": given, **masked}
        if process.continuous:
            loss = objective(x, u=u, **draws)
        else:
            loss = objective.bound(x, t=t, **draws).total
        loss = to_float64(loss).cpu().view(n, -1)
        logsnr = to_float64(objective.schedule.mean_logsnr(t)).cpu().view(n, -1)
        share = (logsnr.clamp(edges[0], edges[-1]) - edges[0]) / (edges[-1] - edges[0])
        parts = torch.zeros(n, BINS, dtype=torch.float64)
        return parts.scatter_add_(1, bin_index(share, BINS), loss / loss.shape[1])


def _edges(objective: Objective) -> Tensor:
    """The ends of BINS equal ranges of the finite log-SNR that the loss draws, rising."""
    u = torch.arange(GRID + 1, dtype=torch.float32, device=device_of(objective)) / GRID
    with torch.no_grad():
        logsnr = to_float64(objective.schedule.mean_logsnr(objective.times(u))).cpu()
    low, high = (end.item() for end in logsnr[logsnr.isfinite()].aminmax())
    return torch.linspace(low, high, BINS + 1, dtype=torch.float64)

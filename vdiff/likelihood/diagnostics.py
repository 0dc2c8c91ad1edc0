"""Where the integral lies, how evenly it was drawn, and what to say where a number cannot be
trusted."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff.decoder import Levels, signed
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.measurement import BINS, Evaluation, Measurement
from vdiff.likelihood.pilot import bins_of
from vdiff.parameterization import DIGITS

FEW_EFFECTIVE, LARGE_WEIGHT = 20.0, 0.1
VISIBLE_SHARE, THIN_VISITS, FEW_VISITS = 0.01, 0.05, 30
# a later variance so many times the first stage's says that the first had not seen the tail
HEAVIER = 2.0
EDGE = 1e-3
ENOUGH_VALUES = 1000  # to say of a level that the data lacks it


@dataclass(frozen=True)
class Curve:
    """A quantity by log-SNR: its value in each bin from `logsnr_min` to `logsnr_max`, and the
    standard error over images.

    Values are bits/dim of the bin, so that they add up to the diffusion term.

    >>> curve = Curve(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 4.0]), torch.tensor([0.5, 1.5]), torch.tensor([0.1, 0.1]))
    >>> curve.shares
    tensor([0.2500, 0.7500])
    """

    logsnr_min: Tensor
    logsnr_max: Tensor
    value: Tensor
    error: Tensor

    @property
    def shares(self) -> Tensor:
        """Each bin's share of the integral."""
        return self.value / self.value.sum()


@dataclass(frozen=True)
class Diagnostics:
    """How far a number can be trusted.

    `effective` is (Σ|w|)²/Σw² over all draws, w being one draw of the diffusion term with its
    density divided out: the effective sample size; `largest` the largest |w| over their sum;
    `draws` their number; `curve` the diffusion term by log-SNR.

    >>> one = torch.ones(1)
    >>> Diagnostics(100.0, 0.02, 128, Curve(-one, one, one, one)).effective
    100.0
    """

    effective: float
    largest: float
    draws: int
    curve: Curve


def examine(run: Evaluation, found: Measurement) -> Diagnostics:
    """The diagnostics of a finished run.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> from vdiff.likelihood.measurement import Effort
    >>> from vdiff.likelihood.plan import Plan
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.grid, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> run = Evaluation(integrand, Plan(), Effort())
    >>> examine(run, run()).draws
    256
    """
    total, square, largest = (
        found.weights[:, 0].sum(),
        found.weights[:, 1].sum(),
        found.weights[:, 2].max(),
    )
    draws = found.terms.count.sum().item() * run.draws
    tiny = torch.finfo(torch.float64).tiny
    by_image = found.curve / (found.terms.count[0, :, None] * run.draws) * run.scale
    error = (
        by_image.std(0) / math.sqrt(run.images)
        if run.images > 1
        else torch.full((BINS,), math.nan, dtype=torch.float64)
    )
    edges = run.integrand.base.at(torch.linspace(0, 1, BINS + 1, dtype=torch.float64))[0].cpu()
    curve = Curve(edges[1:].flip(0), edges[:-1].flip(0), by_image.mean(0).flip(0), error.flip(0))
    effective = (
        (total.square() / square).item() if square > 0 else draws
    )  # two equal models differ by nothing, evenly
    return Diagnostics(effective, (largest / total.clamp(min=tiny)).item(), int(draws), curve)


def warnings_of(run: Evaluation, found: Measurement, seen: Diagnostics) -> list[str]:
    """What a reader must know before trusting the number; empty where nothing stands out.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> from vdiff.likelihood.integrand import Integrand
    >>> from vdiff.likelihood.measurement import Effort
    >>> from vdiff.likelihood.plan import Plan
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.grid, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> run = Evaluation(integrand, Plan(), Effort())
    >>> found = run()
    >>> warnings_of(run, found, examine(run, found))
    []
    """
    said = [*_of_data(run.integrand), *_of_rounding(run.integrand), *_of_size(run, found)]
    if seen.effective < min(FEW_EFFECTIVE, 0.1 * seen.draws):
        said.append(
            f"{seen.draws} draws are worth {seen.effective:.0f}: a few of them carry the integral, so "
            "that its error is not known"
        )
    if seen.largest > LARGE_WEIGHT:
        said.append(f"one draw of {seen.draws} makes {seen.largest:.0%} of the diffusion term")
    said.extend(_of_reach(run, seen.draws))
    if found.first is not None and found.terms.replicates > found.first.replicates:
        later = found.terms.variances()[3].sum() / found.first.variances()[3].sum()
        if later > HEAVIER:
            said.append(
                f"the variance grew {later:.1f} times after the first stage, on which the error "
                "rests: raise replicates"
            )
    return said


def _of_reach(run: Evaluation, draws: int) -> list[str]:
    """Parts of the range that the pilot found to matter and the density hardly visits: the bound
    would come out too good."""
    if run.design.left.sum() == 0 or not run.design.evaluations:
        return []
    shares = run.design.best(run.draws) / len(run.design.left)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    reached = to_float64(
        torch.bincount(bins_of(run.design.density.place(u)[0], len(shares)), minlength=len(shares))
    ) / len(u)
    missed = (
        (shares > VISIBLE_SHARE)
        & (reached < THIN_VISITS * shares)
        & (reached * draws < FEW_VISITS)
    )
    if not missed.any():
        return []
    edges = run.integrand.base.at(torch.linspace(0, 1, len(shares) + 1, dtype=torch.float64))[0]
    places = missed.nonzero()[:, 0]
    low, high = edges[places.max() + 1].item(), edges[places.min()].item()
    count, share = (reached[missed].sum() * draws).item(), shares[missed].sum().item()
    return [
        f"the density sends {count:.0f} of {draws} draws to λ between {low:.1f} and {high:.1f}, "
        f"where the pilot found {share:.0%} of the variance: the bound may come out too good, and "
        "its error too small"
    ]


def _of_data(integrand: Integrand) -> list[str]:
    """The likely mistakes about the data's range, which no single batch can tell."""
    data, decoder = integrand.data, integrand.decoder
    low, high = (v.item() for v in signed(data).aminmax())
    if (
        isinstance(decoder, Levels)
        and high < decoder.levels // 2
        and data.numel() >= ENOUGH_VALUES
    ):
        return [
            f"the data has no level above {high} of {decoder.levels - 1}: digits have 17 levels, "
            f"bytes 256; is levels={decoder.levels} right?"
        ]
    if not isinstance(decoder, Levels) and data.ndim > 2 and (low < -1 - EDGE or high > 1 + EDGE):
        return [
            f"the images run from {low:.4g} to {high:.4g}, outside [−1, 1]: 2 x/(levels − 1) − 1 "
            "brings levels there"
        ]
    return []


def _of_size(run: Evaluation, found: Measurement) -> list[str]:
    """A model that is worse than none."""
    decoder, total = run.integrand.decoder, found.terms.mean[3].mean().item() * run.scale
    if (
        len(run.integrand.models) > 1
        or not isinstance(decoder, Levels)
        or total <= math.log2(decoder.levels)
    ):
        return []
    return [
        f"{total:.4g} bits/dim is more than uniform noise over {decoder.levels} levels has, "
        f"{math.log2(decoder.levels):.4g}: is the model trained, does it predict what its "
        "parameterization says, and was it trained on data encoded as this decoder does?"
    ]


def _of_rounding(integrand: Integrand) -> list[str]:
    """What a model predicts, where its output leaves ε̂ without digits at the clean end."""
    said = []
    for index, prediction in integrand.predictions.items():
        level = integrand.sides[index].base.logsnr_max
        what, dtype = prediction.parameterization, prediction.out.dtype
        error = what.rounding(torch.full_like(prediction.logsnr[:1], level), dtype)[1]
        if error > DIGITS:
            said.append(
                f"{what!r} at λ = {level:g} leaves ε̂ with an error of {error:.1g} by rounding in "
                f"{str(dtype).removeprefix('torch.')}: the bound comes out too large; predict v, "
                "or evaluate in float64"
            )
    return said


__all__ = ["Curve", "Diagnostics", "examine", "warnings_of"]

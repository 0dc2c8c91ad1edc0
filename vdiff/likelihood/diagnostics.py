"""The diffusion term by log-SNR, its effective sample size, and warnings about a number that one
cannot trust."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff.decoder import Levels, signed
from vdiff.likelihood._rules import is_path
from vdiff.likelihood.estimate import spread_error
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import bin_index
from vdiff.likelihood.stages import Evaluation
from vdiff.likelihood.tally import BINS, Tally
from vdiff.parameterization import DIGITS

FEW_EFFECTIVE, LARGE_WEIGHT = 20.0, 0.1
VISIBLE_SHARE, THIN_VISITS, FEW_VISITS = 0.01, 0.05, 30
# a first stage missed the tail if the variance of the later ones is so many times its own
HEAVIER = 2.0
EDGE = 1e-3
OF_UNIFORM = 1e-3  # of its bits, that ends and rounding add to uniform noise
ENOUGH_VALUES = 1000  # of data, to conclude that it lacks a level


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The diffusion term by log-SNR: `value` of each bin, in bits/dim, and its standard `error`
    over images. The values add up to the term. Along a path over dimensions, λ is the mean over
    them (`of_mean`).

    >>> low, value = torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.5])
    >>> Curve(logsnr_max=low + 2.0, logsnr_min=low, value=value, error=0.1 * value).shares
    tensor([0.2500, 0.7500])
    """

    logsnr_max: Tensor
    logsnr_min: Tensor
    value: Tensor
    error: Tensor
    of_mean: bool = False

    @property
    def shares(self) -> Tensor:
        """Each bin's share of the integral."""
        return self.value / self.value.sum()


@dataclass(frozen=True)
class Diagnostics:
    """How far one can trust a number.

    Let w be one draw of the diffusion term, divided by its density. Over all `draws`, `effective`
    is the effective sample size (Σ|w|)²/Σw², and `largest` is max |w|/Σ|w|. `curve` is the
    diffusion term by log-SNR.
    """

    effective: float
    largest: float
    draws: int
    curve: Curve


def examine(run: Evaluation, tally: Tally) -> Diagnostics:
    """The diagnostics of a finished run."""
    total, square = (tally.weights[:, i].sum() for i in range(2))
    largest = tally.weights[:, 2].max() / total.clamp(min=torch.finfo(torch.float64).tiny)
    draws = tally.terms.count.sum().item() * run.draws * run.counted / run.images
    by_image = tally.curve / (tally.terms.count[0, :, None] * run.draws) * run.scale
    error = torch.full((BINS,), math.nan, dtype=torch.float64)
    if run.images > 1:
        error = by_image.std(0) / math.sqrt(run.images)
    if run.dims is not None:
        error = spread_error(by_image.T, run.dims)
    edges = run.integrand.mean_levels(torch.linspace(0, 1, BINS + 1, dtype=torch.float64))
    curve = Curve(
        logsnr_max=edges[:-1].flip(0),
        logsnr_min=edges[1:].flip(0),
        value=by_image.mean(0).flip(0),
        error=error.flip(0),
        of_mean=is_path(run.integrand.base),
    )
    # equal models have draws of zero, whose weights are equal
    effective = (total.square() / square).item() if square > 0 else draws
    return Diagnostics(effective, largest.item(), int(draws), curve)


def relative_costs(evaluation: Evaluation, tally: Tally) -> dict[str, float]:
    """Network evaluations for the same error with the first techniques alone, relative to all.

    The pilot does not see the noise of few times in a grid. It is what was measured beyond the
    pilot's last variance, and it is the same for each technique.
    """
    expected = evaluation.fitted.variance
    if not expected:
        return {}
    last = list(expected.values())[-1]
    rest = max(0.0, tally.terms.variances()[1].mean().item() * evaluation.draws - last)
    if last + rest == 0:
        return {}
    return {name: (v + rest) / (last + rest) for name, v in expected.items()}


def warnings_of(run: Evaluation, tally: Tally, trust: Diagnostics) -> list[str]:
    """Reasons not to trust the number, each a sentence."""
    reasons = _of_size(run, tally)
    if run.integrand.process.continuous:
        reasons = [*_of_data(run.integrand), *_of_rounding(run.integrand), *reasons]
    if trust.effective < min(FEW_EFFECTIVE, 0.1 * trust.draws):
        reasons.append(
            f"{trust.draws} draws are worth {trust.effective:.0f}: a few of them carry the "
            "integral, so that its error is not known"
        )
    if trust.largest > LARGE_WEIGHT:
        reasons.append(
            f"one draw of {trust.draws} makes {trust.largest:.0%} of the diffusion term"
        )
    reasons.extend(_of_reach(run, trust.draws))
    if tally.first is not None and tally.terms.replicates > tally.first.replicates:
        later = tally.terms.variances()[3].sum() / tally.first.variances()[3].sum()
        if later > HEAVIER:
            reasons.append(
                f"the variance grew {later:.1f} times after the first stage, on which the error "
                "rests: raise replicates"
            )
    return reasons


def _of_reach(run: Evaluation, draws: int) -> list[str]:
    """Parts of the range that matter by the pilot and that the density hardly visits. The bound
    would come out too good."""
    if run.fitted.left.sum() == 0 or not run.fitted.evaluations:
        return []
    shares = run.fitted.best(run.draws) / len(run.fitted.left)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    bins = bin_index(run.fitted.density.place(u)[0], len(shares))
    reached = to_float64(torch.bincount(bins, minlength=len(shares))) / len(u)
    thin = (reached < THIN_VISITS * shares) & (reached * draws < FEW_VISITS)
    missed = thin & (shares > VISIBLE_SHARE)
    if not missed.any():
        return []
    edges = run.integrand.mean_levels(torch.linspace(0, 1, len(shares) + 1, dtype=torch.float64))
    first, last = missed.nonzero()[:, 0].aminmax()
    low, high = edges[last + 1].item(), edges[first].item()
    count, share = (reached[missed].sum() * draws).item(), shares[missed].sum().item()
    return [
        f"the density sends {count:.0f} of {draws} draws to λ between {low:.1f} and {high:.1f}, "
        f"where the pilot found {share:.0%} of the variance: the bound may come out too good, and "
        "its error too small"
    ]


def _of_data(integrand: Integrand) -> list[str]:
    """Likely mistakes about the range of the data, which no single batch can show."""
    data, decoder = integrand.part.clean(integrand.data), integrand.decoder
    low, high = (v.item() for v in signed(data).aminmax())
    if isinstance(decoder, Levels):
        if high >= decoder.levels // 2 or data.numel() < ENOUGH_VALUES:
            return []
        return [
            f"the data has no level above {high} of {decoder.levels - 1}: digits have 17 levels, "
            f"bytes 256; is levels={decoder.levels} right?"
        ]
    if data.ndim > 2 and (low < -1 - EDGE or high > 1 + EDGE):
        return [
            f"the images run from {low:.4g} to {high:.4g}, outside [−1, 1]: 2 x/(levels − 1) − 1 "
            "brings levels there"
        ]
    return []


def _of_size(run: Evaluation, tally: Tally) -> list[str]:
    """A bound above that of uniform noise."""
    integrand, total = run.integrand, tally.terms.mean[3].mean().item() * run.scale
    values = integrand.process.outcomes(integrand.decoder)
    alone = len(integrand.models) == 1
    if not (alone and values is not None and total > (1 + OF_UNIFORM) * math.log2(values)):
        return []
    what, end = "values", "and does it predict what its parameterization says?"
    if integrand.process.continuous:
        what = "levels"
        end = (
            "does it predict what its parameterization says, and was it trained on data encoded "
            "as this decoder does?"
        )
    return [
        f"{total:.4g} {integrand.process.unit.name} is more than uniform noise over {values} "
        f"{what} has, {math.log2(values):.4g}: is the model trained, {end}"
    ]


def _of_rounding(integrand: Integrand) -> list[str]:
    """An output that leaves ε̂ with few digits at the clean end."""
    reasons = []
    for index, prediction in integrand.predictions.items():
        level = integrand.sides[index].base.logsnr_max
        row, dtype = prediction.parameterization, prediction.output.dtype
        at = torch.full_like(prediction.logsnr.flatten()[:1], level)
        error = row.rounding(at, dtype)[1]
        if error > DIGITS:
            reasons.append(
                f"{row!r} at λ = {level:g} leaves ε̂ with an error of {error:.1g} by rounding in "
                f"{str(dtype).removeprefix('torch.')}: the bound comes out too large; predict v, "
                "or evaluate in float64"
            )
    return reasons

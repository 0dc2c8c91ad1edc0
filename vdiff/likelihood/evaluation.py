"""Bits per dimension of a model on a whole data set, and the difference between two models."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from torch import Tensor

from vdiff._arguments import (
    Condition,
    Model,
    decoder_fits,
    finite_end,
    original,
    synchronised,
)
from vdiff._validate import (
    Batch,
    Constraint,
    Count,
    Number,
    Steps,
    constraints,
    require,
    validated,
)
from vdiff.decoder import Decoder
from vdiff.likelihood.conditions import conditions_by_image
from vdiff.likelihood.integrand import Difference, Integrand, evaluating, finite_images, pair
from vdiff.likelihood.measurement import TOLERANCES, Effort, Evaluation
from vdiff.likelihood.pieces import Progress, Share, State, mark_of
from vdiff.likelihood.plan import Plan
from vdiff.likelihood.protocol import of_model
from vdiff.likelihood.replicated import Replicates
from vdiff.likelihood.report import Comparison, Report, outcome
from vdiff.profile import Profile
from vdiff.schedule import Schedule
from vdiff.weighting._check import divides_table

_PLAN, _ALONE = Plan(), Share()
_ERROR = "a standard error in bits/dim, for instance 0.005"
_CLIPPING = ("clip", "clip_denoised", "clamp", "threshold", "thresholding", "dynamic_threshold")
Tolerance = Annotated[float, Number(at_least=TOLERANCES[0], at_most=TOLERANCES[1], hint=_ERROR)]


def no_clipping(condition: Mapping[str, Any] | None) -> None:
    """A rule: no condition clips x̂."""
    for word, value in (condition or {}).items():
        hint = "a clipped x̂ is another model with another bound: Clipped(model) names it"
        clips = word in _CLIPPING and not isinstance(value, Tensor)
        require(not clips, word, "be left out", value, hint)


def budget_of_tolerance(tolerance: float | None, budget: int | None) -> None:
    """A rule: a budget limits what a tolerance takes."""
    hint = "without one, draws and replicates say how much is drawn"
    given = budget is None or tolerance is not None
    require(given, "budget", "come with tolerance", budget, hint)


def even_draws(draws: int | None, plan: Plan) -> None:
    """A rule: draws come in pairs of antithetic noise."""
    even = draws is None or draws % 2 == 0 or not plan.antithetic
    require(even, "draws", "be even with antithetic noise", draws)


def sides(schedule: Any, decoder: Any, steps: Any) -> None:
    """A rule: each of the two bounds is one of its own schedule, decoder and steps."""
    for one, its_decoder, chain in zip(*map(pair, (schedule, decoder, steps)), strict=True):
        finite_end(one)
        divides_table(one, chain)
        decoder_fits(its_decoder, one)


def same_levels(decoder: Any) -> None:
    """A rule: both decoders are of the same data."""
    one, other = (getattr(each, "levels", None) for each in pair(decoder))
    came, hint = "{!r} and {!r}".format(*pair(decoder)), "their data is not the same"
    require(one == other, "decoder", "be a pair for the same levels", came, hint)


def another(model: Any, other: Any, schedule: Any, decoder: Any, steps: Any) -> None:
    """A rule: the two bounds are not the same."""
    if original(model) is original(other):
        hint = "a copy whose weights changed in place is the same"
        differ = any(one != two for one, two in map(pair, (schedule, decoder, steps)))
        require(differ, "other", "be another model", "the same object", hint)


def _both(hint: Any) -> Constraint:
    """What a type asks of a value, or of each of a pair."""

    def check(value: Any, argument: str, given: Mapping[str, Any]) -> Any:
        for one in pair(value):
            for constraint in constraints(hint):
                constraint(one, argument, given)
        return value

    return check


_RULES = (conditions_by_image, no_clipping, budget_of_tolerance, even_draws)


@validated(rules=[synchronised, finite_end, divides_table, decoder_fits, *_RULES])
def evaluate(
    model: Model,
    data: Batch,
    *,
    schedule: Schedule,
    decoder: Decoder,
    steps: Steps | None = None,
    tolerance: Tolerance | None = None,
    budget: Count | None = None,
    draws: Count | None = None,
    replicates: Replicates = 4,
    plan: Plan = _PLAN,
    batch: Count = 1024,
    seed: int = 0,
    profile: Profile | None = None,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    skip_nonfinite: bool = False,
    condition: Condition = None,
) -> Report:
    """The bound of a model on a whole data set, with honest standard errors.

    The prior is exact, the reconstruction too unless the decoder looks at the network, and the
    diffusion term is sampled as `plan` says: by default at stratified log-SNRs of each image, with
    a density that follows the measured spread of the loss, and control variates whose mean given
    the image is known. A pilot on other draws fits both; the rest is unbiased.

    Each image gets `replicates` independent grids of `draws` times, with noise of its own; the
    spread of an image's replicates is its Monte Carlo error. An image's draws are a function of
    the seed and its place in the data, so that its answer does not depend on the batches or the
    number of processes. Every image counts once. A model may say what was done to it (`Guided`,
    `Clipped`): its `protocol` goes into the report's.

    The model is in evaluation mode meanwhile, for every thread that uses it; TF32 and autocast are
    off, TF32 for the whole process. Beside a training, evaluate a copy of the model.

    With `tolerance` the first stage has `replicates` grids (more for few images), and its variance
    says how many there are in all; the error and its interval are then those of Stein's two-stage
    procedure, exact for normal replicates. A replicate is a mean of `draws`: of few draws with
    rare large errors it is skewed, and the total then comes out too small by a part of the
    tolerance.

    Args:
        model, data, schedule, decoder, steps, condition: as in `elbo`; of the schedule only the
            ends count in continuous time. A condition with a row for each image goes along with
            it: a tensor, an array or a list whose first size is the number of images, also inside
            mappings and lists. `Shared(value)` is a condition that all images share.
        tolerance: the Monte Carlo standard error of the total to reach, in bits/dim.
        budget: at most so many network evaluations after the pilot.
        draws: times in a grid, hence model evaluations per image and replicate: 32, or with a
            tolerance what the pilot finds enough.
        replicates: independent grids per image, at least 2.
        batch: how many (image, time) pairs the model sees at once, but at least one image's grid.
        seed: of times and noise.
        profile: collects ‖ε − ε̂‖² by λ on the way, clustered by image (with a tolerance, by image
            and stage), of all processes.
        progress: called as progress(done, all) with numbers of model evaluations of this process,
            at the start of the pilot first; `all` grows where a tolerance decides on a second
            stage.
        share: this process's part of the images; each gets the whole report.
        checkpoint, resume: receives the state after every batch of images, and takes it up again,
            the profile's gains with it.
        skip_nonfinite: leave out images that hold NaN or infinity, which are refused otherwise;
            their number is in the protocol.
        record: what else belongs to the protocol, such as the decay of averaged weights.

    Raises:
        TypeError, ValueError: where it is not clear which image a condition belongs to.
        ValueError: where the bound of an image is not finite, naming it and the λ; where the
            tolerance is beyond the budget, naming the one that would do; where x̂ would be
            clipped; and as `elbo`.

    >>> from vdiff import Denoiser
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> from vdiff.schedule import Linear
    >>> model = Denoiser(lambda z, logsnr: torch.zeros_like(z), X())
    >>> report = evaluate(model, torch.randint(0, 17, (8, 1, 8, 8)), schedule=Linear(), decoder=Categorical(17), draws=8)
    >>> report.total.value > 4.09
    True
    """
    effort = Effort(draws, replicates, tolerance, budget, batch, seed)
    record, numbers = {**of_model(model), **(record or {})}, None
    if skip_nonfinite:
        whole = len(data)
        data, condition, numbers = finite_images(data, condition or {})
        record["skipped"] = whole - len(data)
    with evaluating(model):
        integrand = Integrand(model, data, schedule, decoder, steps, condition)
        integrand.numbers = integrand.numbers if numbers is None else numbers
        mark = mark_of(record)
        run = Evaluation(integrand, plan, effort, share, profile, progress, checkpoint, mark)
        found = run(resume)
    seen = outcome(run, found, record)
    prior, diffusion, reconstruction, total = seen.estimates
    return Report(prior, diffusion, reconstruction, total, *seen[1:])


@validated(rules=[another, sides, same_levels, *_RULES])
def compare(
    model: Model,
    other: Model,
    data: Batch,
    *,
    schedule: Annotated[Schedule | tuple[Schedule, Schedule], _both(Schedule)],
    decoder: Annotated[Decoder | tuple[Decoder, Decoder], _both(Decoder)],
    steps: Annotated[int | tuple[int | None, int | None] | None, _both(Steps | None)] = None,
    tolerance: Tolerance | None = None,
    budget: Count | None = None,
    draws: Count | None = None,
    replicates: Replicates = 4,
    plan: Plan = _PLAN,
    batch: Count = 1024,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    condition: Condition = None,
) -> Comparison:
    """The bound of `model` minus that of `other`, bits/dim, on the same images, times and noise.

    What an image or a draw does to both cancels, in both errors. Density and controls are fitted
    to the difference.

    Args:
        model, other: two models of the same data.
        schedule, decoder, steps: as in `evaluate`, for both models or as a pair, (the model's, the
            other's). Each bound is then the whole one between its own ends, of its own chain or
            with its own decoder. In continuous time both are drawn at the same λ. Where one is a
            chain, both are drawn at the same t, which cancels less, and the curve by λ is on the
            first's levels.
        data, tolerance, budget, draws, replicates, plan, batch, seed, progress, share, resume,
            checkpoint, record, condition: as in `evaluate`.

    Raises:
        ValueError: as `evaluate`, and for decoders of other levels, whose data is another.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> right, wrong = Lattice(decoder.level_values, [0.5, 0.5]), Lattice(decoder.level_values, [0.3, 0.7])
    >>> comparison = compare(wrong, right, torch.tensor([[0], [1]] * 8), schedule=Linear(), decoder=decoder)
    >>> comparison.difference.interval()[0] > 0
    True
    """
    effort = Effort(draws, replicates, tolerance, budget, batch, seed)
    said = [of_model(one).items() for one in (model, other)]
    record = {
        **{f"{word}, first": value for word, value in said[0]},
        **{f"{word}, second": value for word, value in said[1]},
        **(record or {}),
    }
    with evaluating(model, other):
        integrand = Difference(model, other, data, schedule, decoder, steps, condition)
        mark = mark_of(record)
        run = Evaluation(integrand, plan, effort, share, None, progress, checkpoint, mark)
        found = run(resume)
    seen = outcome(run, found, record)
    return Comparison(seen.estimates[3], *seen[1:5])


__all__ = ["compare", "evaluate"]

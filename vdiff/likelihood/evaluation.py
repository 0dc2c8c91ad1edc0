"""Bits per dimension or token of a model on a whole data set, and the difference between two
models."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated

from vdiff._arguments import Condition, Model
from vdiff._inputs import Batch, MaskShape, Steps
from vdiff._validate import Count, validated
from vdiff.decoder import Decoder
from vdiff.likelihood._bound import bound_of
from vdiff.likelihood._bytes import Bytes, bytes_of_texts
from vdiff.likelihood._models import evaluating
from vdiff.likelihood._rules import (
    another,
    both,
    finite_but_absent,
    no_clipping,
    pair,
    profile_of_one_level,
    same_values,
    without_profile,
)
from vdiff.likelihood.chunks import Progress, Run, Share, State
from vdiff.likelihood.conditions import conditions_by_image
from vdiff.likelihood.difference import Difference
from vdiff.likelihood.integrand import Integrand, finite_images
from vdiff.likelihood.protocol import model_protocol
from vdiff.likelihood.replicated import Replicates
from vdiff.likelihood.report import Comparison, Report, report_of
from vdiff.likelihood.stages import Budget, Evaluation, Tolerance
from vdiff.likelihood.variance_reduction import VarianceReduction
from vdiff.profile import Profile
from vdiff.schedule import Schedule

_PLAN, _ALONE = VarianceReduction(), Share()
PLANNED = {
    field.name: f"an option of the plan: plan=VarianceReduction({field.name}=…)"
    for field in fields(VarianceReduction)
}


@validated(
    rules=[conditions_by_image, no_clipping, finite_but_absent, without_profile, bytes_of_texts],
    elsewhere=PLANNED,
)
def evaluate(
    model: Model,
    data: Batch,
    *,
    schedule: Schedule | None = None,
    decoder: Decoder | None = None,
    steps: Steps | None = None,
    bytes: Bytes | None = None,
    tolerance: Tolerance | None = None,
    budget: Count | None = None,
    draws: Count | None = None,
    replicates: Replicates = 4,
    plan: VarianceReduction = _PLAN,
    batch: Count = 1024,
    seed: int = 0,
    profile: Profile | None = None,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    skip_nonfinite: bool = False,
    mask: MaskShape | None = None,
    absent: MaskShape | None = None,
    condition: Condition = None,
) -> Report:
    """The bound of a model on a whole data set, with standard errors.

        evaluate(model, images, schedule=Cosine(), decoder=Categorical(256), tolerance=0.005)
        evaluate(model, texts, tolerance=0.01, bytes=[len(text.encode()) for text in documents])

    The prior is exact, and so is the reconstruction unless the decoder uses the network. The
    diffusion term is sampled with the techniques of `plan`, by default at stratified log-SNRs of
    each image, with a fitted density and control variates. A pilot with draws of its own fits
    them, so that the estimate is unbiased.

    Each image gets `replicates` independent grids of `draws` times, with noise of its own. Their
    spread is the image's Monte Carlo error. An image's draws depend on the seed and its place in
    the data, not on batches or processes. With `tolerance` the number of grids follows from the
    variance of a first stage (Stein's two-stage procedure, whose interval is exact for normal
    replicates). With few draws and rare large errors the interval is too narrow, and the estimate
    is biased low by a part of the tolerance.

    Meanwhile the model is in evaluation mode, for every thread that uses it, and TF32 is off in
    the whole process. During a training, evaluate a copy of the model.

    Args:
        model, data, schedule, decoder, steps: as in `elbo`; in continuous time the schedule's ends
            alone count, or the path of one over dimensions. An `Objective` is a model too: it has
            the schedule, decoder and steps that are not given. Tokens need no schedule: λ then
            runs from 15 to −15. A model's attribute `protocol` goes into the report's.
        bytes: of texts, the bytes counted in them: a whole number for each text, or one for all.
            The report then has `bits_per_byte`. Count those of the modelled tokens.
        tolerance: the Monte Carlo standard error of the total to reach, in bits/dim or, over
            tokens, bits/token.
        budget: with a tolerance, at most so many network evaluations after the pilot.
        draws: times in a grid: 32, or with a tolerance what the pilot suggests.
        replicates: independent grids per image, at least 2; with a tolerance those of the first
            stage, or more for few images.
        plan: the techniques of variance reduction.
        batch: how many (image, time) pairs the model sees at once, but at least one image's grid.
        seed: of times and noise.
        profile: collects ‖ε − ε̂‖² by λ, of all processes, clustered by image (with a tolerance, by
            image and stage). Not of tokens.
        progress: called as progress(done, total) with numbers of network evaluations of this
            process, first at the start of the pilot. A tolerance may raise the total later.
        share: this process's part of the images. Each process gets the whole report.
        checkpoint, resume: `checkpoint` receives the state after every batch of images; `resume`
            continues from such a state, with what the profile had collected.
        skip_nonfinite: leave out images that hold NaN or infinity, which are refused otherwise;
            their number is in the protocol.
        record: what else belongs to the protocol, such as the decay of averaged weights.
        mask, absent: as in `elbo`, with a row for each image, or of one image and shared. The
            numbers are then bits per modelled dimension of all images, a ratio of sums with the
            error of a ratio: of −log p(x_modelled | x_given). What is absent may be NaN, and an
            image without a modelled dimension counts nothing.
        condition: as in `elbo`. A tensor, an array or a list whose first size is the number of
            images has one row for each image, also inside mappings and lists. `Shared(value)` is a
            condition that all images share.

    Raises:
        TypeError, ValueError: where it is not clear which image a condition belongs to.
        ValueError: where the bound of an image is not finite, naming it and its λ; where the
            tolerance is beyond the budget, naming the one that would do; where x̂ would be
            clipped; and as `elbo`.

    >>> from vdiff import Denoiser
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> from vdiff.schedule import Linear
    >>> model = Denoiser(lambda z, logsnr: torch.zeros_like(z), X())
    >>> images, decoder = torch.randint(0, 17, (8, 1, 8, 8)), Categorical(17)
    >>> report = evaluate(model, images, schedule=Linear(), decoder=decoder, draws=8)
    >>> report.total.value > 4.09
    True
    """
    masks = {"mask": mask, "absent": absent}
    model, schedule, decoder, steps = bound_of(model, schedule, decoder, steps, data, **masks)
    profile_of_one_level(schedule, profile)
    record, kept = model_protocol(model) | dict(record or {}), None
    if skip_nonfinite:
        kept = finite_images(data, absent)
        record["skipped"] = len(data) - len(kept)
    limits = Budget(draws, replicates, tolerance, budget)
    run = Run(batch, seed, share, progress, checkpoint, resume)
    with evaluating(model, schedule):
        integrand = Integrand(
            model, data, schedule, decoder, steps, condition, kept, **masks,
            any_order=plan.any_order,
        )  # fmt: skip
        evaluation = Evaluation(integrand, plan, limits, run, profile, record)
        tally = evaluation()
    return report_of(evaluation, tally, bytes)


@validated(
    rules=[another, conditions_by_image, no_clipping, finite_but_absent, bytes_of_texts],
    elsewhere=PLANNED,
)
def compare(
    model: Model,
    other: Model,
    data: Batch,
    *,
    schedule: Annotated[
        Schedule | tuple[Schedule | None, Schedule | None] | None, both(Schedule | None)
    ] = None,
    decoder: Annotated[
        Decoder | tuple[Decoder | None, Decoder | None] | None, both(Decoder | None)
    ] = None,
    steps: Annotated[int | tuple[int | None, int | None] | None, both(Steps | None)] = None,
    bytes: Bytes | None = None,
    tolerance: Tolerance | None = None,
    budget: Count | None = None,
    draws: Count | None = None,
    replicates: Replicates = 4,
    plan: VarianceReduction = _PLAN,
    batch: Count = 1024,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    mask: MaskShape | None = None,
    absent: MaskShape | None = None,
    condition: Condition = None,
) -> Comparison:
    """The bound of `model` minus that of `other`, bits/dim or over tokens bits/token, on the same
    images, times and noise.

    What an image or a draw does to both cancels, in both errors. Density and controls are fitted
    to the difference.

    Args:
        model, other: two models of the same data.
        schedule, decoder, steps: as in `evaluate`, for both models or as a pair (the model's, the
            other's). Each bound is the whole one between its own ends, of its own chain or with
            its own decoder. In continuous time both are drawn at the same λ. Where one is a
            chain or a path over dimensions, both are drawn at the same t, which cancels less, and
            the curve by λ is on the first schedule.
        bytes: as in `evaluate`; the comparison then has `bits_per_byte`.
        data, tolerance, budget, draws, replicates, plan, batch, seed, progress, share, resume,
            checkpoint, record, mask, absent, condition: as in `evaluate`.

    Raises:
        ValueError: as `evaluate`, and for decoders of other levels, whose data is another.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> right = Lattice(decoder.level_values, [0.5, 0.5])
    >>> wrong = Lattice(decoder.level_values, [0.3, 0.7])
    >>> images = torch.tensor([[0], [1]] * 8)
    >>> comparison = compare(wrong, right, images, schedule=Linear(), decoder=decoder)
    >>> comparison.difference.interval()[0] > 0
    True
    """
    masks = {"mask": mask, "absent": absent}
    schedules, decoders, chains = map(pair, (schedule, decoder, steps))
    first = bound_of(model, schedules[0], decoders[0], chains[0], data, **masks)
    second = bound_of(other, schedules[1], decoders[1], chains[1], data, **masks)
    same_values(first.model, second.model, (first.decoder, second.decoder))
    model, other = first.model, second.model
    both = {"first": model_protocol(model), "second": model_protocol(other)}
    facts = {f"{word}, {which}": v for which, facts in both.items() for word, v in facts.items()}
    limits = Budget(draws, replicates, tolerance, budget)
    run = Run(batch, seed, share, progress, checkpoint, resume)
    with evaluating(model, other, first.schedule, second.schedule):
        integrand = Difference(
            model, other, data, (first.schedule, second.schedule), (first.decoder, second.decoder),
            (first.steps, second.steps), condition, **masks, any_order=plan.any_order,
        )  # fmt: skip
        evaluation = Evaluation(integrand, plan, limits, run, record={**facts, **(record or {})})
        tally = evaluation()
    report = report_of(evaluation, tally, bytes)
    costs, doubts = report.relative_costs, report.warnings
    per_byte = None if bytes is None else report.bits_per_byte
    total, protocol = report.total, report.protocol
    return Comparison(total, protocol, report.diagnostics, costs, doubts, per_byte)

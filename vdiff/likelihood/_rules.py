"""What an evaluation of the bound asks of its arguments together."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._arguments import dims_fit_data, original
from vdiff._diffusion import diffusion_of
from vdiff._inputs import finite_values
from vdiff._known_range import warn_beyond
from vdiff._partial import Partial
from vdiff._validate import Constraint, Given, Instance, of_type, require
from vdiff.profile import Profile
from vdiff.schedule import Schedule

_CLIPPING = ("clip", "clip_denoised", "clamp", "threshold", "thresholding", "dynamic_threshold")
OF_WHOLE = "it takes whole examples: evaluate(…, mask=…) and ode_likelihood take masks"
MASKS = dict.fromkeys(("mask", "absent"), OF_WHOLE)
NEAR = 1e-6  # a difference of two ends in λ that is rounding


def pair(value: Any) -> tuple[Any, Any]:
    """One value for both models, or one for each.

    >>> pair(3), pair((3, None))
    ((3, 3), (3, None))
    """
    return value if isinstance(value, tuple) and len(value) == 2 else (value, value)


def no_clipping(condition: Mapping[str, Any] | None) -> None:
    """Rule: no condition clips x̂."""
    for word, value in (condition or {}).items():
        hint = "a clipped x̂ is another model with another bound: Clipped(model) names it"
        clips = word in _CLIPPING and not isinstance(value, Tensor)
        require(not clips, word, "be left out", value, hint)


def another(model: Any, other: Any, schedule: Any, decoder: Any, steps: Any) -> None:
    """Rule: the two bounds differ."""
    hint = "a copy whose weights changed in place is the same"
    pairs = (original(model), original(other)), *map(pair, (schedule, decoder, steps))
    require(any(a != b for a, b in pairs), "other", "be another model", "the same object", hint)


def same_values(model: Any, other: Any, decoders: tuple[Any, Any]) -> None:
    """Rule: two models are of the same values."""
    first, second = map(diffusion_of, (model, other))
    values = [p.outcomes(d) for p, d in zip((first, second), decoders, strict=True)]
    same, hint = values[0] == values[1], "their data is not the same"
    came = "{!r} and {!r}".format(*decoders)
    if not (first.continuous and second.continuous):
        names = ["real numbers" if p.continuous else repr(p) for p in (first, second)]
        same = same and not (first.continuous or second.continuous)
        require(same, "other", "be over the same tokens", " and ".join(names), hint)
    require(same, "decoder", "be a pair for the same levels", came, hint)


def without_profile(model: Any, profile: Profile | None) -> None:
    """Rule: a profile collects errors of real numbers."""
    what, hint = "be left out for tokens", "the report's diagnostics have the bound by log-SNR"
    require(profile is None or diffusion_of(model).continuous, "profile", what, "a Profile", hint)


def both(hint: Any) -> Constraint:
    """The constraints of a type, on a value or on each of a pair."""

    def check(value: Any, argument: str, given: Mapping[str, Any]) -> Any:
        for each in pair(value):
            of_type(hint, each, argument, given)
        return value

    return check


def is_path(schedule: Schedule) -> bool:
    """Whether the bound depends on a schedule between its ends in continuous time too."""
    return schedule.over_dims or schedule.depends_on_data


def known_range(model: Any, schedule: Schedule, steps: int | None = None) -> None:
    """Rule: warn where λ lies beyond what the model knows or was trained on."""
    warn_beyond(original(model), schedule, steps, evaluation=True)


def schedule_fits(schedule: Schedule, data: Tensor) -> None:
    """Rule: a schedule has one λ(t) for all images, or one for each of their dimensions."""
    hint = "a shift for each image is that of a batch: evaluate the images of one shift together"
    one = schedule.shared or is_path(schedule)
    require(one, "schedule", "be one for all images", schedule, hint)
    dims_fit_data(schedule, data)


def something_modelled(x: Tensor, mask: Tensor | None, absent: Tensor | None) -> None:
    """Rule: a mask leaves something to model."""
    modelled = Partial.of(x, mask, absent).modelled
    what = "leave a modelled dimension in one example or more"
    some = modelled is None or bool(modelled.any())
    require(some, "absent" if mask is None else "mask", what, "none")


def one_level(schedule: Schedule) -> None:
    """Rule: all dimensions and examples have one λ."""
    hint = "between the same ends a schedule with one λ has the same expectation"
    require(schedule.shared, "schedule", "have one λ for all dimensions", schedule, hint)


def finite_but_absent(
    data: Tensor, mask: Tensor | None, absent: Tensor | None, skip_nonfinite: bool = False
) -> None:
    """Rule: with a mask, data is finite outside of what is absent."""
    if (mask is not None or absent is not None) and not skip_nonfinite:
        finite_values(Partial.of(data, None, absent).clean(data), "data", {})


def profile_of_one_level(schedule: Schedule, profile: Profile | None) -> None:
    """Rule: a profile is by one λ for each example."""
    hint = "each dimension has its own λ there: the report's diagnostics have the curve"
    what = "be left out for a schedule over dimensions"
    require(profile is None or not is_path(schedule), "profile", what, "a Profile", hint)


def _several(paths: Any, argument: str, given: Given) -> list[Schedule]:
    """Two schedules or more."""
    Instance((Sequence,), "a list of schedules")(paths, argument, given)
    require(len(paths) > 1, argument, "be two schedules or more", len(paths), "[joint, by_row]")
    return [_path(path, argument, given) for path in paths]


def _path(path: Any, argument: str, given: Given) -> Schedule:
    schedule: Schedule = of_type(Schedule, path, argument, given)
    hint = "its ends and its latent's KL move with the data: compare(…, schedule=(a, b))"
    fixed = "not depend on the data"
    require(not schedule.depends_on_data, argument, fixed, type(schedule).__name__, hint)
    return schedule


def same_ends(data: Tensor, paths: Sequence[Schedule]) -> None:
    """Rule: the paths have the same ends in each dimension."""
    for path in paths:
        schedule_fits(path, data)
    first, *others = (_ends(path, data.ndim) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        off = max((a - b).abs().max().item() for a, b in zip(first, other, strict=True))
        hint = "between other ends the bound is another, for the exact model too"
        require(off < NEAR, "paths", "have the same ends", f"{path!r}, {off:.3g} off", hint)


def _ends(path: Schedule, ndim: int) -> list[Tensor]:
    ends = path.ends_of(ndim)
    return [torch.as_tensor(end, dtype=torch.float64).detach().cpu() for end in ends]


Paths = Annotated[Sequence[Schedule], _several]

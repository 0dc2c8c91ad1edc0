"""Between which log-SNRs a model was trained, and which its `time=` knows: a warning beyond."""

import functools
import math
import warnings
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from vdiff.denoiser import Denoiser
from vdiff.errors import under_functorch, validation_enabled
from vdiff.gaussian import as_float64, device_of, to_float64
from vdiff.schedule import Schedule

Ends = tuple[float, float]
BEYOND = 0.1  # in λ, how far beyond what it knows a network may be asked without a warning
MANY = 100_000  # steps of a chain whose levels are looked at one by one
_WARNED: "weakref.WeakKeyDictionary[nn.Module, set[object]]" = weakref.WeakKeyDictionary()


def note_training(model: object, schedule: Schedule, loss: Tensor) -> None:
    """Have the backward pass of a loss note on its model between which λ it was trained."""
    model = getattr(model, "module", getattr(model, "_orig_mod", model))  # within DDP, compiled
    trains = validation_enabled() and loss.requires_grad and not under_functorch(loss)
    if trains and isinstance(model, Denoiser) and model.training and not _noted(model, schedule):
        note = functools.partial(_note, model, schedule)  # a pickle of the loss leaves it out
        loss.register_hook(unserializable_hook(note))  # type: ignore[no-untyped-call]


def _noted(model: Denoiser, schedule: Schedule) -> bool:
    """Whether ends that are numbers are noted already."""
    (high, low), (least, most) = schedule.ends(), model.trained or (math.inf, -math.inf)
    numbers = all(isinstance(end, float) for end in (high, low, least, most))
    return numbers and bool(least <= low and high <= most)


def _note(model: Denoiser, schedule: Schedule, gradient: Tensor) -> None:
    widen_trained(model, *schedule.ends())


def widen_trained(model: object, high: Tensor | float, low: Tensor | float) -> None:
    """Note that a model was trained between λ_min and λ_max too. Learned ends stay tensors: no
    value is read.
    """
    if not isinstance(model, Denoiser):
        return
    least, most = model.trained or (low, high)
    if isinstance(low, Tensor) or isinstance(least, Tensor):
        low, high, least, most = (torch.as_tensor(end) for end in (low, high, least, most))
        model.trained = torch.minimum(low, least), torch.maximum(high, most)
    else:
        model.trained = min(low, least), max(high, most)


def warn_beyond(
    model: object,
    schedule: Schedule,
    steps: int | None = None,
    *,
    evaluation: bool = False,
) -> None:
    """Warn, once for each model and ends, where a schedule asks for log-SNRs that the model's time
    does not know. In an evaluation, warn also of log-SNRs that it was not trained on. A call that
    records no gradient is an evaluation."""
    if not isinstance(model, nn.Module):
        return
    evaluation = evaluation or not (model.training and torch.is_grad_enabled())
    ends = id(schedule) if schedule.learns_ends else schedule.ends()
    key = ends, steps, getattr(model, "trained", None) if evaluation else ()
    seen = _WARNED.setdefault(model, set())
    if key in seen:
        return
    seen.add(key)
    place = device_of(schedule)
    if "meta" in (place.type, device_of(model).type):
        return
    with torch.no_grad():
        first = as_float64(0.0 if steps is None else 1 / steps, place)
        asked = schedule.logsnr_min, schedule(first).item()
        _warn(model, asked, lambda known: _share(schedule, steps, known), evaluation)


def warn_beyond_levels(model: object, levels: Tensor) -> None:
    """Warn where a sampler visits log-SNRs that the model's time does not know."""
    if isinstance(model, nn.Module):
        asked = levels[0].item(), levels[-1].item()
        _warn(model, asked, lambda known: _mean(_outside(levels, known)), False)


def _warn(
    model: nn.Module,
    asked: Ends,
    share: Callable[[Ends], float],
    evaluation: bool,
) -> None:
    for module in list(model.modules()):
        found = [
            (
                one.logsnr_range,
                f"has time={type(one).__name__}, which knows",
                "give both the same ends",
            )
            for one in vars(module).values()
            if isinstance(getattr(one, "logsnr_range", None), tuple)
        ]
        if evaluation and isinstance(module, Denoiser) and module.trained is not None:
            low, high = module.trained
            hint = "evaluate it between the ends of its training"
            found.append(((float(low), float(high)), "was trained on", hint))
        for known, what, hint in found:
            if asked[0] < known[0] - BEYOND or asked[1] > known[1] + BEYOND:
                told = f"λ from {known[0]:.4g} to {known[1]:.4g}"
                came = f"is asked from {asked[0]:.4g} to {asked[1]:.4g}"
                outside = f"{100 * share(known):.3g} % of the draws lie outside"
                text = f"the network {what} {told}, and {came}: {outside} ({hint})"
                warnings.warn(text, stacklevel=5)


def _outside(levels: Tensor, known: Ends) -> Tensor:
    return (levels < known[0] - BEYOND) | (levels > known[1] + BEYOND)


def _mean(bad: Tensor) -> float:
    return bad.double().mean().item()


def _share(schedule: Schedule, steps: int | None, known: Ends) -> float:
    """The share of a schedule's draws outside a range."""
    place = device_of(schedule)
    if steps is not None and steps <= MANY:
        t = to_float64(torch.arange(1, steps + 1, device=place)) / steps
        return _mean(_outside(schedule(t), known))
    within = max(known[0], schedule.logsnr_min), min(known[1], schedule.logsnr_max)
    levels = torch.stack([as_float64(end, place) for end in within])
    last, first = schedule.inverse(levels, clamp=True).tolist()
    return float(first + 1 - last)

"""Between which log-SNRs a model was trained, and which its `time=` can tell apart: a warning
beyond. A range is (λ_max, λ_min)."""

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from vdiff._precision import as_float64, device_of, to_float64
from vdiff.denoiser import Denoiser, Range
from vdiff.discrete import TokenDenoiser
from vdiff.errors import under_functorch, validation_enabled
from vdiff.schedule import Schedule
from vdiff.schedule.over_dims import OverDims

MARGIN = 0.1  # in λ, how far outside its range a network may be called without a warning
TRAINED = Denoiser | TokenDenoiser  # models that know the range of their training
MANY = 100_000  # steps of a chain whose times are counted one by one
_WARNED: "weakref.WeakKeyDictionary[nn.Module, set[object]]" = weakref.WeakKeyDictionary()


def note_training(model: object, schedule: Schedule, loss: Tensor) -> None:
    """Have the backward pass of a loss note on its model between which λ it was trained."""
    model = getattr(model, "module", getattr(model, "_orig_mod", model))  # within DDP, compiled
    trains = validation_enabled() and loss.requires_grad and not under_functorch(loss)
    if trains and isinstance(model, TRAINED) and model.training and not _noted(model, schedule):
        note = functools.partial(_note, model, schedule)  # a pickle of the loss leaves it out
        loss.register_hook(unserializable_hook(note))  # type: ignore[no-untyped-call]


def _noted(model: TRAINED, schedule: Schedule) -> bool:
    """Whether ends that are numbers are noted already."""
    if schedule.learns_ends or model.trained is None:
        return False
    (high, low), (most, least) = schedule.ends(), model.trained
    numbers = all(isinstance(end, float) for end in (least, most))
    return numbers and bool(least <= low and high <= most)


def _note(model: TRAINED, schedule: Schedule, gradient: Tensor) -> None:
    widen_trained(model, *schedule.ends())


def widen_trained(model: object, logsnr_max: Tensor | float, logsnr_min: Tensor | float) -> None:
    """Note that a model was trained in this range too. Learned ends stay tensors: no value is
    read."""
    if not isinstance(model, TRAINED):
        return
    most, least = model.trained or (logsnr_max, logsnr_min)
    ends = logsnr_max, most, logsnr_min, least
    if any(isinstance(end, Tensor) for end in ends):
        high, most, low, least = map(torch.as_tensor, ends)
        model.trained = torch.maximum(high, most), torch.minimum(low, least)
    else:
        model.trained = max(ends), min(ends)


def warn_beyond(
    model: object, schedule: Schedule, steps: int | None = None, *, evaluation: bool = False
) -> None:
    """Warn, once for each model and ends, where a schedule leaves the range of the model's time.
    In an evaluation, also where it leaves the range of the training. A call that records no
    gradient is an evaluation."""
    if not isinstance(model, nn.Module):
        return
    evaluation = evaluation or not (model.training and torch.is_grad_enabled())
    ends = id(schedule) if schedule.learns_ends else schedule.ends()
    key = ends, steps, getattr(model, "trained", None) if evaluation else ()
    warned = _WARNED.setdefault(model, set())
    if key in warned:
        return
    device = device_of(schedule)
    if "meta" in (device.type, device_of(model).type):
        return
    warned.add(key)
    with torch.no_grad():
        first = as_float64(0.0 if steps is None else 1 / steps, device)
        start = schedule(first).item() if schedule.shared else schedule.logsnr_max
        visited = start, schedule.logsnr_min
        _warn(model, visited, lambda limits: _share(schedule, steps, limits), evaluation)


def warn_beyond_grid(model: object, logsnr: Tensor) -> None:
    """Warn, once for each model and ends, where a sampler's levels leave the range of the model's
    time or of its training."""
    if not isinstance(model, nn.Module):
        return
    visited = logsnr.max().item(), logsnr.min().item()
    key = "levels", *visited, getattr(model, "trained", None)
    warned = _WARNED.setdefault(model, set())
    if key not in warned:
        warned.add(key)
        _warn(model, visited, lambda limits: _share_outside(logsnr, limits), True)


def _warn(
    model: nn.Module, visited: Range, share: Callable[[Range], float], evaluation: bool
) -> None:
    for limits, what, hint in _ranges(model, evaluation):
        if visited[0] > limits[0] + MARGIN or visited[1] < limits[1] - MARGIN:
            text = (
                f"the network {what} λ from {limits[1]:.4g} to {limits[0]:.4g}, and is called "
                f"with λ from {visited[1]:.4g} to {visited[0]:.4g}: {100 * share(limits):.3g} % "
                f"of the draws lie outside ({hint})"
            )
            warnings.warn(text, stacklevel=5)


def _ranges(model: nn.Module, evaluation: bool) -> Iterator[tuple[Range, str, str]]:
    """Each range of the model's times and of its training, with words for it and a hint."""
    for module in list(model.modules()):
        for time in vars(module).values():
            limits = getattr(time, "logsnr_range", None)
            if isinstance(limits, tuple):
                what = f"has time={type(time).__name__}, which knows"
                yield (max(limits), min(limits)), what, "give both the same ends"
        if evaluation and isinstance(module, TRAINED) and module.trained is not None:
            limits = [float(end) for end in module.trained]
            hint = "use it between the ends of its training"
            yield (max(limits), min(limits)), "was trained on", hint


def _share_outside(logsnr: Tensor, limits: Range) -> float:
    outside = (logsnr > limits[0] + MARGIN) | (logsnr < limits[1] - MARGIN)
    return outside.double().mean().item()


def _share(schedule: Schedule, steps: int | None, limits: Range) -> float:
    """The share of a schedule's draws outside a range."""
    device = device_of(schedule)
    if isinstance(schedule, OverDims):
        t = torch.linspace(0, 1, 101, dtype=torch.float64)
        lines = [logsnr for logsnr, _ in schedule.curves(t).values()]
        return _share_outside(torch.stack(lines), limits)
    if not schedule.shared:
        schedule = schedule.get_submodule("schedule")  # type: ignore[assignment]
    if steps is not None and steps <= MANY:
        t = to_float64(torch.arange(1, steps + 1, device=device)) / steps
        return _share_outside(schedule(t), limits)
    within = min(limits[0], schedule.logsnr_max), max(limits[1], schedule.logsnr_min)
    ends = torch.stack([as_float64(end, device) for end in within])
    first, last = schedule.inverse(ends, clamp=True).tolist()
    return float(first + 1 - last)

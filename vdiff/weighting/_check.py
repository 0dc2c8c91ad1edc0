"""Checks of a weighting: its values, and its chain."""

import types
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from vdiff._precision import device_of
from vdiff._validate import require
from vdiff.errors import InvalidValue
from vdiff.schedule import Schedule, Tabulated
from vdiff.schedule._check import refuse, returned

SPAN = 40.0  # |λ| up to which a weighting is checked
_CHECKED: "weakref.WeakSet[Callable[[Tensor], Tensor]]" = weakref.WeakSet()


def check_values(
    weighting: Callable[[Tensor], Tensor], logsnr_max: float, logsnr_min: float, hint: str = ""
) -> None:
    """Raise unless a weighting is finite, nonnegative and (batch,) → (batch,) between two
    log-SNRs. Reads values."""
    device = device_of(weighting)
    if device.type == "meta":
        return
    with torch.no_grad():
        logsnr = torch.linspace(logsnr_min, logsnr_max, 1001, dtype=torch.float64, device=device)
        w = weighting(logsnr)
    returned(w, logsnr, "weighting", word="logsnr")
    bad = ~(torch.isfinite(w) & (w >= 0))
    what = "be finite and at least 0"
    refuse(bad, "weighting", what, w, lambda i: f"λ = {logsnr[i]:g}", hint)


def sound_on_cpu(x: Tensor, weighting: Callable[[Tensor], Tensor], schedule: Schedule) -> None:
    """Rule: a plain function is a weighting between the ends of the schedule. Each function is
    checked once, on a CPU only, for its values are read."""
    plain = isinstance(weighting, types.FunctionType) and weighting not in _CHECKED
    if x.device.type == "cpu" and plain:
        check_values(weighting, schedule.logsnr_max, lowest(schedule))
        _CHECKED.add(weighting)


def same_chain(weighting: object, steps: int | None) -> None:
    """Rule: the plain loss of a chain is used on that chain."""
    own = getattr(weighting, "steps", None) if hasattr(weighting, "weight_at") else None
    if own not in (None, steps):
        hint = "it is the plain loss of that chain"
        raise InvalidValue("steps", f"be {own}, as in {weighting!r}", steps, hint)


def divides_table(schedule: Schedule, steps: int | None) -> None:
    """Rule: the steps of a table divide into `steps`."""
    if steps is not None and isinstance(schedule, Tabulated):
        own = schedule.steps
        hint = f"a table of {own + 1} log-SNRs has {own} steps; the first log-SNR is the decoder's"
        require(own % steps == 0, "steps", f"divide the {own} steps of the table", steps, hint)


def lowest(schedule: Schedule) -> float:
    """The least λ of a schedule at which a weighting is checked."""
    return -SPAN if schedule.reaches_noise else schedule.logsnr_min

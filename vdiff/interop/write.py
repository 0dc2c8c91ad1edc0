"""The scheduler of diffusers for a model that was trained here."""

import math
from typing import Any

import torch

from vdiff._precision import to_float64
from vdiff._validate import require, validated
from vdiff.denoiser import Denoiser, TableStep, edm_time
from vdiff.errors import InvalidValue
from vdiff.extras import extra
from vdiff.gaussian import alpha, sigma
from vdiff.interop.kit import FlowStep, Output
from vdiff.interop.options import PREDICTIONS, VARIANCES
from vdiff.parameterization import Flow, V
from vdiff.schedule import Karras, OptimalTransport, Schedule, Shifted, Tabulated

CLOSE = 1e-5  # error of α and σ that a table of float32 may have


@validated
def to_diffusers(model: Denoiser, schedule: Schedule) -> Any:
    """The scheduler of diffusers with which a pipeline samples from a model that was trained here.

        DDPMPipeline(unet=model.network, scheduler=to_diffusers(model, schedule))

    A `Tabulated` schedule is a DDPMScheduler, rectified flow a FlowMatchEulerDiscreteScheduler,
    and EDM's grid an EDMEulerScheduler. Other schedulers of a family are made of it:
    `DPMSolverMultistepScheduler.from_config(scheduler.config)`. Samples are not clipped, because
    the bound is that of the model as it is.

    Raises InvalidValue for what no scheduler can say: another schedule, target or time, a table
    that float32 β cannot hold.

    >>> from vdiff.parameterization import Eps
    >>> from vdiff.schedule import Cosine
    >>> to_diffusers(Denoiser(lambda z, logsnr: z, Eps()), Cosine())
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidValue: to_diffusers: argument 'schedule' must be Tabulated, ...
    """
    target, time = model.parameterization, model.time
    inner, shift = schedule, 0.0
    if isinstance(schedule, Shifted):
        one = "have one shift for all examples"
        require(schedule.shared, "schedule", one, schedule, "a pipeline has one scheduler for all")
        inner, shift = schedule.schedule, float(schedule.shift)
    if isinstance(schedule, Tabulated):
        settings = _table_settings(model, schedule)
        scheduler = _diffusers().DDPMScheduler(**settings, clip_sample=False)
        _check_table(scheduler, schedule)
        return scheduler
    if isinstance(inner, OptimalTransport) and isinstance(target, Flow):
        if not isinstance(time, FlowStep):
            raise InvalidValue("model.time", "be FlowStep()", time, "a pipeline passes 1000 σ")
        hint = "a pipeline takes ε − x"
        require(not _is_negative(model), "model.output", "keep its sign", model.output, hint)
        settings = {"num_train_timesteps": time.steps, "shift": math.exp(-shift / 2)}
        return _diffusers().FlowMatchEulerDiscreteScheduler(**settings)
    if isinstance(schedule, Karras) and isinstance(target, V):
        require(time is edm_time, "model.time", "be edm_time", time, "a pipeline passes ¼ log σ")
        return _diffusers().EDMEulerScheduler(
            sigma_min=schedule.sigma_min,
            sigma_max=schedule.sigma_max,
            sigma_data=target.sigma_data,
            rho=schedule.rho,
            prediction_type="epsilon" if _is_negative(model) else "v_prediction",
        )
    what = "be Tabulated, Karras with V(σ_data), or OptimalTransport with Flow()"
    hint = "a pipeline knows no other: vdiff.sample takes any"
    raise InvalidValue("schedule", what, f"{schedule!r} with {target!r}", hint)


def _diffusers() -> Any:
    with extra("diffusers"):
        import diffusers
    return diffusers


def _table_settings(model: Denoiser, schedule: Tabulated) -> dict[str, Any]:
    """The arguments of a DDPMScheduler; raises for what it cannot say."""
    own = [
        name
        for name, target in PREDICTIONS.items()
        if repr(target) == repr(model.parameterization)
    ]
    known = bool(own) and own[0] != "flow_prediction" and not _is_negative(model)
    what = "predict ε, x or v for a table"
    require(known, "model.parameterization", what, model.parameterization)
    same = isinstance(model.time, TableStep) and torch.equal(
        model.time.schedule.table.cpu(), schedule.table.cpu()
    )
    hint = "a pipeline passes the step of the table"
    require(same, "model.time", "be TableStep(schedule) of this schedule", model.time, hint)
    kinds = [name for name, kind in VARIANCES.items() if repr(kind) == repr(model.variance)]
    require(bool(kinds), "model.variance", f"be one of {list(VARIANCES.values())}", model.variance)
    log_signal = torch.nn.functional.logsigmoid(schedule.table.cpu())
    steps = log_signal.diff(prepend=log_signal.new_zeros(1))
    return {
        "num_train_timesteps": len(steps),
        "trained_betas": (-torch.expm1(steps)).tolist(),
        "prediction_type": own[0],
        "variance_type": kinds[0],
        "timestep_spacing": "trailing",  # from the noisiest level
    }


def _check_table(scheduler: Any, schedule: Tabulated) -> None:
    """Raise unless products in float32 give the schedule's levels."""
    came, table = to_float64(scheduler.alphas_cumprod), schedule.table.cpu()
    apart = [came.sqrt() - alpha(table), (1 - came).sqrt() - sigma(table)]
    error = max(part.abs().max().item() for part in apart)
    what = f"have levels that products of float32 keep to {CLOSE:g}"
    require(error < CLOSE, "schedule", what, f"an error of {error:.1g} in α or σ")


def _is_negative(model: Denoiser) -> bool:
    output = model.output
    return output is torch.neg or (isinstance(output, Output) and output.negative)

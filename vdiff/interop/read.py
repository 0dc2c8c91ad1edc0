"""A scheduler of diffusers, read."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, require, validated
from vdiff.denoiser import TableStep, edm_time
from vdiff.errors import InvalidType
from vdiff.gaussian import alpha, sigma
from vdiff.interop.kit import FlowStep, Kit
from vdiff.interop.options import PREDICTIONS, VARIANCES, check_options
from vdiff.parameterization import Flow, Parameterization, V
from vdiff.schedule import Karras, Linear, OptimalTransport, Schedule, Shifted, Tabulated
from vdiff.variance import ReverseVariance


@validated
def from_diffusers(scheduler: Any, *, tokens: Count | None = None) -> Kit:
    """What a scheduler of diffusers says about the network that was trained with it.

    It takes schedulers with a table of β (DDPM, DDIM, PNDM, Euler, Heun, LMS, DPM-Solver, UniPC,
    DEIS, …), EDM's, and flow matching. A table is the scheduler's own `alphas_cumprod`, in
    float32: the levels of the training. If the network is given log σ, the schedule has the
    scheduler's ends.
    Each option of the scheduler is read, or refused, or belongs to a sampler's step, which is
    `step=` here. Clipping belongs to a sampler too, `vdiff.sampling.Clipped(model)`:
    `kit.levels` warns of it. An option that is unknown and changed gives a warning.

    Args:
        scheduler: such as `pipeline.scheduler`.
        tokens: the length of the image in tokens, for `use_dynamic_shifting`: Flux and SD3.5 shift
            the levels by it.

    Raises:
        InvalidType: for an object that is no scheduler.
        InvalidValue: for a scheduler of another family, an option that is refused, a prediction
            type that is unknown, and tokens that are missing.

    >>> class Scheduler:  # what is read of one
    ...     def __init__(self, prediction_type="v_prediction"):
    ...         self.config = {"prediction_type": prediction_type}
    ...     alphas_cumprod = torch.tensor([0.9, 0.5, 0.1])
    ...     timesteps = torch.tensor([2, 0])
    ...     def set_timesteps(self, steps): ...
    >>> kit = from_diffusers(Scheduler())
    >>> kit.parameterization, kit.levels(2)
    (V(sigma_data=1.0), tensor([-2.1972,  2.1972], dtype=torch.float64))
    """
    config = getattr(scheduler, "config", None)
    made = not isinstance(scheduler, type) and hasattr(scheduler, "set_timesteps")
    if config is None or not made:
        hint = "pipeline.scheduler, or DDPMScheduler()"
        raise InvalidType("scheduler", "be a scheduler of diffusers", type(scheduler), hint)
    name, options = type(scheduler).__name__, dict(config)
    check_options(scheduler)
    hint = "its levels are those of the scheduler that samples"
    require("Inverse" not in name, "scheduler", "sample", name, hint)
    if "FlowMatch" in name or options.get("use_flow_sigmas"):
        return _flow(scheduler, options, tokens)
    if name.startswith("EDM"):
        return _edm(scheduler, options)
    known = isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor)
    family = "have a table of β, EDM's or flow matching's levels"
    require(known, "scheduler", family, name, "build the Denoiser by hand: docs/networks.md")
    return _table(scheduler, options)


def _table(scheduler: Any, options: dict[str, Any]) -> Kit:
    cumulative, target = to_float64(scheduler.alphas_cumprod.cpu()).clone(), _target(options)
    zero_snr = bool(options.get("rescale_betas_zero_snr"))
    pure_noise = ((1 - cumulative[-1]) / cumulative[-1]).sqrt() if zero_snr else None
    if pure_noise is not None:
        cumulative[-1] = 0.0  # a scheduler that keeps z/α has 2⁻²⁴ there
    table = Tabulated.from_alphas_cumprod(cumulative)
    flow, hint = isinstance(target, Flow), "use_flow_sigmas=True has flow matching's levels"
    what = "be epsilon, sample or v_prediction for a table of β"
    require(not flow, "scheduler.prediction_type", what, "flow_prediction", hint)
    hint = "those are flow matching's: use_flow_sigmas=True"
    dynamic = options.get("use_dynamic_shifting")
    require(not dynamic, "scheduler.use_dynamic_shifting", "be false for a table of β", True, hint)
    continuous = options.get("timestep_type") == "continuous" and isinstance(target, V)
    even = options.get("interpolation_type", "linear") == "linear" or continuous
    hint = "the network would be told the times of other levels"
    require(even, "scheduler.interpolation_type", "be linear", "log_linear", hint)
    low, high = options.get("sigma_min"), options.get("sigma_max")
    beyond = continuous and None not in (low, high)  # as in Stable Video Diffusion
    schedule: Schedule = Karras(float(low), float(high)) if beyond else table  # type: ignore[arg-type]
    ratios = hasattr(scheduler, "sigmas")
    unit = not ratios or pure_noise is not None or _unit_start(scheduler)
    return Kit(
        scheduler,
        schedule,
        target,
        edm_time if continuous else TableStep(table),
        variance=_variance(options),
        logsnr_of=partial(_of_sigma, pure_noise=pure_noise) if ratios else None,
        scale=None if unit else alpha,
    )


def _edm(scheduler: Any, options: dict[str, Any]) -> Kit:
    ends = options["sigma_min"], options["sigma_max"]
    if options.get("sigma_schedule", "karras") == "karras":
        schedule: Schedule = Karras(*ends, rho=options["rho"])
    else:
        schedule = Linear(*(-2 * math.log(end) for end in ends))
    kind = options["prediction_type"]
    what = "be epsilon or v_prediction for EDM's schedulers"
    require(kind in ("epsilon", "v_prediction"), "scheduler.prediction_type", what, kind)
    return Kit(
        scheduler,
        schedule,
        V(options["sigma_data"]),
        edm_time,
        negative=kind == "epsilon",  # F, which is −v
        logsnr_of=_of_sigma,
        scale=alpha,
    )


def _flow(scheduler: Any, options: dict[str, Any], tokens: int | None) -> Kit:
    kind = options.get("prediction_type", "flow_prediction")
    what = "be flow_prediction for flow matching's levels"
    require(kind == "flow_prediction", "scheduler.prediction_type", what, kind)
    shift = float(options["shift" if "shift" in options else "flow_shift"])
    given: tuple[tuple[str, float], ...] = ()
    if options.get("use_dynamic_shifting"):
        hint = "from_diffusers(scheduler, tokens=4096) for an image of 64 × 64 patches"
        require(tokens is not None, "tokens", "be given for dynamic shifting", None, hint)
        mu = _mu(options, tokens or 1)
        shift, given = (
            mu if options["time_shift_type"] == "linear" else math.exp(mu),
            (("mu", mu),),
        )
    steps = options["num_train_timesteps"]
    end = 2 * math.log(steps - 1)  # σ = 1/steps
    return Kit(
        scheduler,
        Shifted(OptimalTransport(end, -end), -2 * math.log(shift)),
        Flow(),
        FlowStep(steps),
        logsnr_of=_of_flow_sigma,
        scale=lambda logsnr: alpha(logsnr) + sigma(logsnr),
        options=given,
    )


def _mu(options: dict[str, Any], tokens: int) -> float:
    """The shift of an image of so many tokens: linear between two lengths, as in the pipelines,
    with their defaults for a scheduler that has no such options."""
    short, long = options.get("base_image_seq_len", 256), options.get("max_image_seq_len", 4096)
    low, high = options.get("base_shift", 0.5), options.get("max_shift", 1.15)
    return float(low + (high - low) * (tokens - short) / (long - short))


def _target(options: dict[str, Any]) -> Parameterization:
    kind = options.get("prediction_type", "epsilon")
    what = f"be one of {', '.join(PREDICTIONS)}"
    require(kind in PREDICTIONS, "scheduler.prediction_type", what, kind)
    return PREDICTIONS[kind]


def _variance(options: dict[str, Any]) -> ReverseVariance | None:
    kind = options.get("variance_type")
    what = f"be one of {', '.join(VARIANCES)}"
    require(kind is None or kind in VARIANCES, "scheduler.variance_type", what, kind)
    return None if kind is None else VARIANCES[kind]


def _of_sigma(ratio: Tensor, pure_noise: Tensor | None = None) -> Tensor:
    """The log-SNR of σ/α, −∞ at the one that stands for pure noise."""
    logsnr = -2 * ratio.log()
    if pure_noise is None:
        return logsnr
    return logsnr.masked_fill(torch.isclose(ratio, pure_noise, rtol=1e-6), -math.inf)


def _of_flow_sigma(noise: Tensor) -> Tensor:
    return 2 * (torch.log1p(-noise) - noise.log())


def _unit_start(scheduler: Any) -> bool:
    """Whether the scheduler keeps z itself, and not z/α."""
    return isinstance(vars(scheduler).get("init_noise_sigma"), float | int)

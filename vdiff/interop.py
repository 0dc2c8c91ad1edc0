"""Networks and schedulers of diffusers, read and written.

    kit = from_diffusers(pipeline.scheduler)
    model = kit.denoiser(pipeline.unet)
    images = sample(model, kit.start(noise, 50), levels=kit.levels(50), step=ddim)

A scheduler says four things: the log-SNR of each time step, what the network predicts, which time
it is given, and which levels a sampler visits. Samplers here keep z = α x + σ ε with α² + σ² = 1;
diffusers' Euler and EDM schedulers keep z/α, and its flow matching z/(α + σ).
"""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, require, validated
from vdiff.denoiser import Denoiser, TableStep, edm_time, flow_time
from vdiff.errors import InvalidType, InvalidValue
from vdiff.extras import extra
from vdiff.gaussian import alpha, sigma
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.schedule import Karras, Linear, OptimalTransport, Schedule, Shifted, Tabulated
from vdiff.variance import FixedLarge, FixedSmall, LearnedRange, ReverseVariance

PREDICTIONS = {"epsilon": Eps(), "sample": X(), "v_prediction": V(), "flow_prediction": Flow()}
VARIANCES: dict[str, ReverseVariance] = {
    "fixed_small": FixedSmall(),
    "fixed_small_log": FixedSmall(),
    "fixed_large": FixedLarge(),
    "fixed_large_log": FixedLarge(),
    "learned_range": LearnedRange(),
}  # "learned" is left out: diffusers takes the output as Σ itself, without a softplus
CLOSE = 1e-5  # error of α and σ that a table of float32 may have


@dataclass(frozen=True)
class FlowStep:
    """The time of flow matching in diffusers: `steps` · σ/(α + σ).

    >>> FlowStep(1000)(torch.tensor([0.0]))
    tensor([500.])
    """

    steps: int = 1000

    def __call__(self, logsnr: Tensor) -> Tensor:
        return self.steps * flow_time(logsnr)


@dataclass(frozen=True)
class Output:
    """The tensor in what a network of diffusers returns; with the other sign where `negative`.

    >>> Output(negative=True)((torch.ones(1),))
    tensor([-1.])
    """

    negative: bool = False

    def __call__(self, output: Any) -> Tensor:
        tensor: Tensor = output if isinstance(output, Tensor) else output[0]
        return -tensor if self.negative else tensor


def call_by_name(network: Callable[..., Any], z: Tensor, t: Tensor, **condition: Any) -> Any:
    """Call a network of diffusers with its time as `timestep`, which is not always second."""
    return network(z, timestep=t, **condition)


@dataclass(frozen=True)
class Kit:
    """What a scheduler of diffusers says: the `schedule`, the `parameterization`, `time` and
    `variance` of a `Denoiser`, and the levels that a sampler visits.

    >>> kit = Kit(None, OptimalTransport(), Flow(), FlowStep(1000))
    >>> kit.denoiser(lambda z, t: (t[:, None] + 0 * z,))(torch.zeros(1, 2), torch.zeros(1)).output
    tensor([[500., 500.]])
    """

    scheduler: Any
    schedule: Schedule
    parameterization: Parameterization
    time: Callable[[Tensor], Tensor]
    variance: ReverseVariance | None = None
    negative: bool = False  # the network returns minus the target
    logsnr_of: Callable[[Tensor], Tensor] | None = None  # the scheduler's `sigmas` as log-SNR
    scale: Callable[[Tensor], Tensor] | None = None  # z over what the scheduler keeps, of log-SNR
    options: tuple[tuple[str, Any], ...] = ()  # of `set_timesteps`

    def denoiser(self, network: Callable[..., Any]) -> Denoiser:
        """A network as a model. Conditions have the names of its arguments, for instance
        `condition={"class_labels": labels}`."""
        names = inspect.signature(getattr(network, "forward", network)).parameters
        return Denoiser(
            network,
            self.parameterization,
            time=self.time,
            call=call_by_name if "timestep" in names else None,
            output=Output(self.negative),
            variance=self.variance,
        )

    @validated
    def levels(self, steps: Count) -> Tensor:
        """The log-SNRs at which the scheduler evaluates the network in `steps` steps, rising.

        The last step of a scheduler leads to data, and is x̂ at the last level here. A scheduler
        with `final_sigmas_type="sigma_min"` leaves this step out.
        """
        scheduler = self._set(steps)
        if self.logsnr_of is not None:
            levels = self.logsnr_of(to_float64(scheduler.sigmas.cpu()))
        else:
            table: Tensor = self.schedule.table  # type: ignore[assignment]
            levels = table[scheduler.timesteps.cpu().long()]
        rising: Tensor = torch.unique(levels[levels < math.inf])  # Heun's are there twice
        return rising

    @validated
    def start(self, noise: Tensor, steps: Count) -> Tensor:
        """The z that the scheduler makes of N(0, I) noise before the first of `steps` steps.

        EDM's and Euler's have slightly more or less noise than N(0, I): with this start, samples
        agree with theirs draw by draw.
        """
        if self.scale is None:
            return noise
        scheduler, first = self._set(steps), self.levels(steps)[:1]
        size = float(getattr(scheduler, "init_noise_sigma", 1.0))
        return noise * (size * self.scale(first)).item()

    def _set(self, steps: int) -> Any:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, **dict(self.options))
        return scheduler


@validated
def from_diffusers(scheduler: Any, *, tokens: Count | None = None) -> Kit:
    """What a scheduler of diffusers says about the network that was trained with it.

    It takes schedulers with a table of β (DDPM, DDIM, PNDM, Euler, Heun, LMS, DPM-Solver, UniPC,
    DEIS, …), EDM's, and flow matching. A table is the scheduler's own `alphas_cumprod`, in
    float32: the levels that the network has seen. A continuous schedule has the scheduler's ends.
    Clipping and thresholding belong to a sampler: `vdiff.sampling.Clipped(model)`.

    Args:
        scheduler: such as `pipeline.scheduler`.
        tokens: the length of the image in tokens, for `use_dynamic_shifting`: Flux and SD3.5 shift
            the levels by it.

    Raises:
        InvalidType: for an object that is no scheduler.
        InvalidValue: for a scheduler of another family, a prediction type that is unknown, and
            tokens that are missing.

    >>> class Scheduler:  # what is read of one
    ...     config = {"prediction_type": "v_prediction"}
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
    name = type(scheduler).__name__
    if "FlowMatch" in name or config.get("use_flow_sigmas"):
        return _flow(scheduler, config, tokens)
    if name.startswith("EDM"):
        return _edm(scheduler, config)
    known = isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor)
    family = "have a table of β, EDM's or flow matching's levels"
    require(known, "scheduler", family, name, "build the Denoiser by hand: docs/networks.md")
    return _table(scheduler, config)


def _table(scheduler: Any, config: Any) -> Kit:
    schedule = Tabulated.from_alphas_cumprod(to_float64(scheduler.alphas_cumprod.cpu()))
    continuous = config.get("timestep_type") == "continuous"
    target = _target(config)
    steps = hasattr(scheduler, "sigmas")
    return Kit(
        scheduler,
        schedule,
        target,
        edm_time if continuous and isinstance(target, V) else TableStep(schedule),
        variance=_variance(config),
        logsnr_of=_of_sigma if steps else None,
        scale=alpha if steps and not _unit_start(scheduler) else None,
    )


def _edm(scheduler: Any, config: Any) -> Kit:
    ends = config["sigma_min"], config["sigma_max"]
    if config.get("sigma_schedule", "karras") == "karras":
        schedule: Schedule = Karras(*ends, rho=config["rho"])
    else:
        schedule = Linear(*(-2 * math.log(end) for end in ends))
    kind = config["prediction_type"]
    what = "be epsilon or v_prediction for EDM's schedulers"
    require(kind in ("epsilon", "v_prediction"), "scheduler.prediction_type", what, kind)
    return Kit(
        scheduler,
        schedule,
        V(config["sigma_data"]),
        edm_time,
        negative=kind == "epsilon",  # F, which is −v
        logsnr_of=_of_sigma,
        scale=alpha,
    )


def _flow(scheduler: Any, config: Any, tokens: int | None) -> Kit:
    require(not config.get("invert_sigmas"), "scheduler.invert_sigmas", "be false", True)
    shift, options = config.get("shift", config.get("flow_shift")), {}
    if config.get("use_dynamic_shifting"):
        hint = "from_diffusers(scheduler, tokens=4096) for an image of 64 × 64 patches"
        require(tokens is not None, "tokens", "be given for dynamic shifting", None, hint)
        options["mu"] = mu = _mu(config, tokens or 1)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    steps = config["num_train_timesteps"]
    end = 2 * math.log(steps - 1)  # σ = 1/steps
    return Kit(
        scheduler,
        Shifted(OptimalTransport(end, -end), -2 * math.log(shift)),
        Flow(),
        FlowStep(steps),
        logsnr_of=_of_flow_sigma,
        scale=lambda logsnr: alpha(logsnr) + sigma(logsnr),
        options=tuple(options.items()),
    )


def _mu(config: Any, tokens: int) -> float:
    """The shift of an image of so many tokens: linear between two lengths, as in the pipelines."""
    short, long = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    return float(low + (high - low) * (tokens - short) / (long - short))


def _target(config: Any) -> Parameterization:
    kind = config.get("prediction_type", "epsilon")
    what = f"be one of {', '.join(PREDICTIONS)}"
    require(kind in PREDICTIONS, "scheduler.prediction_type", what, kind)
    return PREDICTIONS[kind]


def _variance(config: Any) -> ReverseVariance | None:
    kind = config.get("variance_type")
    what = f"be one of {', '.join(VARIANCES)}"
    require(kind is None or kind in VARIANCES, "scheduler.variance_type", what, kind)
    return None if kind is None else VARIANCES[kind]


def _of_sigma(ratio: Tensor) -> Tensor:
    return -2 * ratio.log()


def _of_flow_sigma(noise: Tensor) -> Tensor:
    return 2 * (torch.log1p(-noise) - noise.log())


def _unit_start(scheduler: Any) -> bool:
    """Whether the scheduler keeps z itself, and not z/α."""
    return isinstance(vars(scheduler).get("init_noise_sigma"), float | int)


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

    >>> from vdiff.schedule import Cosine
    >>> to_diffusers(Denoiser(lambda z, logsnr: z, Eps()), Cosine())
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidValue: to_diffusers: argument 'schedule' must be Tabulated, ...
    """
    target, time = model.parameterization, model.time
    inner, shift = schedule, 0.0
    if isinstance(schedule, Shifted):
        inner, shift = schedule.schedule, schedule.shift
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


__all__ = ["FlowStep", "Kit", "from_diffusers", "to_diffusers"]

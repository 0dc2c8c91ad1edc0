"""A network, what it predicts, and what it takes: together they are a model that
returns a `Prediction`."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._network import (
    CALL,
    OUTPUT,
    TIME,
    check_labels,
    check_output,
    network,
    warn_of_a_hidden_module,
)
from vdiff._precision import HALF, as_float64, at_least_float32, to_float64
from vdiff._validate import (
    CleanEnd,
    Floating,
    Function,
    Instance,
    NoisyEnd,
    ordered_ends,
    require,
    validated,
)
from vdiff.errors import validation_enabled
from vdiff.gaussian import per_example
from vdiff.parameterization import Parameterization, is_number
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule, Tabulated
from vdiff.variance import FixedSmall, ReverseVariance

Ends = tuple[float, float]


def logsnr_time(logsnr: Tensor) -> Tensor:
    """λ itself: what vdiff's own networks are given.

    >>> logsnr_time(torch.tensor([2.0]))
    tensor([2.])
    """
    return logsnr


@validated
def edm_time(logsnr: Floating) -> Tensor:
    """EDM's c_noise, ¼ log σ̃ = −λ/8.

    >>> edm_time(torch.tensor([8.0]))
    tensor([-1.])
    """
    return -0.125 * logsnr


@validated
def flow_time(logsnr: Floating) -> Tensor:
    """Rectified flow's time, σ/(α + σ) = sigmoid(−λ/2).

    >>> flow_time(torch.tensor([0.0]))
    tensor([0.5000])
    """
    return torch.sigmoid(-0.5 * logsnr)


@validated
def sigma_time(logsnr: Floating) -> Tensor:
    """The variance exploding noise level, σ̃ = σ/α = e^{−λ/2}.

    >>> sigma_time(torch.tensor([0.0]))
    tensor([1.])
    """
    return torch.exp(-0.5 * logsnr)


class ScaledGamma:
    """VDM's network input: γ = −λ scaled to 0 at `logsnr_max` and 1 at `logsnr_min`.

    >>> ScaledGamma(13.3, -5.0)(torch.tensor([13.3, -5.0]))
    tensor([0., 1.])
    """

    @validated(rules=[ordered_ends])
    def __init__(self, logsnr_max: CleanEnd = 13.3, logsnr_min: NoisyEnd = -5.0) -> None:
        self.logsnr_max, self.logsnr_min = logsnr_max, logsnr_min

    @validated
    def __call__(self, logsnr: Floating) -> Tensor:
        return (self.logsnr_max - logsnr) / (self.logsnr_max - self.logsnr_min)


def fixed(schedule: Schedule) -> None:
    """A rule: the schedule learns nothing."""
    hint = "its t moves under the network and has no gradient: use logsnr_time or ScaledGamma"
    learns = schedule.learns_ends or schedule.learns_shape
    require(not learns, "schedule", "be fixed", schedule, hint)


class ScheduleTime:
    """The t ∈ [0, 1] of a schedule, for networks that were trained on it; beyond its ends, 0 or 1.

    >>> from vdiff.schedule import Cosine
    >>> ScheduleTime(Cosine())(torch.tensor([0.0]))
    tensor([0.5000])
    """

    @validated(rules=[fixed])
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @property
    def logsnr_range(self) -> Ends:
        """(λ_min, λ_max) beyond which it says 0 or 1."""
        return self.schedule.logsnr_min, self.schedule.logsnr_max

    def __call__(self, logsnr: Tensor) -> Tensor:
        return self.schedule.inverse(logsnr, clamp=True)


_TABLE = "for instance Tabulated.linear_betas(); ScheduleTime takes any schedule"
Table = Annotated[Tabulated, Instance((Tabulated,), _TABLE)]


class TableStep:
    """The step of a β table, 0 … n − 1, for DDPM-style networks; fractional between levels, or the
    nearest as an integer for networks that look it up (`integer=True`).

    >>> from vdiff.schedule import Tabulated
    >>> table = Tabulated.linear_betas()
    >>> TableStep(table)(table.table[[0, 499, 999]])
    tensor([  0., 499., 999.], dtype=torch.float64)
    """

    @validated
    def __init__(self, schedule: Table, *, integer: bool = False) -> None:
        self.schedule, self.integer = schedule, integer

    @property
    def logsnr_range(self) -> Ends:
        """(λ_min, λ_max) beyond which it says the last step or the first."""
        return self.schedule.logsnr_min, self.schedule.logsnr_max

    def __call__(self, logsnr: Tensor) -> Tensor:
        place = self.schedule.inverse(logsnr, clamp=True) * self.schedule.steps
        level = place.round()
        if self.integer:
            return level.long()
        return torch.where((place - level).abs() < 1e-3, level, place)  # exact in float32 too


class Denoiser(nn.Module):
    """A network as a model: `Denoiser(network, V())(z, logsnr)` is a `Prediction`.

    The network is called `network(c_in·z, time(logsnr), **condition)` with shapes (batch, …) and
    (batch,), and returns the shape of z. `time` says what it takes: λ (the default), or
    `edm_time`, `flow_time`, `sigma_time`, `ScaledGamma`, `ScheduleTime`, `TableStep`, or any
    function of λ, so that a network somebody already has becomes a model without touching it.
    `call` says how the network is called where that differs: `lambda network, z, t, **condition:
    network(z, timestep=t, **condition)`. `output` takes the tensor out of what the network
    returns, or turns its sign: `lambda out: out.sample`, `torch.neg`. Hand over the network
    itself: a function around it hides its parameters.

    A network gets z in the dtype of its own weights: the widest of half and single precision among
    its parameters, or float64 where all of them are float64. Buffers, integer weights and complex
    weights do not count. Where there are both float16 and bfloat16, z comes in float32. A network
    without such parameters gets z as it is. Times come in float32 at least. The output is cast to
    the dtype of z.

    A function of λ that says the same for all λ beyond two ends has them as `logsnr_range`,
    (λ_min, λ_max), as `ScheduleTime` and `TableStep` do. A loss, an evaluation or a sampler that
    asks beyond it warns once. An evaluation also warns beyond `trained`, the (λ_min, λ_max) that
    the backward passes of losses have noted here (None before the first). You may set `trained`.

    `variance` is the choice of Σ in the reverse steps of a chain (`vdiff.variance`; the
    posterior's by default). For one that is learned, such as `LearnedRange()`, the network returns
    twice the channels: the target first, the variance behind it.

    >>> model = Denoiser(lambda z, logsnr: 0.5 * z, Eps())
    >>> model(torch.ones(2, 3), torch.zeros(2)).eps.shape
    torch.Size([2, 3])
    """

    @validated
    def __init__(
        self,
        network: Annotated[Callable[..., Any], network],
        parameterization: Parameterization,
        *,
        time: Annotated[Callable[[Tensor], Tensor], Function(TIME)] = logsnr_time,
        call: Annotated[Callable[..., Any] | None, Function(CALL)] = None,
        output: Annotated[Callable[[Any], Tensor] | None, Function(OUTPUT)] = None,
        variance: ReverseVariance | None = None,
    ) -> None:
        super().__init__()
        warn_of_a_hidden_module("the network", network, network)
        warn_of_a_hidden_module("call", call, network)
        self.network, self.parameterization = network, parameterization
        self.time, self.call, self.output = time, call, output
        self.variance = FixedSmall() if variance is None else variance
        self.trained: tuple[float | Tensor, float | Tensor] | None = None

    @validated
    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Float[Tensor, " batch"], **condition: Any
    ) -> Prediction:
        """What the model says about z at log-SNR λ. Raises where the network's output is no tensor
        of the shape of z."""
        if validation_enabled():
            check_labels(condition, z)
        level = to_float64(logsnr)
        scale = self.parameterization.input_scale(level)
        seen = z if is_number(scale, 1.0) else per_example(as_float64(scale, z.device), z) * z
        dtype = weights_dtype(self.network) or z.dtype
        time = self.time(level)
        time = time.to(at_least_float32(dtype)) if time.is_floating_point() else time
        out = self._answer(seen.to(dtype), time, condition)
        if self.output is not None:
            out = self.output(out)
        if validation_enabled():
            check_output(out, z, 2 if self.variance.learned else 1)
        head = None
        if self.variance.learned:
            out, head = out.to(z.dtype).chunk(2, 1)
        return Prediction(z, logsnr, out.to(z.dtype), self.parameterization, self.variance, head)

    def _answer(self, z: Tensor, time: Tensor, condition: dict[str, Any]) -> Any:
        """What the network returns; an error inside one of several dtypes says in which z came."""
        network = self.network if self.call is None else functools.partial(self.call, self.network)
        if not validation_enabled():
            return network(z, time, **condition)
        try:
            return network(z, time, **condition)
        except RuntimeError as error:
            parameters = self.network.parameters() if isinstance(self.network, nn.Module) else ()
            others = sorted({str(p.dtype) for p in parameters} - {str(z.dtype)})
            if others and "type" in str(error):
                cast = f"call=lambda network, z, t, **condition: network(z.to({others[0]}), t, **condition)"
                error.add_note(
                    f"Denoiser: z came in {z.dtype}, and the network has weights in {', '.join(others)} too. "
                    f"If its first layer is one of them: Denoiser(…, {cast})"
                )
            raise

    def extra_repr(self) -> str:
        return f"{self.parameterization!r}"


def weights_dtype(network: object) -> torch.dtype | None:
    """The widest of half and single precision among a network's parameters, or float64 where all
    are.

    None where it has none of them.

    >>> weights_dtype(nn.Linear(2, 2).bfloat16())
    torch.bfloat16
    """
    found: set[torch.dtype] = set()
    modules = [network] if isinstance(network, nn.Module) else []
    while modules:  # `network.parameters()` costs a tenth of a small network's time
        module = modules.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                if parameter.dtype == torch.float32:
                    return torch.float32
                found.add(parameter.dtype)
        modules.extend(child for child in module._modules.values() if child is not None)
    half = found & HALF
    if len(half) > 1:
        return torch.float32
    return half.pop() if half else torch.float64 if torch.float64 in found else None


@contextmanager
def evaluation_mode(*models: object) -> Iterator[None]:
    """Those of the models that are modules in evaluation mode; each module within them back in its
    own afterwards.

    Modules are switched for every thread that uses them.

    >>> dropout = nn.Dropout(0.5)
    >>> with evaluation_mode(dropout):
    ...     dropout(torch.ones(3))
    tensor([1., 1., 1.])
    >>> dropout.training
    True
    """
    known = [model for model in models if isinstance(model, nn.Module)]
    training = [module for model in known for module in model.modules() if module.training]
    try:
        for model in known:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


__all__ = [
    "Denoiser",
    "ScaledGamma",
    "ScheduleTime",
    "TableStep",
    "edm_time",
    "flow_time",
    "logsnr_time",
    "sigma_time",
]

"""A network with its parameterization and its time is a model: it returns a `Prediction`."""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._diffusion import GAUSSIAN
from vdiff._inputs import CleanEnd, NoisyEnd, ordered_ends
from vdiff._network import (
    CALL,
    OUTPUT,
    TIME,
    check_labels,
    check_output,
    field_of,
    network,
    note_call,
    number_of,
    warn_of_a_hidden_module,
    weights_dtype,
)
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import Floating, Function, Instance, require, validated
from vdiff.errors import InvalidType, validation_enabled
from vdiff.gaussian import Level, per_example
from vdiff.parameterization import Parameterization
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule, Tabulated
from vdiff.variance import FixedSmall, ReverseVariance

Range = tuple[float, float]  # (λ_max, λ_min)


def logsnr_time(logsnr: Tensor) -> Tensor:
    """λ itself, the time of vdiff's own networks.

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
    """VDM's time: γ = −λ scaled to 0 at `logsnr_max` and 1 at `logsnr_min`.

    >>> ScaledGamma(logsnr_max=13.3, logsnr_min=-5.0)(torch.tensor([13.3, -5.0]))
    tensor([0., 1.])
    """

    @validated(rules=[ordered_ends])
    def __init__(self, *, logsnr_max: CleanEnd = 13.3, logsnr_min: NoisyEnd = -5.0) -> None:
        self.logsnr_max, self.logsnr_min = logsnr_max, logsnr_min

    @validated
    def __call__(self, logsnr: Floating) -> Tensor:
        return (self.logsnr_max - logsnr) / (self.logsnr_max - self.logsnr_min)

    def __repr__(self) -> str:
        return f"ScaledGamma(logsnr_max={self.logsnr_max}, logsnr_min={self.logsnr_min})"


def fixed(schedule: Schedule) -> None:
    """Rule: the schedule learns nothing."""
    hint = (
        "a learned t would move during training without a gradient: use logsnr_time or ScaledGamma"
    )
    learns = schedule.learns_ends or schedule.learns_shape
    require(not learns, "schedule", "be fixed", schedule, hint)


class ScheduleTime:
    """The t ∈ [0, 1] of a schedule, for networks trained with it; 0 or 1 beyond its ends.

    >>> from vdiff.schedule import Cosine
    >>> ScheduleTime(Cosine())(torch.tensor([0.0]))
    tensor([0.5000])
    """

    @validated(rules=[fixed])
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @property
    def logsnr_range(self) -> Range:
        """(λ_max, λ_min), beyond which it returns 0 or 1."""
        return self.schedule.logsnr_max, self.schedule.logsnr_min

    def __call__(self, logsnr: Tensor) -> Tensor:
        return self.schedule.inverse(logsnr, clamp=True)

    def __repr__(self) -> str:
        return f"ScheduleTime({self.schedule!r})"


_TABLE = "for instance Tabulated.linear_betas(); ScheduleTime takes any schedule"
Table = Annotated[Tabulated, Instance((Tabulated,), _TABLE)]


class TableStep:
    """The index in a β table, 0 … n − 1, for DDPM-style networks. It is fractional between the
    table's λ; with `integer=True` the nearest index, for networks with an embedding table.

    >>> from vdiff.schedule import Tabulated
    >>> table = Tabulated.linear_betas()
    >>> TableStep(table)(table.table[[0, 499, 999]])
    tensor([  0., 499., 999.], dtype=torch.float64)
    """

    @validated
    def __init__(self, schedule: Table, *, integer: bool = False) -> None:
        self.schedule, self.integer = schedule, integer

    @property
    def logsnr_range(self) -> Range:
        """(λ_max, λ_min), beyond which it returns the first step or the last."""
        return self.schedule.logsnr_max, self.schedule.logsnr_min

    def __call__(self, logsnr: Tensor) -> Tensor:
        index = self.schedule.inverse(logsnr, clamp=True) * self.schedule.steps
        nearest = index.round()
        if self.integer:
            return nearest.long()
        return torch.where((index - nearest).abs() < 1e-3, nearest, index)  # exact in float32 too

    def __repr__(self) -> str:
        return f"TableStep({self.schedule!r}, integer={self.integer})"


class Denoiser(nn.Module):
    """A network as a model: `Denoiser(network, V())(z, logsnr)` is a `Prediction`.

    The network is called `network(c_in·z, time(logsnr), **condition)` with shapes (batch, …) and
    (batch,), and returns the shape of z. `time` is what it expects: λ (the default), `edm_time`,
    `flow_time`, `sigma_time`, `ScaledGamma`, `ScheduleTime`, `TableStep`, or any function of λ.
    If its signature differs, give `call`: `lambda network, z, t, **condition: network(z,
    timestep=t, **condition)`. If it returns something else, give `output`, which makes the tensor
    of it: `lambda out: out.sample`, `torch.neg`. Pass the network itself, because a function
    around it hides its parameters.

    z is cast to the dtype of the network's weights: the widest of half and single precision among
    its parameters. Without single precision, it is float64 if more of them are float64 than half.
    Buffers, integer and complex weights do not count. If there are both float16 and bfloat16, z is
    cast to float32. Times are in float32 or wider. The output is cast to the dtype of z.

    A time that is constant beyond two ends has them as `logsnr_range`, (λ_max, λ_min), as
    `ScheduleTime` and `TableStep` do. A loss, an evaluation or a sampler that leaves this range
    warns once. An evaluation also warns outside `trained`, the (λ_max, λ_min) that the backward
    passes of losses note here (None before the first). You may set `trained`.

    With `field=True`, or a network that has `field = True` itself, the network takes one λ for
    each dimension: its time has as many dimensions as z and broadcasts over it, (batch, 1, …)
    where an example has one λ. Any other network is given (batch,) times, and refuses a field that
    is not one number per example.

    `variance` is the choice of Σ in the reverse steps of a chain (`vdiff.variance`; by default the
    posterior's). If it is learned, as `LearnedRange()`, the network returns twice the channels:
    first the target, then the variance.

    >>> model = Denoiser(lambda z, logsnr: 0.5 * z, Eps())
    >>> model(torch.ones(2, 3), torch.zeros(2)).eps.shape
    torch.Size([2, 3])
    """

    process = GAUSSIAN

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
        field: bool = False,
    ) -> None:
        super().__init__()
        if time is None:
            hint = "without it the network is given λ"
            raise InvalidType("time", "be a function", time, hint)
        warn_of_a_hidden_module("the network", network, network)
        warn_of_a_hidden_module("call", call, network)
        self.network, self.parameterization = network, parameterization
        self.time, self.call, self.output = time, call, output
        self.variance = FixedSmall() if variance is None else variance
        self.field = field or bool(getattr(network, "field", False))
        self.trained: tuple[float | Tensor, float | Tensor] | None = None

    @validated
    def forward(
        self, z: Float[Tensor, "batch *dims"], logsnr: Level, **condition: Any
    ) -> Prediction:
        """The prediction from z at log-SNR λ, (batch,) or a field. Raises if the network's output
        is not a tensor of the shape of z, and for a field that the network cannot take."""
        if validation_enabled():
            check_labels(condition, z)
        v = to_float64(logsnr)
        if self.field or logsnr.ndim > 1:
            v = field_of(v, z) if self.field else number_of(v, z)
        scale = self.parameterization.input_scale(v)
        plain = isinstance(scale, float) and scale == 1.0
        scaled = z if plain else per_example(as_float64(scale, z.device), z) * z
        dtype = weights_dtype(self.network) or z.dtype
        time = self.time(v)
        time = time.to(at_least_float32(dtype)) if time.is_floating_point() else time
        out = self._call_network(scaled.to(dtype), time, condition)
        if self.output is not None:
            out = self.output(out)
        if validation_enabled():
            check_output(out, z, 2 if self.variance.learned else 1)
        out, variance = out.to(z.dtype), None
        if self.variance.learned:
            out, variance = out.chunk(2, 1)
        return Prediction(z, logsnr, out, self.parameterization, self.variance, variance)

    def _call_network(self, z: Tensor, time: Tensor, condition: dict[str, Any]) -> Any:
        """The network's output. An error in it gets a note of what it was given."""
        network = self.network if self.call is None else functools.partial(self.call, self.network)
        if not validation_enabled():
            return network(z, time, **condition)
        try:
            return network(z, time, **condition)
        except Exception as error:
            note_call(error, self.network, z, time, condition)
            raise

    def extra_repr(self) -> str:
        return f"{self.parameterization!r}"


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

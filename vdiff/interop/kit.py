"""What a scheduler of diffusers says, in the terms of this library."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, validated
from vdiff.denoiser import Denoiser, flow_time
from vdiff.interop.options import differences
from vdiff.parameterization import Parameterization
from vdiff.schedule import Schedule
from vdiff.variance import ReverseVariance


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

    >>> from vdiff.parameterization import Flow
    >>> from vdiff.schedule import OptimalTransport
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
        """The log-SNRs that the scheduler visits in `steps` steps, rising.

        Most schedulers end at data: their sample is x̂ at the last level, as that of `sample`. A
        scheduler that ends at a level (`final_sigmas_type="sigma_min"`, `set_alpha_to_one=False`)
        has it as the last one, and its sample is the last state of `trajectory`. A warning names
        this and what else sets its samples apart, such as `clip_sample`.
        """
        rising, end = self._levels(self._set(steps))
        for text in differences(self.scheduler, end):
            warnings.warn(f"levels: {text}", stacklevel=3)
        return rising

    @validated
    def start(self, noise: Tensor, steps: Count) -> Tensor:
        """The z that the scheduler makes of N(0, I) noise before the first of `steps` steps.

        EDM's and Euler's have slightly more or less noise than N(0, I): with this start, samples
        agree with theirs draw by draw.
        """
        if self.scale is None:
            return noise
        scheduler = self._set(steps)
        size = float(getattr(scheduler, "init_noise_sigma", 1.0))
        return noise * (size * self.scale(self._levels(scheduler)[0][:1])).item()

    def _levels(self, scheduler: Any) -> tuple[Tensor, float | None]:
        """The levels, and the one where the scheduler ends; None where it ends at data."""
        if self.logsnr_of is not None:
            sigmas = to_float64(scheduler.sigmas.cpu())[: len(scheduler.timesteps) + 1]
            levels = self.logsnr_of(sigmas)
        else:
            table: Tensor = self.schedule.table  # type: ignore[assignment]
            end = (
                table[:1] if float(getattr(scheduler, "final_alpha_cumprod", 1)) < 1 else math.inf
            )
            levels = torch.cat([table[scheduler.timesteps.cpu().long()], table.new_tensor([end])])
        rising = torch.unique(levels[levels < math.inf])  # Heun's are there twice
        return rising, levels[-1].item() if levels[-1] < math.inf else None

    def _set(self, steps: int) -> Any:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, **dict(self.options))
        return scheduler

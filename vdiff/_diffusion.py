"""What a loss asks of the process that turns data into noise: the Gaussian one here, tokens' in
`vdiff.discrete`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff._inputs import data as floating_data
from vdiff._inputs import finite_values
from vdiff._precision import at_least_float32
from vdiff._validate import Given, floating
from vdiff.decoder import Decoder
from vdiff.errors import InvalidType, validation_enabled
from vdiff.gaussian import Step, diffuse, prior_kl
from vdiff.reverse import Estimator, reverse_sample
from vdiff.schedule import Linear, Schedule
from vdiff.schedule.noise_levels import NoiseLevels

Generators = torch.Generator | Sequence[torch.Generator] | None
End = Tensor | float
RESTING = 1e-9  # in place of a step Δ = 0, whose result is not used


class Unit(NamedTuple):
    """The unit of an evaluation, and what an example is."""

    name: str = "bits/dim"
    example: str = "image"


class Diffusion(ABC):
    """A process from data to noise, for the losses. A model says which is its own with
    `model.process`; a model without one is Gaussian."""

    continuous: bool = False  # whether x and z are real numbers, z differentiable in λ
    unit: "Unit"  # of a report
    blank: int = 0  # data, in place of what is absent

    def levels(
        self, schedule: Schedule, t: Tensor, steps: int | None, **options: Any
    ) -> NoiseLevels:
        """The noise levels at these times; `options` are those of `schedule.at`."""
        return (schedule.at if self.continuous else schedule.at_fixed)(t, steps, **options)

    @abstractmethod
    def check(self, x: Any, argument: str, given: Given) -> Any:
        """Raise unless x is data as the network sees it. A constraint."""

    @abstractmethod
    def check_decoder(self, decoder: Decoder | None) -> None:
        """Raise unless a bound of this process can have this decoder."""

    @abstractmethod
    def ready(self, x: Tensor) -> Tensor:
        """x as it is computed with."""

    @abstractmethod
    def noise(
        self,
        x: Tensor,
        given: Tensor | None,
        generator: Generators,
        modelled: Tensor | None = None,
    ) -> Tensor:
        """The noise of `corrupt`: what is given, else a draw. `modelled` is True where it
        counts."""

    @abstractmethod
    def draw(self, x: Tensor, generator: Generators) -> Tensor:
        """Noise of the shape of x, as `noise` takes it."""

    @abstractmethod
    def opposite(self, noise: Tensor) -> Tensor:
        """Noise of the same law, as far from this noise as can be."""

    @abstractmethod
    def outcomes(self, decoder: Decoder | None) -> int | None:
        """How many values a dimension of the data has; None for real numbers."""

    @abstractmethod
    def even(self, logsnr_max: float, logsnr_min: float) -> Schedule:
        """The time of an evaluation, in which the bound's integrand is about even."""

    def any_order(self) -> "Diffusion | None":
        """The process with the same bound that corrupts a number of dimensions which λ alone
        decides; None if there is none."""
        return None

    @abstractmethod
    def corrupt(self, x: Any, noise: Any, logsnr: Any) -> Tensor:
        """z ~ q(z | x) at λ."""

    @abstractmethod
    def pure(self, x: Tensor, noise: Tensor, logsnr_min: End) -> Tensor:
        """z from the noise alone, where x is absent."""

    @abstractmethod
    def encode(self, data: Tensor, decoder: Decoder | None) -> Tensor:
        """x from data."""

    @abstractmethod
    def term(
        self,
        prediction: Any,
        x: Tensor,
        noise: Tensor,
        at: NoiseLevels,
        steps: int | None,
        estimator: Estimator,
        generator: torch.Generator | None,
    ) -> Tensor:
        """One draw of the bound's diffusion term, (batch,) nats."""

    @abstractmethod
    def prior(self, x: Tensor, logsnr_min: End, mask: Tensor | None = None) -> Tensor:
        """KL(q(z₁ | x) ‖ p(z₁)), (batch,) nats."""

    @abstractmethod
    def decoded(
        self,
        decoder: Decoder | None,
        data: Tensor,
        x: Tensor,
        logsnr_max: End,
        *draws: Any,
        **masked: Tensor,
    ) -> Tensor:
        """E[−log p(data | z₀)], (batch,) nats. `draws` are the model, noise or None, and a
        generator."""

    @property
    @abstractmethod
    def schedule(self) -> Schedule | None:
        """The schedule to sample along, or to evaluate between its ends, if none is given."""

    @abstractmethod
    def check_state(self, z: Any, argument: str, device: torch.device) -> Tensor:
        """The state from which a sampler starts. Raises unless it is one."""

    @abstractmethod
    def check_given(self, x: Tensor, read: Tensor) -> None:
        """Raise unless x is data where `read` is True. Reads values."""

    @abstractmethod
    def start(self, z: Tensor, logsnr: Tensor, generator: Generators) -> Tensor:
        """The state as it is computed with, a copy."""

    @abstractmethod
    def reverse(self, now: Any, z: Tensor, step: Step, generator: Generators) -> Tensor:
        """z_s ~ p(z_s | z_t) for the prediction at z_t."""

    @abstractmethod
    def data(self, last: Any, generator: Generators) -> Tensor:
        """Data from the prediction at the last level of a sampler."""


class GaussianDiffusion(Diffusion):
    """z = α x + σ ε."""

    continuous = True
    unit = Unit()

    def check(self, x: Any, argument: str, given: Given) -> Any:
        return floating_data(x, argument, given)

    def check_decoder(self, decoder: Decoder | None) -> None:
        if decoder is None:
            raise InvalidType("decoder", "be a Decoder", None, Decoder.__example__)

    def ready(self, x: Tensor) -> Tensor:
        return to_float32(x)

    def noise(
        self,
        x: Tensor,
        given: Tensor | None,
        generator: Generators,
        modelled: Tensor | None = None,
    ) -> Tensor:
        return self.draw(x, generator) if given is None else to_float32(given, x.dtype)

    def draw(self, x: Tensor, generator: Generators) -> Tensor:
        return standard_normal(x, generator)

    def opposite(self, noise: Tensor) -> Tensor:
        return -noise

    def outcomes(self, decoder: Decoder | None) -> int | None:
        return getattr(decoder, "levels", None)

    def even(self, logsnr_max: float, logsnr_min: float) -> Schedule:
        return Linear(logsnr_max, logsnr_min)

    def corrupt(self, x: Any, noise: Any, logsnr: Any) -> Tensor:
        return diffuse(x, noise, logsnr)

    def pure(self, x: Tensor, noise: Tensor, logsnr_min: End) -> Tensor:
        return noise

    def encode(self, data: Tensor, decoder: Decoder | None) -> Tensor:
        assert decoder is not None
        return to_float32(decoder.encode(data))

    def term(
        self,
        prediction: Any,
        x: Tensor,
        noise: Tensor,
        at: NoiseLevels,
        steps: int | None,
        estimator: Estimator,
        generator: torch.Generator | None,
    ) -> Tensor:
        if steps is None:
            loss: Tensor = prediction.loss(x, noise, at)
            return loss
        return steps * estimator(prediction, x, noise, at.step, generator)

    def prior(self, x: Tensor, logsnr_min: End, mask: Tensor | None = None) -> Tensor:
        return prior_kl(x, logsnr_min, mask)

    def decoded(
        self,
        decoder: Decoder | None,
        data: Tensor,
        x: Tensor,
        logsnr_max: End,
        *draws: Any,
        **masked: Any,
    ) -> Tensor:
        assert decoder is not None
        return decoder.reconstruction(clone_if_inference(data), x, logsnr_max, *draws, **masked)

    @property
    def schedule(self) -> None:
        return None

    def check_state(self, z: Any, argument: str, device: torch.device) -> Tensor:
        if isinstance(z, tuple):
            hint = f"noise of this shape: torch.randn({', '.join(map(str, z))})"
            raise InvalidType(argument, "be a torch.Tensor", f"the shape {tuple(z)}", hint)
        return finite_values(floating_data(z, argument, {}), argument, {})

    def check_given(self, x: Tensor, read: Tensor) -> None:
        finite_values(torch.where(read, floating(x, "given", {}), 0.0), "given", {})

    def start(self, z: Tensor, logsnr: Tensor, generator: Generators) -> Tensor:
        return z.to(at_least_float32(z.dtype), copy=True)

    def reverse(self, now: Any, z: Tensor, step: Step, generator: Generators) -> Tensor:
        noise, delta = standard_normal(z, generator), step.delta
        if delta.ndim == 1:
            return reverse_sample(now, step, noise)
        # log Σ − log(c σ_s²) of a learned Σ is infinite where c is 0
        resting = Step(step.logsnr_t, delta.where(delta > 0, RESTING))
        return torch.where(delta > 0, reverse_sample(now, resting, noise), z)

    def data(self, last: Any, generator: Generators) -> Tensor:
        x: Tensor = last.x
        return x


GAUSSIAN = GaussianDiffusion()


def diffusion_of(model: object) -> Diffusion:
    """The process of a model, also of one within a wrapper, DDP or a compiled module."""
    process = getattr(model, "process", None)
    if isinstance(process, Diffusion):
        return process
    for name in ("model", "module", "_orig_mod"):
        inner = getattr(model, name, None)
        if inner is not None:
            return diffusion_of(inner)
    return GAUSSIAN


def takes_time(model: object) -> bool:
    """Whether a model's prediction may depend on λ beside z. A model says no with
    `model.takes_time = False`, also within DDP or a compiled module."""
    inner = getattr(model, "module", getattr(model, "_orig_mod", model))
    return bool(getattr(inner, "takes_time", True))


def to_float32(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor in float32 or wider, or in `dtype`, that autograd can save."""
    return clone_if_inference(x.to(dtype or at_least_float32(x.dtype)))


def standard_normal(
    x: Tensor, generator: Generators, draw: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Noise of the shape of x. Several generators draw equal shares of its rows, in order."""
    if generator is None or isinstance(generator, torch.Generator):
        return draw(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    rows = (len(x) // len(generator), *x.shape[1:])
    drawn = [draw(rows, dtype=x.dtype, device=g.device, generator=g) for g in generator]
    return torch.cat(drawn).to(x.device)


def clone_if_inference(v: Tensor) -> Tensor:
    """The tensor, or a copy if it was made under `inference_mode`: autograd cannot save it outside
    of that mode."""
    outside = validation_enabled() and not torch.is_inference_mode_enabled()
    return v.clone() if outside and v.is_inference() else v

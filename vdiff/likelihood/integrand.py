"""What an evaluation averages: the bound of one image at one (t, ε), and the difference between
two models'."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import Model, original
from vdiff._known_range import warn_beyond
from vdiff._precision import at_least_float32
from vdiff._validate import require, unchecked
from vdiff.decoder import Decoder
from vdiff.denoiser import evaluation_mode
from vdiff.errors import InvalidValue
from vdiff.likelihood.conditions import of_kept, of_rows
from vdiff.loss import elbo, full_precision
from vdiff.prediction import Prediction
from vdiff.schedule import Linear, Schedule
from vdiff.times import on_chain

_NVIDIA: Any = torch.backends.cudnn
_INTEL: Any = torch.backends.mkldnn
# whose float32 may be TF32 or bfloat16 inside; each before its parts
_ROUNDING: tuple[Any, ...] = (
    torch.backends.cuda.matmul, _NVIDIA, _NVIDIA.conv, _NVIDIA.rnn, _INTEL, _INTEL.matmul, _INTEL.conv, _INTEL.rnn,
)  # fmt: skip
_OUTER = ((max, "logsnr_max"), (min, "logsnr_min"))


class Side(NamedTuple):
    """A model and its bound: between the ends of `base`, or of a chain of `steps`.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import GaussianMixture
    >>> model = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> Side(model, Linear(7.0, -6.0), Categorical(4), None).name("first")["logsnr, first"]
    [-6.0, 7.0]
    """

    model: Model
    base: Schedule
    decoder: Decoder
    steps: int | None

    def name(self, which: str) -> dict[str, object]:
        """What the bound depends on, for a protocol."""
        chain = self.steps is not None
        known = {
            "decoder": repr(self.decoder),
            "logsnr": [self.base.logsnr_min, self.base.logsnr_max],
            "T": self.steps if chain else "∞",
            "schedule": repr(self.base) if chain else None,
        }
        return {f"{word}, {which}" if which else word: value for word, value in known.items()}


class Integrand:
    """The three parts of one model's bound at given (image, t, ε), nats.

    Of the schedule it takes the ends: time is linear in λ between them, since where to look is the
    evaluation's own business. A chain keeps its steps.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import GaussianMixture, Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.grid, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> rows, t = torch.tensor([0, 1]), torch.tensor([0.5, 0.5])
    >>> integrand(rows, t, torch.zeros(2, 1)).shape            # prior, diffusion, reconstruction
    torch.Size([3, 2])
    """

    name: ClassVar[str] = "evaluate"  # whose warnings these are

    def __init__(
        self,
        model: Model,
        data: Tensor,
        schedule: Schedule,
        decoder: Decoder,
        steps: int | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.condition = data, condition or {}
        self.sides = [_side(model, schedule, decoder, steps)]
        _, self.base, self.decoder, self.steps = self.sides[0]
        x = decoder.encode(data)
        self.x = x.to(at_least_float32(x.dtype))
        self.numbers = torch.arange(len(x))  # by which errors name the images
        self.predictions: dict[int, Prediction] = {}  # the last of each side

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor) -> Float[Tensor, "3 n"]:
        """Prior, diffusion and reconstruction of images `rows` at (t, ε), in float64."""
        return self._of(0, rows, t, eps)

    def times(self, t: Tensor) -> Tensor:
        """Where the network is asked: t itself, or the end of the chain's step it falls in."""
        return t if self.steps is None else on_chain(t, self.steps)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """λ and the measure m of a uniform t, by which the diffusion term is ½ m ‖ε − ε̂‖²."""
        return self.base.at(self.times(t), self.steps)[:2]

    @property
    def models(self) -> list[Model]:
        """The model, or both."""
        return [side.model for side in self.sides]

    @property
    def evaluations(self) -> int:
        """Of a network, for each draw."""
        return sum(2 if side.decoder.uses_network else 1 for side in self.sides)

    def refuse_nonfinite(self, bound: Tensor, rows: Tensor, t: Tensor) -> None:
        """Raise where a bound is NaN or infinite, naming the first image and its λ."""
        bad = ~torch.isfinite(bound)
        if bad.any():
            first = int(bad.nonzero()[0])
            level = self.levels(t[first : first + 1])[0].item()
            image, draws = int(self.numbers[int(rows[first])]), f"{int(bad.sum())} of {len(bad)}"
            came = (
                f"NaN or infinity on image {image} at λ = {level:.4g} ({draws} draws of its batch)"
            )
            raise InvalidValue("model", "give a finite bound", came)

    def _of(self, index: int, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        side = self.sides[index]
        watched = _Watched(side.model)
        bound = unchecked(elbo)(
            watched,
            self.data[rows],
            schedule=side.base,
            decoder=side.decoder,
            steps=side.steps,
            t=t if side.steps is None else on_chain(t, side.steps),
            eps=eps.to(self.data.dtype) if self.data.is_floating_point() else eps,
            condition=of_rows(self.condition, rows, len(self.x)),
        )
        self._last = watched.first, self.x[rows], eps
        self.predictions[index] = watched.first
        return torch.stack([bound.prior, bound.diffusion, bound.reconstruction]).double()

    def squared_error(self) -> tuple[Tensor, Tensor]:
        """λ and ‖ε − ε̂‖² of the last call, whatever the reverse variance."""
        prediction, x, eps = self._last
        return prediction.logsnr, prediction.squared_error(x, eps.to(x.dtype))


def known_range(model: Any, schedule: Schedule, steps: int | None) -> None:
    """A rule: warn where the model is asked beyond what it knows or was trained on."""
    warn_beyond(original(model), schedule, steps, evaluation=True)


def known_levels(model: Any, schedule: Schedule) -> None:
    """A rule: `known_range` in continuous time."""
    known_range(model, schedule, None)


def _side(model: Model, schedule: Schedule, decoder: Decoder, steps: int | None) -> Side:
    base = Linear(schedule.logsnr_max, schedule.logsnr_min) if steps is None else schedule
    known_range(model, base, steps)
    return Side(model, base, decoder, steps)


class _Watched:
    """A model that keeps its first prediction: that of the diffusion term, before that of a
    decoder that looks at the network."""

    first: Prediction

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        prediction: Prediction = self.model(z, logsnr, **condition)
        if not hasattr(self, "first"):
            self.first = prediction
        return prediction


class Difference(Integrand):
    """The bound of the first model minus that of the second, at the same (image, t, ε).

    `schedule`, `decoder` and `steps` may be pairs, one for each model. In continuous time both are
    asked at the same λ, between the outer of their ends, and a diffusion term is zero beyond its
    own. Where one is a chain, both are asked at the same t.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> one, other = Lattice(decoder.grid, [0.5, 0.5]), Lattice(decoder.grid, [0.4, 0.6])
    >>> integrand = Difference(one, other, torch.tensor([[0], [1]]), Linear(), decoder)
    >>> integrand(torch.tensor([0]), torch.tensor([0.9]), torch.zeros(1, 1))[0]        # of the prior
    tensor([0.], dtype=torch.float64)
    """

    name = "compare"

    def __init__(
        self,
        model: Model,
        other: Model,
        data: Tensor,
        schedule: Schedule | tuple[Schedule, Schedule],
        decoder: Decoder | tuple[Decoder, Decoder],
        steps: int | tuple[int | None, int | None] | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        schedules, decoders, chains = pair(schedule), pair(decoder), pair(steps)
        super().__init__(model, data, schedules[0], decoders[0], chains[0], condition)
        self.sides.append(_side(other, schedules[1], decoders[1], chains[1]))
        if decoders[1] is not decoders[0]:
            decoders[1].encode(data)  # raises where it cannot take this data
        self.continuous = chains == (None, None)
        if self.continuous:
            bases = [side.base for side in self.sides]
            high, low = (f(getattr(base, end) for base in bases) for f, end in _OUTER)
            self.base = Linear(high, low)

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        first, second = (self._within(index, rows, t, eps) for index in range(2))
        return first - second

    def _within(self, index: int, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """A side's parts, from a time between the outer ends."""
        own, base = self.sides[index].base, self.base
        ends = (own.logsnr_max, own.logsnr_min)
        if not self.continuous or ends == (base.logsnr_max, base.logsnr_min):
            return self._of(index, rows, t, eps)
        level = base.at(t)[0]
        parts = self._of(index, rows, own.inverse(level, clamp=True).to(t), eps)
        share = (ends[0] - ends[1]) / (base.logsnr_max - base.logsnr_min)
        inside = (level <= ends[0]) & (level >= ends[1])
        parts[1] = torch.where(inside, parts[1] / share, 0.0)
        return parts


def pair(value: Any) -> tuple[Any, Any]:
    """One value for both, or one for each.

    >>> pair(3), pair((3, None))
    ((3, 3), (3, None))
    """
    return value if isinstance(value, tuple) and len(value) == 2 else (value, value)


def finite_images(
    data: Tensor, condition: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """The images without NaN or infinity, their conditions, and their numbers among all."""
    kept = torch.isfinite(data).flatten(1).all(1).nonzero()[:, 0]
    require(len(kept) > 0, "data", "hold at least one finite example", "none")
    return data[kept], of_kept(condition, kept, len(data)), kept.cpu()


@contextmanager
def evaluating(*models: object, differentiable: bool = False) -> Iterator[None]:
    """Models in evaluation mode, without gradients, TF32 or autocast; all of it back as it was
    afterwards.

    The mode is switched for every thread that uses these modules, and TF32 for the whole process.
    With `differentiable`, gradients are recorded or not as before.

    >>> model = torch.nn.Dropout(0.5)
    >>> with evaluating(model):
    ...     model(torch.ones(3))
    tensor([1., 1., 1.])
    >>> model.training
    True
    """
    known = [model for model in map(original, models) if isinstance(model, nn.Module)]
    precision = [backend.fp32_precision for backend in _ROUNDING]
    devices = {p.device.type for model in known for p in model.parameters()} | {"cpu"}
    try:
        for backend in _ROUNDING:
            backend.fp32_precision = "ieee"
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(*known))
            if torch.is_inference_mode_enabled():  # in which there is no divergence
                stack.enter_context(torch.inference_mode(False))
            for device in sorted(devices):
                stack.enter_context(full_precision(torch.device(device)))
            stack.enter_context(nullcontext() if differentiable else torch.no_grad())
            yield
    finally:
        for backend, own in zip(_ROUNDING, precision, strict=True):
            backend.fp32_precision = own


class Finite:
    """A model whose predictions must be finite: an error names the example, by the numbers in
    `rows`, and the λ.

    >>> from vdiff.parameterization import Eps
    >>> model = lambda z, logsnr: Prediction(z, logsnr, z / 0, Eps())
    >>> model = Finite(model, torch.tensor([7]))
    >>> model(torch.ones(1, 1), torch.zeros(1))
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidValue: argument 'model' must be finite; got NaN or infinity for example 7 at λ = 0
    """

    def __init__(self, model: Model, rows: Tensor) -> None:
        self.model, self.rows = model, rows

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        prediction: Prediction = self.model(z, logsnr, **condition)
        bad = ~torch.isfinite(prediction.out).flatten(1).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            place = f"example {int(self.rows[first])} at λ = {logsnr[first].item():.4g}"
            raise InvalidValue("model", "be finite", f"NaN or infinity for {place}")
        return prediction


__all__ = ["Difference", "Finite", "Integrand", "evaluating"]

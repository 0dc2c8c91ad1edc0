"""What an evaluation averages: the bound of an image at one (t, ε), or the difference between the
bounds of two models."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import Model, decoder_fits, finite_end, original
from vdiff._known_range import warn_beyond
from vdiff._network import evaluation_mode
from vdiff._precision import at_least_float32
from vdiff._validate import require, unchecked
from vdiff.decoder import Decoder
from vdiff.errors import InvalidValue
from vdiff.likelihood.conditions import select_rows
from vdiff.loss import elbo, full_precision
from vdiff.prediction import Prediction
from vdiff.schedule import Linear, Schedule
from vdiff.times import on_chain
from vdiff.weighting._check import divides_table

_NVIDIA: Any = torch.backends.cudnn
_INTEL: Any = torch.backends.mkldnn
# backends whose float32 may be TF32 or bfloat16 inside; each before its parts
_ROUNDING: tuple[Any, ...] = (
    torch.backends.cuda.matmul, _NVIDIA, _NVIDIA.conv, _NVIDIA.rnn,
    _INTEL, _INTEL.matmul, _INTEL.conv, _INTEL.rnn,
)  # fmt: skip
_OUTER = ((max, "logsnr_max"), (min, "logsnr_min"))


class Side(NamedTuple):
    """A model and its bound: between the ends of `base`, or of a chain of `steps`."""

    model: Model
    base: Schedule
    decoder: Decoder
    steps: int | None

    def name(self, which: str) -> dict[str, object]:
        """What the bound depends on, for a protocol. `which` is appended to each key."""
        chain = self.steps is not None
        facts = {
            "decoder": repr(self.decoder),
            "logsnr": [self.base.logsnr_min, self.base.logsnr_max],
            "T": self.steps if chain else "∞",
            "schedule": repr(self.base) if chain else None,
        }
        return {f"{word}, {which}" if which else word: value for word, value in facts.items()}


class NonFiniteBound(InvalidValue):
    """The bound of an image is NaN or infinite."""


class Integrand:
    """The three parts of one model's bound at given (image, t, ε), nats.

    It uses the ends of the schedule alone: time is linear in λ between them. A chain keeps its
    steps. `kept` are the numbers of the images to use, by default all. `predictions` holds the
    last prediction of each side.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.level_values, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> rows, t = torch.tensor([0, 1]), torch.tensor([0.5, 0.5])
    >>> integrand(rows, t, torch.zeros(2, 1)).shape            # prior, diffusion, reconstruction
    torch.Size([3, 2])
    """

    name: ClassVar[str] = "evaluate"  # the function that its warnings name

    def __init__(
        self,
        model: Model,
        data: Tensor,
        schedule: Schedule,
        decoder: Decoder,
        steps: int | None = None,
        condition: Mapping[str, Any] | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.numbers = torch.arange(len(data)) if kept is None else kept.cpu()
        self.data, self.total = data if kept is None else data[kept], len(data)
        self.condition = condition or {}
        self.sides = [_side(model, schedule, decoder, steps)]
        _, self.base, self.decoder, self.steps = self.sides[0]
        x = decoder.encode(self.data)
        self.x = x.to(at_least_float32(x.dtype))
        self.predictions: dict[int, Prediction] = {}

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor) -> Float[Tensor, "3 n"]:
        """Prior, diffusion and reconstruction of images `rows` at (t, ε), in float64."""
        return self._parts(0, rows, t, eps)

    def times(self, t: Tensor) -> Tensor:
        """The network's times: t itself, or the end of the chain's step that holds t."""
        return t if self.steps is None else on_chain(t, self.steps)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """λ and m at t, for which the diffusion term is ½ m ‖ε − ε̂‖²."""
        return self.base.at(self.times(t), self.steps)[:2]

    @property
    def models(self) -> list[Model]:
        """The models of all sides."""
        return [side.model for side in self.sides]

    @property
    def evaluations(self) -> int:
        """Network evaluations for each draw."""
        return sum(2 if side.decoder.uses_network else 1 for side in self.sides)

    def refuse_nonfinite(self, bound: Tensor, rows: Tensor, t: Tensor) -> None:
        """Raise where a bound is NaN or infinite, naming the first image and its λ."""
        bad = ~torch.isfinite(bound)
        if bad.any():
            first = int(bad.nonzero()[0])
            level = self.levels(t[first : first + 1])[0].item()
            image, draws = int(self.numbers[int(rows[first])]), f"{int(bad.sum())} of {len(bad)}"
            where = f"image {image} at λ = {level:.4g} ({draws} draws of its batch)"
            raise NonFiniteBound("model", "give a finite bound", f"NaN or infinity on {where}")

    def _parts(self, index: int, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        side, predictions = self.sides[index], []

        def model(z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
            predictions.append(side.model(z, logsnr, **condition))
            return predictions[-1]

        bound = unchecked(elbo)(
            model, self.data[rows], schedule=side.base, decoder=side.decoder, steps=side.steps,
            t=t if side.steps is None else on_chain(t, side.steps),
            eps=eps.to(self.data.dtype) if self.data.is_floating_point() else eps,
            condition=select_rows(self.condition, self.numbers[rows.cpu()], self.total),
        )  # fmt: skip
        self.predictions[index] = predictions[0]  # a second one is for the decoder
        return torch.stack([bound.prior, bound.diffusion, bound.reconstruction]).double()

    def squared_error(self, rows: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """λ and ‖ε − ε̂‖² of the last prediction, which was of these images and noise."""
        prediction, x = self.predictions[len(self.sides) - 1], self.x[rows]
        return prediction.logsnr, prediction.squared_error(x, eps.to(x.dtype))


def known_range(model: Any, schedule: Schedule, steps: int | None) -> None:
    """Rule: warn where λ lies beyond what the model knows or was trained on."""
    warn_beyond(original(model), schedule, steps, evaluation=True)


def known_levels(model: Any, schedule: Schedule) -> None:
    """Rule: `known_range` in continuous time."""
    known_range(model, schedule, None)


def _side(model: Model, schedule: Schedule, decoder: Decoder, steps: int | None) -> Side:
    finite_end(schedule)
    divides_table(schedule, steps)
    decoder_fits(decoder, schedule)
    base = Linear(schedule.logsnr_max, schedule.logsnr_min) if steps is None else schedule
    known_range(model, base, steps)
    return Side(model, base, decoder, steps)


class Difference(Integrand):
    """The bound of the first model minus that of the second, at the same (image, t, ε).

    `schedule`, `decoder` and `steps` may be pairs, one for each model. In continuous time both
    models get the same λ between their outer ends, and a diffusion term is zero outside its own
    ends. Where one is a chain, both get the same t.
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
        levels = [getattr(each, "levels", None) for each in decoders]
        came, hint = "{!r} and {!r}".format(*decoders), "their data is not the same"
        require(levels[0] == levels[1], "decoder", "be a pair for the same levels", came, hint)
        super().__init__(model, data, schedules[0], decoders[0], chains[0], condition)
        self.sides.append(_side(other, schedules[1], decoders[1], chains[1]))
        if decoders[1] is not decoders[0]:
            decoders[1].encode(data)  # raises for data that it does not take
        self.continuous = chains == (None, None)
        if self.continuous:
            bases = [side.base for side in self.sides]
            high, low = (f(getattr(base, end) for base in bases) for f, end in _OUTER)
            self.base = Linear(high, low)

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        first, second = (self._within(index, rows, t, eps) for index in range(2))
        return first - second

    def _within(self, index: int, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """A side's parts at a time between the outer ends."""
        own, base = self.sides[index].base, self.base
        ends = (own.logsnr_max, own.logsnr_min)
        if not self.continuous or ends == (base.logsnr_max, base.logsnr_min):
            return self._parts(index, rows, t, eps)
        level = base.at(t)[0]
        parts = self._parts(index, rows, own.inverse(level, clamp=True).to(t), eps)
        share = (ends[0] - ends[1]) / (base.logsnr_max - base.logsnr_min)
        inside = (level <= ends[0]) & (level >= ends[1])
        parts[1] = torch.where(inside, parts[1] / share, 0.0)
        return parts


def pair(value: Any) -> tuple[Any, Any]:
    """One value for both models, or one for each.

    >>> pair(3), pair((3, None))
    ((3, 3), (3, None))
    """
    return value if isinstance(value, tuple) and len(value) == 2 else (value, value)


def finite_images(data: Tensor) -> Tensor:
    """The numbers of the images without NaN or infinity."""
    kept = torch.isfinite(data).flatten(1).all(1).nonzero()[:, 0]
    require(len(kept) > 0, "data", "hold at least one finite example", "none")
    return kept


@contextmanager
def evaluating(*models: object, differentiable: bool = False) -> Iterator[None]:
    """Models in evaluation mode, without gradients, TF32 or autocast. Restores everything.

    The mode is that of the modules, for every thread that uses them, and TF32 that of the process.
    With `differentiable`, gradients are recorded or not as before.

    >>> model = torch.nn.Dropout(0.5)
    >>> with evaluating(model):
    ...     model(torch.ones(3))
    tensor([1., 1., 1.])
    >>> model.training
    True
    """
    modules = [model for model in map(original, models) if isinstance(model, nn.Module)]
    precision = [backend.fp32_precision for backend in _ROUNDING]
    devices = {p.device.type for model in modules for p in model.parameters()} | {"cpu"}
    try:
        for backend in _ROUNDING:
            backend.fp32_precision = "ieee"
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(*modules))
            if torch.is_inference_mode_enabled():  # a divergence needs gradients
                stack.enter_context(torch.inference_mode(False))
            for device in sorted(devices):
                stack.enter_context(full_precision(torch.device(device)))
            stack.enter_context(nullcontext() if differentiable else torch.no_grad())
            yield
    finally:
        for backend, own in zip(_ROUNDING, precision, strict=True):
            backend.fp32_precision = own


class Finite:
    """A model that raises where a prediction is not finite. The error names the example, by its
    number in `rows`, and λ.

    >>> from vdiff.parameterization import Eps
    >>> model = Finite(lambda z, logsnr: Prediction(z, logsnr, z / 0, Eps()), torch.tensor([7]))
    >>> model(torch.ones(1, 1), torch.zeros(1))
    Traceback (most recent call last):
    vdiff.errors.InvalidValue: argument 'model' must be finite; got NaN or infinity for example...
    """

    def __init__(self, model: Model, rows: Tensor) -> None:
        self.model, self.rows = model, rows

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        prediction: Prediction = self.model(z, logsnr, **condition)
        bad = ~torch.isfinite(prediction.output).flatten(1).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            example = f"example {int(self.rows[first])} at λ = {logsnr[first].item():.4g}"
            raise InvalidValue("model", "be finite", f"NaN or infinity for {example}")
        return prediction

"""What an evaluation averages: the bound of an image at one (t, ε)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Model
from vdiff._diffusion import Diffusion, Generators, diffusion_of
from vdiff._partial import Partial
from vdiff._precision import to_float64
from vdiff._validate import require, unchecked
from vdiff.decoder import Decoder
from vdiff.errors import InvalidValue
from vdiff.likelihood._rules import is_path
from vdiff.likelihood._side import same_in_any_order, side_of
from vdiff.likelihood.conditions import select_rows
from vdiff.loss import elbo
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule
from vdiff.times import generator_of, on_chain

FEW_IMAGES = 16  # whose mean is the path of a schedule that depends on them, for a curve
Drawn = Sequence[tuple[Schedule, Tensor | float]]  # of each side, for the examples of a batch


class NonFiniteBound(InvalidValue):
    """The bound of an image is NaN or infinite."""


class Integrand:
    """The three parts of one model's bound at given (image, t, ε), nats.

    It uses the ends of the schedule alone: time is linear in λ between them (of tokens in α). A
    chain keeps its steps, and a schedule over dimensions is a path, which it keeps. `kept` are the
    numbers of the images to use, by default all. `predictions` holds the last prediction of each
    side. With `any_order`, masks hide a number of tokens that λ alone decides, where that has the
    same bound.

    With a `mask` or `absent`, shared or with a row for each image, the parts are those of the
    modelled dimensions. `dims` is their number: an int, or (images,) where they differ.

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
        decoder: Decoder | None,
        steps: int | None = None,
        condition: Mapping[str, Any] | None = None,
        kept: Tensor | None = None,
        mask: Tensor | None = None,
        absent: Tensor | None = None,
        any_order: bool = True,
    ) -> None:
        self.numbers = torch.arange(len(data)) if kept is None else kept.cpu()
        self.data, self.total = data if kept is None else data[kept], len(data)
        self.condition = condition or {}
        self._set_sides([(model, schedule, decoder, steps)], any_order)
        self.given = {word: m for word, m in (("mask", mask), ("absent", absent)) if m is not None}
        masks = (_rows_of(m, kept, data) for m in (mask, absent))
        self.part = Partial.of(self.data, *masks)
        if self.part.modelled is not None and bool(self.part.modelled.all()):
            self.part = Partial()  # the numbers without a mask, bit for bit
        self.dims = self.part.dims(self.data)
        if isinstance(self.dims, Tensor):
            what = f"leave a modelled dimension in one {self.process.unit.example} or more"
            require(bool(self.dims.any()), next(iter(self.given)), what, "none")
            same = bool((self.dims == self.dims[0]).all())
            self.dims = int(self.dims[0]) if same else self.dims
        self.x = self.process.encode(self.part.clean(self.data, self.process.blank), decoder)
        self.predictions: dict[int, Prediction] = {}

    def __call__(
        self, rows: Tensor, t: Tensor, eps: Tensor, drawn: Drawn | None = None
    ) -> Float[Tensor, "3 n"]:
        """Prior, diffusion and reconstruction of images `rows` at (t, ε), in float64. `drawn` are
        the schedules of these rows, where they depend on data."""
        return self._parts(0, rows, t, eps, drawn)

    def noise(self, rows: Tensor, generator: Generators) -> Tensor:
        """Noise for images `rows`. Of several generators each draws an equal share of it."""
        return self.process.draw(self.x[rows], generator)

    def _set_sides(
        self,
        bounds: Sequence[tuple[Model, Schedule, Decoder | None, int | None]],
        any_order: bool,
    ) -> None:
        processes = [diffusion_of(bound[0]) for bound in bounds]
        counted = [same_in_any_order(*bound) for bound in bounds] if any_order else []
        known = [process for process in counted if process is not None]
        if len(known) == len(bounds):  # z of two models is the same at one noise
            processes = known
        self.sides = [side_of(*each, own) for each, own in zip(bounds, processes, strict=True)]
        _, self.base, self.decoder, self.steps, self.process = self.sides[0]

    @property
    def depends_on_data(self) -> bool:
        """Whether a schedule is another for other images."""
        return any(side.base.depends_on_data for side in self.sides)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Drawn | None:
        """The schedule of each side for images `rows` and what it adds to their bound, where one
        depends on data."""
        if not self.depends_on_data:
            return None
        return [side.base.for_data(self.x[rows], generator) for side in self.sides]

    def times(self, t: Tensor) -> Tensor:
        """The network's times: t itself, or the end of the chain's step that holds t."""
        return t if self.steps is None else on_chain(t, self.steps)

    def levels(self, t: Tensor, drawn: Drawn | None = None) -> tuple[Tensor, Tensor]:
        """λ and m at t, (n,) or fields, for which the diffusion term is ½ Σ m (ε − ε̂)²."""
        base = self.base if drawn is None else drawn[0][0]
        return base.at(self.times(t), self.steps, ndim=self.x.ndim)[:2]

    @property
    def paths_of_controls(self) -> int:
        """How many levels `all_levels` gives."""
        return 1

    def all_levels(self, t: Tensor, drawn: Drawn | None = None) -> list[tuple[Tensor, Tensor]]:
        """The levels at which control variates are taken."""
        return [self.levels(t, drawn)]

    def mean_levels(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """λ at these times, on the CPU: along a path the mean over dimensions, and over some
        images where it depends on them."""
        if not is_path(self.base):
            return self.base.at(t)[0].cpu()
        few = self.x[:FEW_IMAGES]
        base = self.base.for_data(few, generator_of(0, 0, "curve", few.device))[0]
        times = (one.expand(len(few)) for one in t.to(few.device))
        levels = [base.at(when, ndim=few.ndim).logsnr.mean() for when in times]
        return torch.stack(levels).cpu()

    def weight(self, rows: Tensor) -> Tensor | None:
        """The number of modelled dimensions of images `rows` over its mean; None where all have
        the same."""
        if not isinstance(self.dims, Tensor):
            return None
        dims = to_float64(self.dims)
        return (dims / dims.mean())[rows]

    @property
    def counted(self) -> Tensor | None:
        """The images with a modelled dimension, (n,); None where all have one."""
        dims = self.dims
        whole = isinstance(dims, int) or bool((dims > 0).all())
        return None if whole else torch.as_tensor(dims > 0).nonzero()[:, 0]

    @property
    def names(self) -> list[dict[str, object]]:
        """What the bound of each side depends on."""
        return [side.name(self.x.ndim) for side in self.sides]

    @property
    def models(self) -> list[Model]:
        """The models of all sides."""
        return [side.model for side in self.sides]

    @property
    def evaluations(self) -> int:
        """Network evaluations for each draw."""
        return sum(side.evaluations for side in self.sides)

    def refuse_nonfinite(self, bound: Tensor, rows: Tensor, t: Tensor) -> None:
        """Raise where a bound is NaN or infinite, naming the first image and its λ."""
        bad = ~torch.isfinite(bound)
        if bad.any():
            first = int(bad.nonzero()[0])
            level = self.mean_levels(self.times(t[first : first + 1])).item()
            example = self.process.unit.example
            image, draws = int(self.numbers[int(rows[first])]), f"{int(bad.sum())} of {len(bad)}"
            where = f"{example} {image} at λ = {level:.4g} ({draws} draws of its batch)"
            raise NonFiniteBound("model", "give a finite bound", f"NaN or infinity on {where}")

    def _parts(
        self, index: int, rows: Tensor, t: Tensor, eps: Tensor, drawn: Drawn | None = None
    ) -> Tensor:
        side = self.sides[index]
        model = _Recorded(side.model, side.process)
        base, latent = (side.base, 0.0) if drawn is None else drawn[index]
        bound = unchecked(elbo)(
            model, self.data[rows], schedule=base, decoder=side.decoder, steps=side.steps,
            t=t if side.steps is None else on_chain(t, side.steps),
            eps=eps.to(self.data.dtype) if self.data.is_floating_point() else eps,
            condition=select_rows(self.condition, self.numbers[rows.cpu()], self.total),
            mask=self._of(self.part.modelled, rows), absent=self._of(self.part.absent, rows),
        )  # fmt: skip
        self.predictions[index] = model.predictions[0]  # a second one is for the decoder
        own = Partial(self._of(self.part.modelled, rows))
        prior = bound.prior + own.where_any(latent)
        return torch.stack([prior, bound.diffusion, bound.reconstruction]).double()

    def _of(self, mask: Tensor | None, rows: Tensor) -> Tensor | None:
        return None if mask is None else mask[rows]

    def squared_error(self, rows: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """λ and ‖ε − ε̂‖² of the last prediction, which was of these images, noise and times."""
        prediction, x = self.predictions[len(self.sides) - 1], self.x[rows]
        if self.part.modelled is not None:  # the model got other λ where x is given
            modelled, logsnr = self.part.modelled[rows], self.levels(t)[0]
            prediction = prediction.replace(logsnr=logsnr, modelled=modelled)
        return prediction.logsnr, prediction.squared_error(x, eps.to(x.dtype))


class _Recorded:
    """A model as a `process` corrupts and scores for it, which keeps its predictions."""

    def __init__(self, model: Model, process: Diffusion) -> None:
        self.inner, self.process = model, process
        self.replaces = process is not diffusion_of(model)
        self.predictions: list[Any] = []

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Any:
        prediction: Any = self.inner(z, logsnr, **condition)
        if self.replaces:
            prediction = prediction.replace(process=self.process)
        self.predictions.append(prediction)
        return prediction


def _rows_of(mask: Tensor | None, kept: Tensor | None, data: Tensor) -> Tensor | None:
    """The mask of the images `kept`, where it has a row for each image."""
    own = mask is not None and mask.ndim == data.ndim and len(mask) == len(data)
    return mask[kept] if mask is not None and own and kept is not None else mask


def finite_images(data: Tensor, absent: Tensor | None = None) -> Tensor:
    """The numbers of the images without NaN or infinity in what is not absent."""
    finite = torch.isfinite(data)
    finite = finite if absent is None else finite | absent
    kept = finite.flatten(1).all(1).nonzero()[:, 0]
    require(len(kept) > 0, "data", "hold at least one finite example", "none")
    return kept

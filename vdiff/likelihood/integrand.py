"""What an evaluation averages: the bound of one image at one (t, ε), and the difference between two models'."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.decoder import Decoder
from vdiff.denoiser import evaluation_mode, warn_beyond
from vdiff.errors import check_batch, must
from vdiff.gaussian import at_least_float32
from vdiff.likelihood.conditions import check_conditions, of_kept, of_rows
from vdiff.loss import Model, check_call, check_decoder, elbo, full_precision
from vdiff.parameterization import Prediction
from vdiff.schedule import Linear, Schedule
from vdiff.times import on_chain
from vdiff.weighting import check_chain

_NVIDIA: Any = torch.backends.cudnn
_INTEL: Any = torch.backends.mkldnn
_ROUNDING: tuple[Any, ...] = (  # whose float32 may be TF32 or bfloat16 inside; each before its parts
    torch.backends.cuda.matmul, _NVIDIA, _NVIDIA.conv, _NVIDIA.rnn, _INTEL, _INTEL.matmul, _INTEL.conv, _INTEL.rnn,
)  # fmt: skip
_CLIPPING = ("clip", "clip_denoised", "clamp", "threshold", "thresholding", "dynamic_threshold")


class Integrand:
    """The three parts of one model's bound at given (image, t, ε), nats.

    Of the schedule it takes the ends: time is linear in λ between them, since where to look is the evaluation's own business.
    A chain keeps its steps.

    >>> from vdiff import Categorical, GaussianMixture, Lattice, Linear
    >>> decoder = Categorical(levels=2)
    >>> integrand = Integrand(Lattice(decoder.grid, [0.5, 0.5]), torch.tensor([[0], [1]]), Linear(), decoder)
    >>> rows, t = torch.tensor([0, 1]), torch.tensor([0.5, 0.5])
    >>> integrand(rows, t, torch.zeros(2, 1)).shape            # prior, diffusion, reconstruction
    torch.Size([3, 2])
    """

    def __init__(
        self,
        model: Model,
        data: Tensor,
        schedule: Schedule,
        decoder: Decoder,
        steps: int | None = None,
        condition: dict[str, Any] | None = None,
        name: str = "evaluate",
    ) -> None:
        condition = condition or {}
        for word in condition:
            if word in _CLIPPING and not isinstance(condition[word], Tensor):
                hint = "a clipped x̂ is another model, whose bound is not this one's: put it into the model and name it, if that is meant"
                raise ValueError(must(name, word, "be left out", condition[word], hint))
        check_call(name, model, schedule, steps, watch=False)
        check_chain(name, None, schedule, steps)
        check_decoder(name, decoder, schedule)
        check_batch(name, data, "data")
        check_conditions(name, condition, len(data))
        self.name = name
        self.models, self.data, self.decoder, self.steps, self.condition = [model], data, decoder, steps, condition
        self.base = Linear(schedule.logsnr_max, schedule.logsnr_min) if steps is None else schedule
        warn_beyond(name, model, self.base, steps, evaluation=True)
        x = decoder.encode(data)
        self.x = x.to(at_least_float32(x.dtype))
        self.numbers = torch.arange(len(x))  # by which errors name the images
        self.predictions: dict[int, Prediction] = {}  # the last of each model

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor) -> Float[Tensor, "3 n"]:
        """Prior, diffusion and reconstruction of images `rows` at (t, ε), in float64."""
        return self._of(self.models[0], rows, t, eps)

    def times(self, t: Tensor) -> Tensor:
        """Where the network is asked: t itself, or the end of the chain's step it falls in."""
        return t if self.steps is None else on_chain(t, self.steps)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """λ and the measure m of a uniform t, by which the diffusion term is ½ m ‖ε − ε̂‖²."""
        return self.base.levels(self.times(t), self.steps)

    @property
    def evaluations(self) -> int:
        """Of a network, for each draw."""
        return len(self.models) * (2 if self.decoder.denoise else 1)

    def refuse_nonfinite(self, bound: Tensor, rows: Tensor, t: Tensor) -> None:
        """Raise where a bound is NaN or infinite, naming the first image and its λ."""
        bad = ~torch.isfinite(bound)
        if bad.any():
            first = int(bad.nonzero()[0])
            level = self.levels(t[first : first + 1])[0].item()
            came = f"NaN or infinity on image {int(self.numbers[int(rows[first])])} at λ = {level:.4g} ({int(bad.sum())} of {len(bad)} draws of its batch)"
            raise ValueError(must(self.name, "model", "give a finite bound", came))

    def _of(self, model: Model, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        condition = of_rows(self.condition, rows, len(self.x))
        watched = _Watched(model)
        bound = elbo(
            watched,
            self.data[rows],
            schedule=self.base,
            decoder=self.decoder,
            steps=self.steps,
            t=self.times(t),
            eps=eps.to(self.data.dtype) if self.data.is_floating_point() else eps,
            condition=condition,
        )
        self._last = watched.first, self.x[rows], eps
        self.predictions[id(model)] = watched.first
        return torch.stack([bound.prior, bound.diffusion, bound.reconstruction]).double()

    def squared_error(self) -> tuple[Tensor, Tensor]:
        """λ and ‖ε − ε̂‖² of the last call, whatever the reverse variance."""
        prediction, x, eps = self._last
        return prediction.logsnr, prediction.squared_error(x, eps.to(x.dtype))


class _Watched:
    """A model that keeps its first prediction: the diffusion term's, before a decoder's that looks at the network."""

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

    >>> from vdiff import Categorical, Lattice, Linear
    >>> decoder = Categorical(levels=2)
    >>> one, other = Lattice(decoder.grid, [0.5, 0.5]), Lattice(decoder.grid, [0.4, 0.6])
    >>> integrand = Difference(one, other, torch.tensor([[0], [1]]), Linear(), decoder)
    >>> integrand(torch.tensor([0]), torch.tensor([0.9]), torch.zeros(1, 1))[0]        # of the prior
    tensor([0.], dtype=torch.float64)
    """

    def __init__(self, model: Model, other: Model, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.models.append(other)
        check_call("compare", other, self.base, self.steps, evaluation=True)

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        first, second = (self._of(model, rows, t, eps) for model in self.models)
        return first - second


def finite_images(data: Tensor, condition: dict[str, Any]) -> tuple[Tensor, dict[str, Any], Tensor]:
    """The images without NaN or infinity, their conditions, and their numbers among all."""
    kept = torch.isfinite(data).flatten(1).all(1).nonzero()[:, 0]
    return data[kept], of_kept(condition, kept, len(data)), kept.cpu()


@contextmanager
def evaluating(*models: object, differentiable: bool = False) -> Iterator[None]:
    """Models in evaluation mode, without gradients, TF32 or autocast; all of it back as it was afterwards.

    The mode is switched for every thread that uses these modules, and TF32 for the whole process.
    With `differentiable`, gradients are recorded or not as before.

    >>> model = torch.nn.Dropout(0.5)
    >>> with evaluating(model):
    ...     model(torch.ones(3))
    tensor([1., 1., 1.])
    >>> model.training
    True
    """
    known = [model for model in models if isinstance(model, nn.Module)]
    precision = [backend.fp32_precision for backend in _ROUNDING]
    devices = {p.device.type for model in known for p in model.parameters()} | {"cpu"}
    try:
        for backend in _ROUNDING:
            backend.fp32_precision = "ieee"
        with ExitStack() as stack:
            stack.enter_context(evaluation_mode(*models))
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
    """A model whose predictions are checked: an error names the example, by the numbers in `rows`, and the λ.

    >>> from vdiff import Eps
    >>> model = Finite("example", lambda z, logsnr: Prediction(z, logsnr, z / 0, Eps()), torch.tensor([7]))
    >>> model(torch.ones(1, 1), torch.zeros(1))
    Traceback (most recent call last):
        ...
    ValueError: example: argument 'model' must be finite; got NaN or infinity for example 7 at λ = 0
    """

    def __init__(self, name: str, model: Model, rows: Tensor) -> None:
        self.name, self.model, self.rows = name, model, rows

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        said: Prediction = self.model(z, logsnr, **condition)
        if isinstance(said, Prediction):  # what is none is refused by whoever asked
            bad = ~torch.isfinite(said.out).flatten(1).all(1)
            if bad.any():
                first = int(bad.nonzero()[0])
                raise ValueError(
                    must(
                        self.name,
                        "model",
                        "be finite",
                        f"NaN or infinity for example {int(self.rows[first])} at λ = {logsnr[first].item():.4g}",
                    )
                )
        return said


__all__ = ["Difference", "Finite", "Integrand", "evaluating"]

"""Models as an evaluation runs them: without dropout, gradients, TF32 or autocast, and finite."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from vdiff._arguments import Model, original
from vdiff._network import evaluation_mode
from vdiff.errors import InvalidValue
from vdiff.loss import full_precision
from vdiff.prediction import Prediction

_NVIDIA: Any = torch.backends.cudnn
_INTEL: Any = torch.backends.mkldnn
# backends whose float32 may be TF32 or bfloat16 inside; each before its parts
_ROUNDING: tuple[Any, ...] = (
    torch.backends.cuda.matmul, _NVIDIA, _NVIDIA.conv, _NVIDIA.rnn,
    _INTEL, _INTEL.matmul, _INTEL.conv, _INTEL.rnn,
)  # fmt: skip


class _Ieee:
    """Float32 without TF32 in the process, from the first that enters until the last leaves: two
    threads may evaluate at once."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.before: list[str] = []

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = [backend.fp32_precision for backend in _ROUNDING]
            self.inside += 1
            for backend in _ROUNDING:
                backend.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for backend, own in zip(_ROUNDING, self.before, strict=True):
                    backend.fp32_precision = own


_IEEE = _Ieee()


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
    devices = {p.device.type for model in modules for p in model.parameters()} | {"cpu"}
    with _IEEE, ExitStack() as stack:
        stack.enter_context(evaluation_mode(*modules))
        if torch.is_inference_mode_enabled():  # a divergence needs gradients
            stack.enter_context(torch.inference_mode(False))
        for device in sorted(devices):
            stack.enter_context(full_precision(torch.device(device)))
        stack.enter_context(nullcontext() if differentiable else torch.no_grad())
        yield


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
            level = logsnr[first].double().mean().item()
            example = f"example {int(self.rows[first])} at λ = {level:.4g}"
            raise InvalidValue("model", "be finite", f"NaN or infinity for {example}")
        return prediction

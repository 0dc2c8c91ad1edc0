"""A model in a sampler: its predictions are checked and recorded."""

import warnings
from typing import Any

from torch import Tensor

from vdiff._arguments import Condition, Model
from vdiff._diffusion import diffusion_of
from vdiff._validate import require
from vdiff.errors import InvalidArgument
from vdiff.parameterization import DIGITS
from vdiff.prediction import ModelOutput, Prediction
from vdiff.sampling._inpainting import Kept
from vdiff.sampling.grid import in_words
from vdiff.sampling.step import Counted


class Watched(Counted):
    """A model whose very first prediction is checked before a step computes with it. `first` holds
    the first prediction of a step; the loop clears it. Where a dimension is `kept`, the model sees
    data or noise."""

    def __init__(self, model: Model, condition: Condition, kept: Kept, ends: Any) -> None:
        super().__init__(model, condition=condition)
        self.first: list[ModelOutput] = []
        self.predict = kept.model(super().forward, *ends)

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Any:
        try:
            prediction = self.predict(z, logsnr, **condition)
            if self.evaluations == 1 and diffusion_of(prediction).continuous:
                _check_conditioning(prediction)
        except InvalidArgument as error:
            error.function = error.function or "sample"  # not the step that evaluates it
            raise
        if not self.first:
            self.first.append(prediction)
        return prediction


def _check_conditioning(prediction: Prediction) -> None:
    """Raise if the network's output does not determine x̂ or ε̂ at this level; warn if they have
    lost their digits."""
    ends, target = prediction.logsnr.aminmax(), prediction.source
    dtype = prediction.output.dtype
    error = max(max(target.rounding(end.view(1), dtype)) for end in ends)
    came = f"{target!r} at λ = {in_words(prediction.logsnr)}"
    hint = "predict v, or start at a level with some signal"
    determined = "start where the model's output determines x̂ and ε̂"
    require(error < 1.0, "levels", determined, came, hint)
    if error > DIGITS:
        lost = f"leaves x̂ or ε̂ with an error of {error:.1g} by rounding"
        warnings.warn(f"sample: {came} {lost}: {hint}", stacklevel=2)


__all__ = ["Watched"]

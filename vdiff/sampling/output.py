"""From a sampler's last prediction to data."""

import torch
from torch import Tensor

from vdiff.decoder import DiscretizedGaussian, Levels
from vdiff.errors import check_data, check_finite, must
from vdiff.prediction import Prediction
from vdiff.sampling.noise import Generators, noise_like

_BYTES = DiscretizedGaussian(256)
# dimensions at a time, but one example at least: 256 levels of each, in float64, are 8 MB
PIECE = 4096


def to_levels(
    decoder: Levels, prediction: Prediction, *, draw: bool = False, generator: Generators = None
) -> Tensor:
    """Integer levels from the prediction at the last noise level: those nearest to x̂, or, with
    `draw`, a sample of the decoder.

    The chain's own last step is the draw, from p(data | z₀); what is nearest to x̂ has less noise
    and is no sample of it.

    Raises TypeError for what is no prediction, for a decoder without levels, and as `noise_like`
    for its generators.

    >>> from vdiff import Categorical, X
    >>> last = Prediction(torch.tensor([[-0.7, 0.2]]), torch.tensor([12.0]), torch.tensor([[-0.74, 0.26]]), X())
    >>> to_levels(Categorical(4), last), to_levels(Categorical(4), last, draw=True)
    (tensor([[0, 2]]), tensor([[0, 2]]))
    """
    if not isinstance(prediction, Prediction):
        hint = "the last of trajectory(…); of a sample itself, decoder.decode(x)"
        raise TypeError(
            must("to_levels", "prediction", "be a Prediction", type(prediction).__name__, hint)
        )
    if not isinstance(decoder, Levels):
        raise TypeError(
            must(
                "to_levels",
                "decoder",
                "have levels",
                repr(decoder),
                "continuous data is prediction.x",
            )
        )
    if not draw:
        return decoder.decode(prediction.x)
    uniform, drawn = noise_like(prediction.z, generator, torch.rand), []
    at_once = max(1, PIECE // uniform[0].numel())
    for rows in (slice(first, first + at_once) for first in range(0, len(uniform), at_once)):
        piece = prediction.but(
            **{
                name: value[rows]
                for name, value in vars(prediction).items()
                if isinstance(value, Tensor)
            }
        )
        below = (
            decoder.law(piece).exp().cumsum(-1)
        )  # the level is where the distribution function passes a uniform number
        drawn.append((below < uniform[rows][..., None]).sum(-1).clamp(max=decoder.levels - 1))
    return torch.cat(drawn)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [−1, 1] as bytes, rounded to the nearest of 256 levels; what lies beyond is
    clamped.

    Raises TypeError for integers, which are levels already, and ValueError for NaN and infinity.

    >>> to_uint8(torch.tensor([[-1.0, 0.1, 0.999, 7.0]]))
    tensor([[  0, 140, 255, 255]], dtype=torch.uint8)
    """
    check_data("to_uint8", x)
    check_finite("to_uint8", x, "x")
    return _BYTES.decode(x).to(torch.uint8)


__all__ = ["to_levels", "to_uint8"]

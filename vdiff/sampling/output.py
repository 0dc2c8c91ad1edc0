"""From a sampler's last prediction to data."""

import torch
from torch import Tensor

from vdiff.decoder import DiscretizedGaussian, Levels
from vdiff.errors import must
from vdiff.gaussian import alpha, per_example
from vdiff.parameterization import Prediction
from vdiff.sampling.noise import Generators, noise_like

_BYTES = DiscretizedGaussian(256)
PIECE = 4096  # dimensions at a time: 256 levels of each, in float64, are 8 MB


def to_levels(decoder: Levels, prediction: Prediction, *, draw: bool = False, generator: Generators = None) -> Tensor:
    """Integer levels from the prediction at the last noise level: those nearest to x̂, or, with `draw`, a sample of the decoder.

    The chain's own last step is the draw, from p(data | z₀); what is nearest to x̂ has less noise and is no sample of it.

    Raises ValueError for a draw by a decoder with a prior for each dimension.

    >>> from vdiff import Categorical, X
    >>> last = Prediction(torch.tensor([[-0.7, 0.2]]), torch.tensor([12.0]), torch.tensor([[-0.74, 0.26]]), X())
    >>> to_levels(Categorical(4), last), to_levels(Categorical(4), last, draw=True)
    (tensor([[0, 2]]), tensor([[0, 2]]))
    """
    if not isinstance(decoder, Levels):
        raise TypeError(must("to_levels", "decoder", "have levels", repr(decoder), "continuous data is prediction.x"))
    if not draw:
        return decoder.decode(prediction.x)
    prior = getattr(decoder, "prior", None)
    if prior is not None and prior.ndim > 1:
        raise ValueError(
            must("to_levels", "decoder", "have one prior for all dimensions", tuple(prior.shape), "draw=False takes the nearest")
        )
    mean = prediction.x if decoder.denoise else prediction.z / per_example(alpha(prediction.logsnr), prediction.z)
    uniform = noise_like(mean, generator, torch.rand)
    rows = zip(*(torch.split(v.reshape(-1, 1), PIECE) for v in (mean, uniform)), strict=True)
    return torch.cat([_draw(decoder, one, prediction.logsnr[0], u) for one, u in rows]).view(mean.shape)


def _draw(decoder: Levels, mean: Tensor, logsnr: Tensor, uniform: Tensor) -> Tensor:
    """The level where the distribution function passes a uniform number, for each dimension as an example of its own."""
    levels = [torch.full(mean.shape, k, dtype=torch.long, device=mean.device) for k in range(decoder.levels)]
    below = torch.stack([decoder.log_prob(level, mean, logsnr) for level in levels], 1).exp().cumsum(1)
    return (below < uniform).sum(1).clamp(max=decoder.levels - 1)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [−1, 1] as bytes, rounded to the nearest of 256 levels; what lies beyond is clamped.

    >>> to_uint8(torch.tensor([[-1.0, 0.1, 0.999, 7.0]]))
    tensor([[  0, 140, 255, 255]], dtype=torch.uint8)
    """
    return _BYTES.decode(x).to(torch.uint8)


__all__ = ["to_levels", "to_uint8"]

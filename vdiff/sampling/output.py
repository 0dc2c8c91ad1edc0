"""From a sampler's last prediction to data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff._inputs import FiniteData
from vdiff._validate import validated
from vdiff.decoder import DiscretizedGaussian, Levels
from vdiff.prediction import Prediction
from vdiff.sampling.noise import noise_like

_BYTES = DiscretizedGaussian(256)
# dimensions at a time, but one example at least: 256 levels of each, in float64, are 8 MB
PIECE = 4096


@validated
def to_levels(
    decoder: Levels,
    prediction: Prediction,
    *,
    draw: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Integer levels from the prediction at the last noise level: the nearest to x̂ or, with
    `draw`, a sample of p(data | z₀), which is the chain's own last step and noisier.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> z, x = torch.tensor([[-0.7, 0.2]]), torch.tensor([[-0.74, 0.26]])
    >>> last = Prediction(z, torch.tensor([12.0]), x, X())
    >>> to_levels(Categorical(4), last), to_levels(Categorical(4), last, draw=True)
    (tensor([[0, 2]]), tensor([[0, 2]]))
    """
    if not draw:
        return decoder.decode(prediction.x)
    uniform, drawn = noise_like(prediction.z, generator, torch.rand), []
    at_once = max(1, PIECE // uniform[0].numel())
    for rows in (slice(first, first + at_once) for first in range(0, len(uniform), at_once)):
        tensors = {k: v[rows] for k, v in vars(prediction).items() if isinstance(v, Tensor)}
        # the level is where the distribution function passes a uniform number
        below = decoder.log_probs(prediction.replace(**tensors)).exp().cumsum(-1)
        drawn.append((below < uniform[rows][..., None]).sum(-1).clamp(max=decoder.levels - 1))
    return torch.cat(drawn)


@validated
def to_uint8(x: FiniteData) -> Tensor:
    """Images in [−1, 1] as bytes, rounded to the nearest of 256 levels and clamped.

    Raises TypeError for integers, which are levels already, and ValueError for NaN and infinity.

    >>> to_uint8(torch.tensor([[-1.0, 0.1, 0.999, 7.0]]))
    tensor([[  0, 140, 255, 255]], dtype=torch.uint8)
    """
    return _BYTES.decode(x).to(torch.uint8)

"""Losses of a T-step chain: iDDPM's hybrid loss, and the bound from one term per example."""

from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import (
    Condition,
    GaussianModel,
    Model,
    data_without_decoder,
    decoder_factorises,
    decoder_with_network,
    dims_fit_data,
    finite_end,
    fixed_ends,
    fixed_shape,
    known_range,
    learned_variance,
    original,
    same_noise_for_all,
    synchronised,
)
from vdiff._inputs import Ends, Mask, Noise, Random, Steps
from vdiff._known_range import note_training
from vdiff._partial import Partial
from vdiff._path_bound import PathBound, path_bound
from vdiff._validate import Number, Rule, validated
from vdiff.bound import Bound
from vdiff.decoder import Decoder
from vdiff.gaussian import Step, diffuse, masked, prior_kl
from vdiff.loss import complete
from vdiff.prediction import Prediction
from vdiff.reverse import reverse_kl
from vdiff.schedule import Schedule
from vdiff.schedule.noise_levels import NoiseLevels
from vdiff.times import stratified, stratum_of

LevelTimes = Annotated[Tensor, Ends(zero=True)]
BoundWeight = Annotated[float, Number(at_least=0.0, hint="less than 0 would maximise the bound")]
ONE_LEVEL: list[Rule] = [
    synchronised, finite_end, fixed_shape, decoder_with_network, known_range, same_noise_for_all,
    decoder_factorises, dims_fit_data,
]  # fmt: skip


@validated(rules=[data_without_decoder, *ONE_LEVEL, learned_variance])
def hybrid_loss(
    model: GaussianModel,
    data: Tensor,
    *,
    schedule: Schedule,
    steps: Steps,
    decoder: Decoder | None = None,
    bound_weight: BoundWeight = 0.001,
    mask: Mask | None = None,
    absent: Mask | None = None,
    t: LevelTimes | None = None,
    eps: Noise | None = None,
    generator: Random | None = None,
    condition: Condition = None,
) -> Float[Tensor, " batch"]:
    """iDDPM's loss for a learned reverse variance: simple loss + bound_weight · bound, in nats per
    dimension and example.

        ( ‖ε − ε̂‖² + bound_weight · n · K(sg(ε̂), Σ) ) / d

    K is one of the bound's n terms. Its mean is detached, so that the bound trains the variance
    alone: its gradient would drown that of the mean. With a decoder that looks at the network
    n = T + 1: the decoder's term, −log p(data | x̂(z₀)), is DDPM's first. Without a decoder n = T,
    and no draw trains the level t = 0, at which the last step of `sample` asks the network.

    `bound_weight=0` is DDPM's simple loss, the mean over all T + 1 levels, with or without a
    decoder.

    Args:
        data: x as the network sees it; with a decoder, data before it is encoded.
        decoder: for instance `DiscretizedGaussian(256, uses_network=True,
            posterior_variance=first_variance(schedule, steps))`, or for continuous data
            `Gaussian(uses_network=True)`.
        bound_weight: 0.001 in the paper; its code has K in bits, which is 0.001/ln 2 here.
        t: (batch,) times i/T instead of drawn ones; 0 is the first level, the decoder's.
        model, schedule, steps, mask, absent, eps, generator, condition: as in `weighted_elbo`; d
            is the number of modelled dimensions.

    Raises:
        ValueError: for a positive `bound_weight` and a model without a learned variance; for a
            decoder that does not look at the network.

    Nichol & Dhariwal, arXiv:2102.09672, section 3.1.

    >>> from vdiff import Denoiser
    >>> from vdiff.parameterization import Eps
    >>> from vdiff.schedule import Tabulated
    >>> from vdiff.variance import LearnedRange
    >>> model = Denoiser(lambda z, t: torch.cat([0 * z, z], 1), Eps(), variance=LearnedRange())
    >>> hybrid_loss(model, torch.randn(8, 2), schedule=Tabulated.linear_betas(), steps=999).shape
    torch.Size([8])
    """
    first = int(bound_weight > 0 and decoder is None)
    part = Partial.of(data, mask, absent)
    draws = t, eps, generator
    level = _one_level(model, data, part, schedule, steps, decoder, draws, condition, first)
    loss = level.prediction.squared_error(level.x, level.eps)
    if bound_weight > 0:
        loss = loss + bound_weight * level.term(level.prediction.detach_mean(), data)
    note_training(original(model), schedule, loss)
    dims = part.dims(level.x)
    loss = loss / (dims.clamp(min=1) if isinstance(dims, Tensor) else dims)
    return level.at.learn(loss, level.x[0].numel())


@validated(rules=[fixed_ends, *ONE_LEVEL])
def vlb(
    model: GaussianModel,
    data: Tensor,
    *,
    schedule: Schedule,
    steps: Steps,
    decoder: Decoder,
    mask: Mask | None = None,
    absent: Mask | None = None,
    t: LevelTimes | None = None,
    eps: Noise | None = None,
    generator: Random | None = None,
    condition: Condition = None,
) -> Bound:
    """The bound of a chain from one of its n = T + 1 terms per example: L_vlb of iDDPM, with one
    evaluation of the network. (`elbo` takes the decoder's term and one of the others: two.)

    The decoder looks at the network. If an example draws a step, its diffusion is n times the
    step's KL and its reconstruction is 0; if it draws the decoder, n times the decoder's term is
    its reconstruction and its diffusion is 0. The total is unbiased.

    Args:
        model, data, schedule, steps, decoder, mask, absent, t, eps, generator, condition: as in
            `hybrid_loss`.

    Raises:
        ValueError: as `hybrid_loss`; for a schedule with learned ends, which only `elbo` trains.

    Nichol & Dhariwal, arXiv:2102.09672, sections 3.1 and 3.3.

    >>> from vdiff import Denoiser
    >>> from vdiff.decoder import DiscretizedGaussian
    >>> from vdiff.parameterization import Eps
    >>> from vdiff.schedule import Tabulated
    >>> model = Denoiser(lambda z, logsnr: 0 * z, Eps())
    >>> chain = dict(schedule=Tabulated.linear_betas(), steps=999)
    >>> decoder = DiscretizedGaussian(256, uses_network=True)
    >>> vlb(model, torch.randint(0, 256, (8, 2)), decoder=decoder, **chain).total.shape
    torch.Size([8])
    """
    part, draws = Partial.of(data, mask, absent), (t, eps, generator)
    level = _one_level(model, data, part, schedule, steps, decoder, draws, condition)
    term, first = level.term(level.prediction, data), level.t == 0
    note_training(original(model), schedule, term)
    zero = torch.zeros_like(term)
    return Bound(
        prior=prior_kl(level.x, schedule.ends_of(level.x.ndim)[1], part.modelled),
        diffusion=torch.where(first, zero, term),
        reconstruction=torch.where(first, term, zero),
        dims=part.dims(level.x),
    )


class _Level(NamedTuple):
    """One evaluation of the model per example, at a level t = i/T of the chain, i = first … T.
    t = 0 is the decoder's level."""

    prediction: Prediction
    x: Tensor
    eps: Tensor
    t: Tensor
    at: NoiseLevels
    logsnr_max: Tensor | float
    decoder: Decoder | None
    terms: int
    at_first: int  # so many examples, at most, are at the first level

    def term(self, prediction: Prediction, data: Tensor) -> Tensor:
        """n times the bound's term at this level, nats per example."""
        term = reverse_kl(prediction, self.x, self.eps, self.at.step)
        if self.decoder is not None:
            rows = self.t.topk(self.at_first, largest=False).indices
            first = prediction.rows(rows)
            high = self.logsnr_max
            if isinstance(high, Tensor) and high.ndim and len(high) > 1:  # one for each example
                high = high[rows]
            nll = self.decoder.nll(
                data[rows], first.z, high, lambda *_: first, **masked(first.modelled)
            )
            term = term.scatter(0, rows, torch.where(self.t[rows] == 0, nll, term[rows]))
        return self.terms * term


def _one_level(
    model: Model,
    data: Tensor,
    part: Partial,
    schedule: Schedule,
    steps: int,
    decoder: Decoder | None,
    draws: tuple[Tensor | None, Tensor | None, torch.Generator | None],
    condition: Any,
    first: int = 0,
) -> _Level:
    """One evaluation of the model per example, at a level t = i/T of the chain with i = first … T;
    the decoder's is i = 0."""
    data, (t, eps, generator) = part.clean(data), draws
    x = data if decoder is None else decoder.encode(data)
    at_first = len(x) if t is not None else min(len(x), -(-len(x) // (steps + 1)) + 1)
    if t is None and first == 0:
        t = with_decoder(stratified(len(x), generator=generator, device=x.device), steps)
    x, t, eps = complete(x, t, eps, steps, generator)
    at = schedule.at(t if first else t.clamp(min=1 / steps), steps, ndim=x.ndim)
    high, low = schedule.ends_of(x.ndim)
    if first == 0:  # no step ends at t = 0: the first's stands in, unused
        start = schedule.spread(t, x.ndim) == 0
        at = at._replace(logsnr=torch.where(start, high, at.logsnr))
    predict = part.model(partial(model, **(condition or {})), x, eps, high, low)
    prediction = predict(diffuse(x, eps, at.logsnr), at.logsnr)
    terms = steps + (decoder is not None)
    logsnr_max = schedule.logsnr_max if schedule.shared else high
    return _Level(prediction, x, eps, t, at, logsnr_max, decoder, terms, at_first)


def with_decoder(u: Float[Tensor, " batch"], steps: int) -> Float[Tensor, " batch"]:
    """Uniform times moved to the T + 1 levels i/T of a chain; the first is the decoder's.

    >>> with_decoder(torch.tensor([0.0, 0.4, 0.9]), steps=2)
    tensor([0.0000, 0.5000, 1.0000])
    """
    return stratum_of(u, steps + 1) / steps


@validated
def first_variance(schedule: Schedule, steps: Steps) -> float:
    """The posterior variance of a chain's first step, c σ₀²: DDPM's β̃₂.

    >>> from vdiff.schedule import Tabulated
    >>> f"{first_variance(Tabulated.linear_betas(), steps=999):.4e}"
    '5.4532e-05'
    """
    t = torch.tensor([1 / steps], dtype=torch.float64)
    return Step(schedule(t), schedule.delta(t, steps)).variance.item()


__all__ = ["PathBound", "first_variance", "hybrid_loss", "path_bound", "vlb", "with_decoder"]

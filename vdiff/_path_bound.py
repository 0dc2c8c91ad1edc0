"""The bound of a chain along a whole path."""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import (
    Condition,
    GaussianModel,
    decoder_factorises,
    decoder_fits,
    dims_fit_data,
    finite_end,
    generators_divide,
    known_range,
    same_noise_for_all,
    synchronised,
)
from vdiff._diffusion import Generators, standard_normal, to_float32
from vdiff._inputs import Mask, Steps
from vdiff._partial import Partial
from vdiff._precision import as_float64
from vdiff._validate import validated
from vdiff.decoder import Decoder
from vdiff.gaussian import Step, diffuse, masked, per_example, prior_kl, scales, sum_dims
from vdiff.reverse import reverse_kl, reverse_log_ratio
from vdiff.schedule import Schedule
from vdiff.weighting._check import divides_table


class PathBound(NamedTuple):
    """The bound of each example from one path z₁ … z₀, in nats, by two unbiased estimators."""

    log_ratio: Float[Tensor, " batch"]
    rao_blackwell: Float[Tensor, " batch"]


@validated(
    rules=[
        synchronised, finite_end, divides_table, decoder_fits, generators_divide, known_range,
        same_noise_for_all, decoder_factorises, dims_fit_data,
    ],
    elsewhere={"t": "a path visits every step", "eps": "a path draws the noise of every step"},
)  # fmt: skip
@torch.no_grad()
def path_bound(
    model: GaussianModel,
    data: Tensor,
    *,
    schedule: Schedule,
    decoder: Decoder,
    steps: Steps,
    mask: Mask | None = None,
    absent: Mask | None = None,
    generator: Generators = None,
    condition: Condition = None,
) -> PathBound:
    """The whole bound of a T-step chain along one path per example: T evaluations of the model,
    without gradient.

    `log_ratio` is log q(z₀ … z₁ | x) − log p(x, z₀ … z₁). Its mean is the bound; exp(−log_ratio)
    has the mean p(x), so that over K paths −logsumexp(−log_ratio) + log K is a tighter bound on
    average (Burda et al., arXiv:1509.00519). `rao_blackwell` is the sum of the closed-form KLs on
    the same path, with the same mean.

    One KL has less variance than one log-ratio. Along a path the log-ratio has less from moderate
    T on, for a model near the exact denoiser: its terms cancel each other. At the exact denoiser
    its variance given x is O(1/T), and that of the KLs' sum does not fall.

    Args:
        model, schedule, decoder, steps, mask, absent, condition: as in `elbo`.
        data: (batch, …) before it is encoded.
        generator: of the noise; or several, each for an equal share of the examples, in order.

    Raises:
        TypeError, ValueError: as `elbo`.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> from vdiff.decoder import Gaussian
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> chain = dict(schedule=Linear(), decoder=Gaussian(), steps=100)
    >>> bound = path_bound(oracle, oracle.sample(64), **chain)
    >>> (bound.log_ratio.var() < bound.rao_blackwell.var()).item()
    True
    """
    part = Partial.of(data, mask, absent)
    x = to_float32(decoder.encode(data := part.clean(data)))

    def at(i: int) -> Tensor:
        t = torch.full(x.shape[:1], i / steps, dtype=torch.float64, device=x.device)
        return schedule.spread(t, x.ndim)

    eps = standard_normal(x, generator)
    logsnr_max, logsnr_min = ends = schedule.ends_of(x.ndim)
    predict = part.model(partial(model, **(condition or {})), x, eps, *ends)
    log_ratio = _end_log_ratio(x, eps, logsnr_min, part.modelled)
    kl = prior_kl(x, logsnr_min, part.modelled)
    for i in range(steps, 0, -1):
        step = Step(schedule(at(i)), schedule.delta(at(i), steps))
        prediction = predict(diffuse(x, eps, step.logsnr_t), step.logsnr_t)
        noise = standard_normal(x, generator)
        log_ratio = log_ratio + reverse_log_ratio(prediction, x, eps, step, noise)
        kl = kl + reverse_kl(prediction, x, eps, step)
        eps = step.noise_s(eps, noise)
    z, only = diffuse(x, eps, schedule(at(0))), masked(part.modelled)
    sampled = decoder.nll(data, z, logsnr_max, predict, **only)
    exact = sampled if decoder.uses_network else decoder.expected_nll(data, logsnr_max, **only)
    return PathBound(log_ratio + sampled, kl + exact)


def _end_log_ratio(
    x: Tensor, eps: Tensor, logsnr_min: Tensor | float, mask: Tensor | None = None
) -> Tensor:
    """log q(z₁ | x) − log N(z₁; 0, I) at one z₁ = α x + σ ε:
    ½ Σ [ α² (x² − ε²) + 2 α σ x ε + softplus(λ_min) ]."""
    level = as_float64(logsnr_min, x.device)
    slack = torch.nn.functional.softplus(level)
    a, s, slack = (torch.as_tensor(per_example(v, x)) for v in (*scales(level), slack))
    terms = a * (a * (x.square() - eps.square()) + 2 * s * x * eps) + slack
    return 0.5 * sum_dims(terms, mask)

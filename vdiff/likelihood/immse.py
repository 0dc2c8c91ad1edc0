"""−log p from the error of the denoiser alone: the I-MMSE identity with a Gaussian as control variate. An estimate, not a bound.

For the perfect denoiser, given x (Guo, Shamai & Verdú 2005; Kong et al., arXiv:2302.03792),

    −log p(x) = ½ d log 2πe − ½ ∫ ( d·sigmoid(λ) − E[‖ε − ε̂‖² | x] ) dλ

over the whole line. A Gaussian p_G with the data's mean and covariance obeys the same, so that

    −log p(x) = −log p_G(x) + ½ ∫ E[ ‖ε − ε̂‖² − ‖ε − ε̂_G‖² | x ] dλ

whose integrand vanishes at both ends and has less variance in between. Discrete data has −log P(x) = ½ ∫ E[‖ε − ε̂‖² | x] dλ
instead, where the Gaussian's part up to λ_max is KL(q(z | x) ‖ q_G(z)), known exactly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.errors import check_data, check_finite, check_positive_int, must
from vdiff.gaussian import wide
from vdiff.likelihood.integrand import evaluating
from vdiff.likelihood.replicated import Replicated
from vdiff.loss import Model, weighted_elbo
from vdiff.oracle import Gaussian
from vdiff.schedule import Schedule
from vdiff.times import generator_of, stratified


@dataclass(frozen=True, kw_only=True)
class IMMSE(Replicated):
    """An estimate of −log p of each example, nats. With a learned denoiser it is neither a bound nor any model's −log p.

    `low_tail` and `high_tail` are what it contains of the integral beyond the schedule's ends, extrapolated from the integrand
    there: where they are not small, the ends are too close.

    >>> zero = torch.zeros(1)
    >>> print(IMMSE(torch.zeros(2, 1), 1, zero, low_tail=zero, high_tail=zero))
    0.0000 ± 0.0000 (Monte Carlo) ± nan (images) bits/dim; an estimate, not a bound
    """

    low_tail: Float[Tensor, " batch"]
    high_tail: Float[Tensor, " batch"]

    def __str__(self) -> str:
        return f"{super().__str__()}; an estimate, not a bound"


def immse(
    model: Model,
    x: Float[Tensor, "n *dims"],
    *,
    schedule: Schedule,
    gaussian: Gaussian,
    discrete: bool = False,
    draws: int = 32,
    replicates: int = 4,
    seed: int = 0,
    **condition: Any,
) -> IMMSE:
    """−log p(x) by the I-MMSE identity, nats per example: an estimate, right for the perfect denoiser.

    Inside the schedule's ends the two errors are compared at the same times and noise, one time in each of `draws` equal strata
    of the schedule, with ε and with −ε: what is odd in ε is most of the difference at high λ. Beyond the ends the difference of a
    smooth density falls like e^{−λ} and, the first two moments being the same, like e^{3λ}: the integrand at an end, times 1 or
    ⅓, is the tail. At the noisy end discrete data is treated alike; at the clean one its levels must be told apart, and
    nothing is left.

    Args:
        x: (n, …) data as the network sees it.
        schedule: where to look, and from where to where; finite λ_max about 15 above the data's finest scale.
        gaussian: the control variate, `Gaussian.fit(data)`; any will do, one with the moments of the data is best.
        discrete: whether p is the probability of a level rather than a density.
        draws: times for each example and replicate, beside the two ends; two evaluations of the model at each.
        replicates: independent repetitions, for the standard error; at least 2.
        seed: of times and noise, which are a function of it and the example's place.
        model, condition: as in `weighted_elbo`.

    Raises:
        TypeError, ValueError: as `weighted_elbo`.

    >>> from vdiff import Linear
    >>> oracle = Gaussian([0.0], [0.25])
    >>> found = immse(oracle, torch.zeros(1, 1).double(), schedule=Linear(15.0, -15.0), gaussian=oracle)
    >>> round(found.nats.item(), 4), found.standard_error.item()                           # its own control variate
    (0.2258, 0.0)
    """
    check_data("immse", x)
    check_finite("immse", x, "x")
    for name, number in (("draws", draws), ("replicates", replicates)):
        check_positive_int("immse", name, number)
    if replicates < 2:
        raise ValueError(must("immse", "replicates", "be at least 2", replicates, "one has no standard error"))
    if not isinstance(gaussian, Gaussian):
        raise TypeError(must("immse", "gaussian", "be a Gaussian", repr(gaussian), "vdiff.oracle.Gaussian.fit(data)"))
    clean = wide(x).flatten(1)
    if discrete:
        top = torch.full((len(x),), float(schedule.logsnr_max), dtype=torch.float64)
        known = gaussian.information(clean, top)
    else:
        known = -gaussian.log_prob(clean)

    def twin(z: Tensor, logsnr: Tensor) -> Any:
        return gaussian(z.flatten(1), logsnr)

    def difference(t: Tensor, noise: Tensor, given: dict[str, Any]) -> Tensor:
        """½ rate (‖e‖² − ‖e_G‖²) at (example, draw) pairs, draws side by side: (n, draws)."""
        k = len(t) // len(x)
        rows = x.repeat_interleave(k, 0)
        ours = weighted_elbo(model, rows, schedule=schedule, t=t, eps=noise, **given)
        theirs = weighted_elbo(twin, wide(rows).flatten(1), schedule=schedule, t=t, eps=wide(noise).flatten(1))
        return (wide(ours) - theirs).view(len(x), k)

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)  # clean, noisy
    rate = schedule.rate(ends)
    found = []
    with evaluating(model), torch.no_grad():
        for replicate in range(replicates):
            generators = [generator_of(seed, replicate, f"example {i}", x.device) for i in range(len(x))]
            t = torch.stack([torch.cat([ends.to(x.device), stratified(draws, generator=g, device=x.device)]) for g in generators])
            noise = torch.stack([torch.randn(draws + 2, *x.shape[1:], dtype=x.dtype, device=x.device, generator=g) for g in generators])
            given = _repeated(condition, len(x), draws + 2)
            flat = noise.flatten(0, 1)
            each = 0.5 * (difference(t.flatten(), flat, given) + difference(t.flatten(), -flat, given))
            high = torch.zeros_like(each[:, 0]) if discrete else each[:, 0] / rate[0]
            found.append(torch.stack([each[:, 2:].mean(1), each[:, 1] / (3.0 * rate[1]), high]))
    inner, low, high = torch.stack(found, 1)
    count = torch.full((len(x),), 2 * replicates * (draws + 2))
    return IMMSE(known + inner + low + high, x[0].numel(), count, low_tail=low.mean(0), high_tail=high.mean(0))


def _repeated(condition: dict[str, Any], n: int, times: int) -> dict[str, Any]:
    return {name: v.repeat_interleave(times, 0) if isinstance(v, Tensor) and v.shape[:1] == (n,) else v for name, v in condition.items()}


__all__ = ["IMMSE", "immse"]

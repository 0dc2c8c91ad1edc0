"""−log p from the error of the denoiser alone: the I-MMSE identity with a Gaussian as control
variate. An estimate, not a bound.

For the perfect denoiser, given x (Guo, Shamai & Verdú 2005; Kong et al., arXiv:2302.03792),

    −log p(x) = ½ d log 2πe − ½ ∫ ( d·sigmoid(λ) − E[‖ε − ε̂‖² | x] ) dλ

over the whole line. A Gaussian p_G with the data's mean and covariance obeys the same, so that

    −log p(x) = −log p_G(x) + ½ ∫ E[ ‖ε − ε̂‖² − ‖ε − ε̂_G‖² | x ] dλ

whose integrand vanishes at both ends and has less variance in between. Discrete data has −log P(x)
= ½ ∫ E[‖ε − ε̂‖² | x] dλ instead, where the Gaussian's part up to λ_max is KL(q(z | x) ‖ q_G(z)),
known exactly.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.condition import Condition, conditions
from vdiff.errors import check_data, check_finite, check_positive_int, must
from vdiff.gaussian import wide
from vdiff.likelihood.conditions import check_conditions, of_rows
from vdiff.likelihood.density import Stratified
from vdiff.likelihood.integrand import Finite, evaluating
from vdiff.likelihood.pieces import (
    Course,
    Progress,
    Share,
    State,
    check_dims,
    data_hash,
    in_pieces,
    key_of,
    law_of,
    mark_of,
    told,
    weights_of,
)
from vdiff.likelihood.protocol import of_computation, of_data
from vdiff.likelihood.replicated import Replicated
from vdiff.loss import Model, check_call, weighted_elbo
from vdiff.oracle import Gaussian
from vdiff.schedule import Schedule
from vdiff.times import generator_of

_ALONE = Share()
LONG_TAIL, TAIL_SEEN = (
    5.0,
    1e-3,
)  # an extrapolated tail is good to a fifth: longer than five standard errors, or so many nats, it counts


@dataclass(frozen=True, kw_only=True)
class IMMSE(Replicated):
    """An estimate of −log p of each example, nats. With a learned denoiser it is neither a bound
    nor any model's −log p.

    `low_tail` and `high_tail` are what it contains of the integral beyond the schedule's ends,
    extrapolated from the integrand there: where they are not small, the ends are too close, and a
    warning says so.

    >>> zero = torch.zeros(1)
    >>> print(IMMSE(torch.zeros(2, 1), 1, zero, low_tail=zero, high_tail=zero))
    0.0000 ± 0.0000 (Monte Carlo), one image bits/dim; an estimate, not a bound
    """

    low_tail: Float[Tensor, " batch"]
    high_tail: Float[Tensor, " batch"]
    label = "; an estimate, not a bound"


def immse(
    model: Model,
    x: Float[Tensor, "n *dims"],
    *,
    schedule: Schedule,
    gaussian: Gaussian,
    discrete: bool = False,
    draws: int = 32,
    replicates: int = 4,
    batch: int = 4096,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    condition: Condition = None,
    **keywords: Any,
) -> IMMSE:
    """−log p(x) by the I-MMSE identity, nats per example: an estimate, right for the perfect
    denoiser.

    Inside the schedule's ends the two errors are compared at the same times and noise, one time in
    each of `draws` equal strata of the schedule, with ε and with −ε: what is odd in ε is most of
    the difference at high λ. Beyond the ends the difference of a smooth density falls like e^{−λ}
    and, the first two moments being the same, like e^{3λ}: the integrand at an end, times 1 or ⅓,
    is the tail. At the noisy end discrete data is treated alike; at the clean one its levels must
    be told apart, and nothing is left.

    Args:
        x: (n, …) data as the network sees it.
        schedule: where to look, and from where to where; finite λ_max about 15 above the data's
            finest scale.
        gaussian: the control variate, `Gaussian.fit(data)`; any will do, one with the moments of
            the data is best.
        discrete: whether p is the probability of a level rather than a density.
        draws: times for each example and replicate, beside the two ends; two evaluations of the
            model at each.
        replicates: independent repetitions, for the standard error; at least 2.
        batch: how many (example, time) pairs the model sees at once, but at least one example's.
        seed: of times and noise, which are a function of it and the example's place.
        progress: called as progress(done, all) with numbers of repetitions of examples.
        share, resume, checkpoint, record, condition: as in `evaluate`.
        model: as in `weighted_elbo`.

    Raises:
        TypeError, ValueError: as `weighted_elbo`, and where the model is not finite: for which
            example, at which λ.

    Warns:
        UserWarning: where the tails beyond the schedule's ends, which are extrapolated, are long.

    >>> from vdiff import Linear
    >>> oracle = Gaussian([0.0], [0.25])
    >>> found = immse(oracle, torch.zeros(1, 1).double(), schedule=Linear(15.0, -15.0), gaussian=oracle)
    >>> round(found.nats.item(), 4), found.standard_error.item()                           # its own control variate
    (0.2258, 0.0)
    """
    check_data("immse", x)
    check_finite("immse", x, "x")
    condition = conditions("immse", condition, keywords)
    check_call("immse", model, schedule, None, evaluation=True)
    for name, number in (("draws", draws), ("replicates", replicates), ("batch", batch)):
        check_positive_int("immse", name, number)
    if replicates < 2:
        raise ValueError(
            must("immse", "replicates", "be at least 2", replicates, "one has no standard error")
        )
    if not isinstance(gaussian, Gaussian):
        raise TypeError(
            must(
                "immse",
                "gaussian",
                "be a Gaussian",
                repr(gaussian),
                "vdiff.oracle.Gaussian.fit(data)",
            )
        )
    check_dims("immse", "gaussian", gaussian, x)
    check_conditions("immse", condition, len(x))
    clean = wide(x).flatten(1)
    if discrete:
        top = torch.full((len(x),), float(schedule.logsnr_max), dtype=torch.float64)
        known = gaussian.information(clean, top)
    else:
        known = -gaussian.log_prob(clean)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)  # clean, noisy
    rate, places = schedule.levels(ends)[1], draws + 2

    def twin(z: Tensor, logsnr: Tensor) -> Any:
        return gaussian(z.flatten(1), logsnr)

    def difference(rows: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """½ rate (‖e‖² − ‖e_G‖²) at (example, time) pairs: (n, times)."""
        given = of_rows(condition, rows, len(x))
        ours = weighted_elbo(
            Finite("immse", model, rows),
            x[rows],
            schedule=schedule,
            t=t,
            eps=noise,
            condition=given,
        )
        theirs = weighted_elbo(
            twin, wide(x[rows]).flatten(1), schedule=schedule, t=t, eps=wide(noise).flatten(1)
        )
        return (wide(ours) - theirs).view(-1, places)

    def piece(replicate: int, rows: Tensor) -> State:
        generators = [
            generator_of(seed, replicate, f"example {i}", x.device) for i in rows.tolist()
        ]
        times = [Stratified().draw(draws, g, x.device) for g in generators]
        t = torch.cat([torch.cat([ends, inner]) for inner in times])
        noise = torch.cat(
            [
                torch.randn(places, *x.shape[1:], dtype=x.dtype, device=x.device, generator=g)
                for g in generators
            ]
        )
        each = rows.to(x.device).repeat_interleave(places)
        term = 0.5 * (difference(each, t, noise) + difference(each, t, -noise))
        high = torch.zeros_like(term[:, 0]) if discrete else term[:, 0] / rate[0]
        return {"inner": term[:, 2:].mean(1), "low": term[:, 1] / (3.0 * rate[1]), "high": high}

    said = {
        "logsnr": [schedule.logsnr_min, schedule.logsnr_max], "schedule": repr(schedule), "gaussian": law_of(gaussian),
        "discrete": discrete, "draws": draws, "replicates": replicates, "seed": seed, **getattr(model, "protocol", {}), **(record or {}),
    }  # fmt: skip
    key = key_of(
        data_hash(x), told(condition), share.index, share.count, mark_of(said), weights_of(model)
    )
    with evaluating(model):
        found = in_pieces(
            "immse", piece, shapes={"inner": (), "low": (), "high": ()}, repetitions=replicates, rows=len(x),
            batch=max(1, batch // places), key=key, course=Course(share, progress, checkpoint, resume),
        )  # fmt: skip
    low, high = found["low"], found["high"]
    tails = {
        "beyond the noisy end, nats": low.mean().item(),
        "beyond the clean end, nats": high.mean().item(),
    }
    estimate = IMMSE(
        known.cpu() + found["inner"] + low + high, x[0].numel(), torch.full((len(x),), 2 * replicates * places),
        low_tail=low.mean(0), high_tail=high.mean(0),
        protocol={**of_data(x), **said, **tails, **of_computation(x.dtype, x.device, [model], share)},
    )  # fmt: skip
    for place, nats in tails.items():
        if abs(nats) > LONG_TAIL * max(estimate.mean_error, TAIL_SEEN):
            what = f"immse: {nats:.2g} of the {estimate.mean:.4g} nats lie {place.removesuffix(', nats')} of the schedule, extrapolated"
            warnings.warn(f"{what}: move its ends apart", stacklevel=2)
    return estimate


__all__ = ["IMMSE", "immse"]

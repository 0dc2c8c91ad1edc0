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

from vdiff._arguments import Condition, Model, finite_end
from vdiff._precision import to_float64
from vdiff._validate import Count, FiniteData, unchecked, validated
from vdiff.likelihood.conditions import conditions_by_row, of_rows
from vdiff.likelihood.density import Stratified
from vdiff.likelihood.integrand import Finite, evaluating, known_levels
from vdiff.likelihood.pieces import Progress, Run, Share, State, has_dims, in_pieces, law_of
from vdiff.likelihood.protocol import of_computation, of_data, of_model
from vdiff.likelihood.replicated import Replicated, Replicates
from vdiff.loss import weighted_elbo
from vdiff.oracle import Gaussian
from vdiff.schedule import Schedule
from vdiff.times import generator_of

_ALONE = Share()
# an extrapolated tail is good to a fifth: where it is longer than five standard errors, or than
# so many nats, it counts
LONG_TAIL, TAIL_SEEN = 5.0, 1e-3


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


def of_dims(gaussian: Gaussian, x: Tensor) -> None:
    """A rule: the Gaussian has the dimensions of an example."""
    has_dims(gaussian, x, "gaussian")


@validated(rules=[finite_end, of_dims, conditions_by_row, known_levels])
def immse(
    model: Model,
    x: FiniteData,
    *,
    schedule: Schedule,
    gaussian: Gaussian,
    discrete: bool = False,
    draws: Count = 32,
    replicates: Replicates = 4,
    batch: Count = 4096,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    condition: Condition = None,
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

    >>> from vdiff.schedule import Linear
    >>> oracle = Gaussian([0.0], [0.25])
    >>> found = immse(oracle, torch.zeros(1, 1).double(), schedule=Linear(15.0, -15.0), gaussian=oracle)
    >>> round(found.nats.item(), 4), found.standard_error.item()                           # its own control variate
    (0.2258, 0.0)
    """
    clean = to_float64(x).flatten(1)
    if discrete:
        top = torch.full((len(x),), float(schedule.logsnr_max), dtype=torch.float64)
        known = gaussian.information(clean, top)
    else:
        known = -gaussian.log_prob(clean)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)  # clean, noisy
    rate, places, loss = schedule.at(ends)[1], draws + 2, unchecked(weighted_elbo)

    def twin(z: Tensor, logsnr: Tensor) -> Any:
        return gaussian(z.flatten(1), logsnr)

    def difference(rows: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """½ rate (‖e‖² − ‖e_G‖²) at (example, time) pairs: (n, times)."""
        given = of_rows(condition or {}, rows, len(x))
        z = to_float64(x[rows]).flatten(1)
        options: dict[str, Any] = {"schedule": schedule, "t": t}
        ours = loss(Finite(model, rows), x[rows], eps=noise, condition=given, **options)
        theirs = loss(twin, z, eps=to_float64(noise).flatten(1), **options)
        return (to_float64(ours) - theirs).view(-1, places)

    def piece(replicate: int, rows: Tensor) -> State:
        names = [f"example {i}" for i in rows.tolist()]
        generators = [generator_of(seed, replicate, name, x.device) for name in names]
        times = [Stratified().draw(draws, g, x.device) for g in generators]
        t = torch.cat([torch.cat([ends, inner]) for inner in times])
        size: Any = {"size": (places, *x.shape[1:]), "dtype": x.dtype, "device": x.device}
        noise = torch.cat([torch.randn(**size, generator=g) for g in generators])
        each = rows.to(x.device).repeat_interleave(places)
        term = 0.5 * (difference(each, t, noise) + difference(each, t, -noise))
        high = torch.zeros_like(term[:, 0]) if discrete else term[:, 0] / rate[0]
        return {"inner": term[:, 2:].mean(1), "low": term[:, 1] / (3.0 * rate[1]), "high": high}

    said = {
        "logsnr": [schedule.logsnr_min, schedule.logsnr_max], "schedule": repr(schedule),
        "gaussian": law_of(gaussian), "discrete": discrete, "draws": draws,
        "replicates": replicates, "seed": seed, **of_model(model), **(record or {}),
    }  # fmt: skip
    run = Run(max(1, batch // places), seed, share, progress, checkpoint, resume)
    shapes, key = (
        dict.fromkeys(("inner", "low", "high"), ()),
        run.key(x, condition or {}, said, model),
    )
    with evaluating(model):
        found = in_pieces(
            piece, shapes=shapes, repetitions=replicates, rows=len(x), key=key, run=run
        )
    low, high = found["low"], found["high"]
    tails = {
        "beyond the noisy end, nats": low.mean().item(),
        "beyond the clean end, nats": high.mean().item(),
    }
    computation = of_computation(x.dtype, x.device, [model], share)
    estimate = IMMSE(
        known.cpu() + found["inner"] + low + high,
        x[0].numel(),
        torch.full((len(x),), 2 * replicates * places),
        low_tail=low.mean(0),
        high_tail=high.mean(0),
        protocol={**of_data(x), **said, **tails, **computation},
    )
    for place, nats in tails.items():
        if abs(nats) > LONG_TAIL * max(estimate.mean_error, TAIL_SEEN):
            where = f"{place.removesuffix(', nats')} of the schedule, extrapolated"
            what = f"immse: {nats:.2g} of the {estimate.mean:.4g} nats lie {where}"
            warnings.warn(f"{what}: move its ends apart", stacklevel=3)
    return estimate


__all__ = ["IMMSE", "immse"]

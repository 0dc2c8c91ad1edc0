"""An estimate of −log p from the error of the denoiser alone, not a bound, by the I-MMSE identity.

A Gaussian is the control variate.

For the exact denoiser, given x (Guo, Shamai & Verdú 2005; Kong et al., arXiv:2302.03792),

    −log p(x) = ½ d log 2πe − ½ ∫ ( d·sigmoid(λ) − E[‖ε − ε̂‖² | x] ) dλ

over all λ. The same holds for a Gaussian p_G with the data's mean and covariance, so that

    −log p(x) = −log p_G(x) + ½ ∫ E[ ‖ε − ε̂‖² − ‖ε − ε̂_G‖² | x ] dλ

The integrand vanishes at both ends and has less variance in between. Discrete data has −log P(x) =
½ ∫ E[‖ε − ε̂‖² | x] dλ. The Gaussian's part of it up to λ_max is KL(q(z | x) ‖ q_G(z)), in closed
form.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, GaussianModel, Model, finite_end
from vdiff._inputs import FiniteData
from vdiff._precision import to_float64
from vdiff._validate import Count, unchecked, validated
from vdiff.likelihood._models import Finite
from vdiff.likelihood._rules import MASKS, known_range, one_level
from vdiff.likelihood.chunks import Progress, Run, Share, State
from vdiff.likelihood.conditions import conditions_by_row, select_rows
from vdiff.likelihood.density import Stratified
from vdiff.likelihood.digest import distribution_digest, schedule_digest
from vdiff.likelihood.replicated import (
    GaussianOfExamples,
    Replicated,
    Replicates,
    example_generators,
    run_replicates,
)
from vdiff.loss import weighted_elbo
from vdiff.oracle import Gaussian
from vdiff.schedule import Schedule

_ALONE = Share()
# An extrapolated tail is right to about a fifth. It matters above five standard errors, or above
# five times this many nats.
LONG_TAIL, TAIL_SEEN = 5.0, 1e-3


@dataclass(frozen=True, kw_only=True)
class IMMSE(Replicated):
    """An estimate of −log p of each example, nats. With a learned denoiser it is neither a bound
    nor any model's −log p.

    It contains `low_tail` and `high_tail`, the integral beyond the ends of the schedule,
    extrapolated from the integrand there. If they are not small, the ends are too close.

    >>> zero = torch.zeros(1)
    >>> print(IMMSE(torch.zeros(2, 1), 1, zero, low_tail=zero, high_tail=zero))
    0.0000 ± 0.0000 (Monte Carlo), one image bits/dim; an estimate, not a bound
    """

    low_tail: Float[Tensor, " batch"]
    high_tail: Float[Tensor, " batch"]
    label = "; an estimate, not a bound"


@validated(rules=[finite_end, one_level, conditions_by_row, known_range], elsewhere=MASKS)
def immse(
    model: GaussianModel,
    x: FiniteData,
    *,
    schedule: Schedule,
    gaussian: GaussianOfExamples,
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
    """An estimate of −log p(x) by the I-MMSE identity, nats per example. It is right for the exact
    denoiser.

    Between the ends of the schedule, the two errors are compared at the same times and noise: one
    time in each of `draws` equal strata, with ε and with −ε, because most of the difference at
    high λ is odd in ε. Beyond the ends, the difference of a smooth density with the Gaussian's
    mean and covariance falls like e^{−λ} and like e^{3λ}. The tail is then the integrand at the
    end, times 1 or ⅓. For discrete data the tail at the clean end is zero.

    Args:
        model: as in `weighted_elbo`.
        x: (n, …) data as the network gets it.
        schedule: the density of the times, and the ends: a finite λ_max about 15 above the data's
            finest scale.
        gaussian: the control variate. `Gaussian.fit(data)` has the moments of the data and the
            least variance; every Gaussian is allowed.
        discrete: whether p is the probability of a level rather than a density.
        draws: times for each example and replicate, beside the two ends. Each takes two
            evaluations of the model.
        replicates: independent repetitions, for the standard error; at least 2.
        batch: how many (example, time) pairs the model gets at once, and at least one example's.
        seed: of times and noise. They are a function of it and the example's place.
        progress: called as progress(done, all) with numbers of repetitions of examples.
        share, resume, checkpoint, record, condition: as in `evaluate`.

    Raises:
        TypeError, ValueError: as `weighted_elbo`, and if the model is not finite, with the example
            and λ.

    Warns:
        UserWarning: if the extrapolated tails beyond the ends of the schedule are long.

    >>> from vdiff.schedule import Linear
    >>> oracle = Gaussian([0.0], [0.25])
    >>> x, schedule = torch.zeros(1, 1).double(), Linear(15.0, -15.0)
    >>> estimate = immse(oracle, x, schedule=schedule, gaussian=oracle)  # its own control variate
    >>> round(estimate.nats.item(), 4), estimate.standard_error.item()
    (0.2258, 0.0)
    """
    clean = to_float64(x).flatten(1)
    if discrete:
        top = torch.full((len(x),), float(schedule.logsnr_max), dtype=torch.float64)
        of_gaussian = gaussian.information(clean, top)
    else:
        of_gaussian = -gaussian.log_prob(clean)
    difference = _Difference(model, x, schedule, gaussian, discrete, draws, condition or {}, seed)
    settings = {
        "logsnr": [schedule.logsnr_min, schedule.logsnr_max], "schedule": repr(schedule),
        "path": schedule_digest(schedule, x.ndim),
        "gaussian": distribution_digest(gaussian), "discrete": discrete, "draws": draws,
        "replicates": replicates,
    }  # fmt: skip
    times = draws + 2
    results, protocol = run_replicates(
        difference, x, shapes=dict.fromkeys(("inner", "low", "high"), ()), repetitions=replicates,
        model=model, dtype=x.dtype, condition=condition or {}, settings=settings, record=record,
        run=Run(max(1, batch // times), seed, share, progress, checkpoint, resume),
    )  # fmt: skip
    low, high = results["low"], results["high"]
    tails = {"noisy": low.mean().item(), "clean": high.mean().item()}
    estimate = IMMSE(
        of_gaussian.cpu() + results["inner"] + low + high, x[0].numel(),
        torch.full((len(x),), 2 * replicates * times), low_tail=low.mean(0),
        high_tail=high.mean(0),
        protocol=protocol | {f"beyond the {end} end, nats": v for end, v in tails.items()},
    )  # fmt: skip
    for end, nats in tails.items():
        if abs(nats) > LONG_TAIL * max(estimate.mean_error, TAIL_SEEN):
            where = f"beyond the {end} end of the schedule, extrapolated"
            what = f"immse: {nats:.2g} of the {estimate.mean:.4g} nats lie {where}"
            warnings.warn(f"{what}: move its ends apart", stacklevel=3)
    return estimate


@dataclass(frozen=True)
class _Difference:
    """The integral of ½ (‖ε − ε̂‖² − ‖ε − ε̂_G‖²) in one replicate, inside and beyond the ends."""

    model: Model
    x: Tensor
    schedule: Schedule
    gaussian: Gaussian
    discrete: bool
    draws: int
    condition: Mapping[str, Any]
    seed: int

    def __call__(self, replicate: int, rows: Tensor) -> State:
        x = self.x
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)  # clean, noisy
        rate = self.schedule.at(ends).rate
        generators = example_generators(self.seed, replicate, rows, x.device)
        times = [Stratified().draw(self.draws, g, x.device) for g in generators]
        t = torch.cat([torch.cat([ends, inner]) for inner in times])
        size: Any = {"size": (self.draws + 2, *x.shape[1:]), "dtype": x.dtype, "device": x.device}
        noise = torch.cat([torch.randn(**size, generator=g) for g in generators])
        each = rows.to(x.device).repeat_interleave(self.draws + 2)
        term = 0.5 * (self._terms(each, t, noise) + self._terms(each, t, -noise))
        high = torch.zeros_like(term[:, 0]) if self.discrete else term[:, 0] / rate[0]
        return {"inner": term[:, 2:].mean(1), "low": term[:, 1] / (3.0 * rate[1]), "high": high}

    def _terms(self, rows: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """½ (‖ε − ε̂‖² − ‖ε − ε̂_G‖²) · rate at (example, time) pairs: (examples, times)."""
        loss = unchecked(weighted_elbo)
        options: dict[str, Any] = {"schedule": self.schedule, "t": t}
        condition = select_rows(self.condition, rows, len(self.x))
        ours = loss(
            Finite(self.model, rows), self.x[rows], eps=noise, condition=condition, **options
        )
        flat, eps = to_float64(self.x[rows]).flatten(1), to_float64(noise).flatten(1)
        theirs = loss(self._on_vectors, flat, eps=eps, **options)
        return (to_float64(ours) - theirs).view(-1, self.draws + 2)

    def _on_vectors(self, z: Tensor, logsnr: Tensor) -> Any:
        return self.gaussian(z.flatten(1), logsnr)

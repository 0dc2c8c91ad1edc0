"""A short run on draws of its own, from which the density over λ and the coefficients of the
controls are fitted.

At each of its (image, t) it draws two ε. Half the squared difference of the two is the variance
over ε there, without that between images or times, which is what stratified times leave over; and
regressing differences on differences gives the coefficients that lessen just this variance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vdiff.likelihood.control import FittedControl
from vdiff.likelihood.density import Along, Binned, Density, Stratified, UniformDensity
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.plan import Plan
from vdiff.schedule import Schedule
from vdiff.times import generator_of

BINS, PER_BIN = 32, 16  # at most so many bins of time, with at least so many pairs each
UNIFORM = UniformDensity()
# pairs have heavier tails, which a pilot sees less of: they must save as much as this to be chosen
CLEARLY = 0.7
LENGTH = 0.15  # in time, over which an image's mean stays about the same
FLOOR = 0.1  # the share of a fitted density that is uniform: no weight is above ten


@dataclass(frozen=True)
class Design:
    """A plan with its density and coefficients, and what the pilot saw.

    By bin of time, `coefficients` are those of the controls and `level` is the mean term; `left`
    is the variance over ε that the controls leave and `between` that of the images' means.
    `variance` holds, by name, the variance of one network evaluation in nats² as the pieces are
    added one by one: nothing, times stratified finely, and so on.

    >>> Design(Plan.plain()).density.place(torch.tensor([0.5]))
    (tensor([0.5000]), tensor([1.]))
    """

    plan: Plan
    density: Density = UNIFORM
    controls: tuple[FittedControl, ...] = ()
    antithetic: bool = False
    coefficients: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.float64))
    level: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    left: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float64))
    between: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    variance: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0

    def diffusion(
        self, integrand: Integrand, rows: Tensor, t: Tensor, q: Tensor, eps: Tensor, term: Tensor
    ) -> Tensor:
        """Draws of the diffusion term's integral, from those of the term at times of density q.

        The controls have mean zero given (image, t); and the level is replaced by its own
        integral, so that it matters little how many draws an image has in each part of the range.
        """
        place = bins_of(t, len(self.level))
        level = self.level.to(t.device)
        if self.controls:
            values = control_values(integrand, self.controls, rows, t, eps)
            term = term - (self.coefficients.to(t.device)[place] * values).sum(1)
        return (term - level[place]) / q + level.mean()

    def best(self, times: int) -> Tensor:
        """The density by bin for so many times K per grid, with mean one: it minimises ∫ v/q +
        B/q³ dt.

        v is the variance over ε. Between two times, 1/(K q) apart, an image's mean moves by that
        over its correlation length ℓ, of its variance b between images, so that B = b/(12 ℓ² K²).
        Where q is stationary, v/q² + 3 B/q⁴ is a constant μ.
        """
        v = _smooth(self.left)
        b = _smooth(self.between) / (12 * LENGTH**2 * times**2)
        low, high = torch.tensor([1e-30, 1e30], dtype=torch.float64) * (v.mean() + b.mean())
        q = torch.ones_like(v)
        for _ in range(200):
            mu = (low * high).sqrt()
            q = ((v + (v.square() + 12 * b * mu).sqrt()) / (2 * mu)).sqrt()
            low, high = (mu, high) if q.mean() > 1 else (low, mu)
        return q

    def prepared(self, integrand: Integrand, draws: int) -> "Design":
        """With the density that the plan asks for, at so many draws per grid."""
        times = draws // 2 if self.antithetic else draws
        if isinstance(self.plan.importance, Schedule):
            return replace(self, density=Along(self.plan.importance, integrand.base))
        if self.plan.importance and self.left.sum() > 0:
            return replace(self, density=Binned((1 - FLOOR) * self.best(times) + FLOOR))
        return self


def pilot_evaluations(integrand: Integrand, plan: Plan) -> int:
    """How many network evaluations the pilot of a plan takes.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.level_values, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> pilot_evaluations(integrand, Plan()), pilot_evaluations(integrand, Plan.plain())
    (8192, 0)
    """
    fitted = plan.importance is not False or plan.controls or plan.baseline
    if not fitted and plan.antithetic is not None:
        return 0
    signs = _signs(plan)
    return 2 * len(signs) * _pairs(integrand, plan, signs) * integrand.evaluations


def _signs(plan: Plan) -> tuple[int, ...]:
    return (1,) if plan.antithetic is False else (1, -1)


def _pairs(integrand: Integrand, plan: Plan, signs: tuple[int, ...]) -> int:
    return max(PER_BIN, plan.pilot // (2 * len(signs) * integrand.evaluations))


def run_pilot(
    integrand: Integrand,
    plan: Plan,
    seed: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Design:
    """Fit a plan to an integrand; `progress` gets how many network evaluations are done.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.level_values, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> design = run_pilot(integrand, Plan(), seed=0, batch=1024)
    >>> design.variance["control variates"] < design.variance["importance density"] < design.variance["stratified times"]
    True
    """
    if not pilot_evaluations(integrand, plan):
        return Design(plan, antithetic=bool(plan.antithetic))
    progress(0)
    controls = tuple(control.fit(integrand.x) for control in plan.controls)
    signs = _signs(plan)
    pairs = _pairs(integrand, plan, signs)
    bins = max(1, min(BINS, pairs // PER_BIN, integrand.steps or BINS))
    loss, values, t = _draw(integrand, controls, pairs, signs, seed, batch, progress)
    place = bins_of(t, bins)
    level = torch.zeros(bins, dtype=torch.float64).index_add_(
        0, place, loss.mean((0, 1))
    ) / torch.bincount(place, minlength=bins)
    fits = {False: _Fit(loss[:, 0], values[:, 0], level, place)}
    if len(signs) == 2:
        fits[True] = _Fit(loss.mean(1), values.mean(1), level, place)
    cost = {
        pair: (2 if pair else 1) * fit.left.sqrt().mean().item() ** 2 for pair, fit in fits.items()
    }
    antithetic = (
        cost.get(True, math.inf) < CLEARLY * cost[False]
        if plan.antithetic is None
        else plan.antithetic
    )
    raw, best = fits[False].raw, fits[antithetic]
    variance = {
        "nothing": raw.mean().item() + level.var(correction=0).item(),
        "stratified times": raw.mean().item(),
        "importance density": raw.sqrt().mean().item() ** 2,
    }
    variance |= {"control variates": cost[False]} if controls else {}
    variance |= {"antithetic noise": cost[True]} if antithetic else {}
    return Design(
        plan,
        controls=controls,
        antithetic=antithetic,
        coefficients=best.coefficients,
        level=level if plan.baseline else torch.zeros_like(level),
        left=best.left,
        between=best.between,
        variance=variance,
        evaluations=loss.numel() * integrand.evaluations,
    )


class _Fit:
    """Coefficients by bin, the variances over ε without and with them, and that between images,
    from two draws at each place."""

    def __init__(self, loss: Tensor, values: Tensor, level: Tensor, place: Tensor) -> None:
        bins, controls = len(level), values.shape[-1]
        self.coefficients = torch.zeros(bins, controls, dtype=torch.float64)
        self.raw, self.left, self.between = torch.zeros(3, bins, dtype=torch.float64)
        for i in range(bins):
            y, v = loss[:, place == i], values[:, place == i]  # (2, pairs), (2, pairs, controls)
            off, moved = y[0] - y[1], v[0] - v[1]
            self.raw[i] = self.left[i] = 0.5 * off.square().mean()
            if controls and len(off) > 2 * controls:
                scale = moved.square().mean(0).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
                b = (
                    torch.linalg.lstsq(
                        moved / scale, off[:, None], rcond=1e-6, driver="gelsd"
                    ).solution[:, 0]
                    / scale
                )
                left = 0.5 * (off - moved @ b).square().sum() / (len(off) - controls)
                if left < self.raw[i]:
                    self.coefficients[i], self.left[i] = b, left
            rest = y - v @ self.coefficients[i] - level[i]
            self.between[i] = (rest[0] * rest[1]).mean().clamp(min=0)


def control_values(
    integrand: Integrand, controls: tuple[FittedControl, ...], rows: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """(n, controls) in the unit of the diffusion term, ½ m times each: their mean given (image, t)
    is zero."""
    logsnr, measure = integrand.levels(t)
    if not controls:
        return measure.new_zeros(len(t), 0)
    return torch.stack(
        [0.5 * measure * control.centered(rows, eps, logsnr).double() for control in controls], 1
    )


def bins_of(t: Tensor, bins: int) -> Tensor:
    """The bin of equal width that each time falls in."""
    return (t * bins).long().clamp(0, bins - 1)


def integral_by_bin(level: Tensor, bins: int) -> Tensor:
    """The integral over each of so many bins of [0, 1], of a function that is constant within bins
    of its own.

    >>> integral_by_bin(torch.tensor([1.0, 3.0]), 4)
    tensor([0.2500, 0.2500, 0.7500, 0.7500])
    """
    before = torch.nn.functional.pad(level.cumsum(0), (1, 0)) / len(level)
    place = torch.linspace(0, len(level), bins + 1, dtype=level.dtype)
    left = place.long().clamp(max=len(level) - 1)
    return torch.lerp(before[left], before[left + 1], place - left).diff()


def _draw(
    integrand: Integrand,
    controls: tuple[FittedControl, ...],
    pairs: int,
    signs: tuple[int, ...],
    seed: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Diffusion terms (2, signs, pairs), controls (2, signs, pairs, controls) and times
    (pairs,)."""
    x, device = integrand.x, integrand.x.device
    generator = generator_of(seed, 0, "pilot", device)
    t = Stratified().draw(pairs, generator, device)
    rows = torch.randperm(max(pairs, len(x)), generator=generator, device=device)[:pairs] % len(
        x
    )  # all images about as often
    loss = torch.empty(2, len(signs), pairs, dtype=torch.float64)
    values = torch.empty(*loss.shape, len(controls), dtype=torch.float64)
    noise = torch.randn(
        2, pairs, *x.shape[1:], dtype=x.dtype, device=device, generator=generator
    )  # whatever the batch
    done = 0
    for part in torch.split(torch.arange(pairs, device=device), batch):
        at, when, place = rows[part], t[part], part.cpu()
        for first in range(2):
            for i, sign in enumerate(signs):
                eps = sign * noise[first, part]
                parts = integrand(at, when, eps)
                integrand.refuse_nonfinite(parts.sum(0), at, when)
                loss[first, i, place] = parts[1].cpu()
                values[first, i, place] = control_values(integrand, controls, at, when, eps).cpu()
                done += len(part) * integrand.evaluations
                progress(done)
    return loss, values, t.cpu()


def _smooth(v: Tensor) -> Tensor:
    """The largest of a bin and its neighbors, with a quarter from each neighbor.

    A bin's variance comes from few pairs, and where errors are rare and large it is too small more
    often than too large.
    """
    padded = torch.nn.functional.max_pool1d(v[None], 3, stride=1, padding=1)[0]
    padded = torch.cat([padded[:1], padded, padded[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


__all__ = ["Design", "pilot_evaluations", "run_pilot"]

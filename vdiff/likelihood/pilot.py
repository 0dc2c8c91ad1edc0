"""A short run on draws of its own, which fits the density over λ and the controls' coefficients.

At each of its (image, t) the pilot draws two ε. Half the squared difference of the two losses is
the variance over ε there, without the variance between images or times. Stratified times leave
just this variance, and regressing differences on differences gives the coefficients that reduce
it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vdiff.likelihood._controls import control_values, controls_of, fitted_to
from vdiff.likelihood.control import FittedControl
from vdiff.likelihood.density import Along, Binned, Density, Stratified, UniformDensity
from vdiff.likelihood.integrand import Drawn, Integrand
from vdiff.likelihood.variance_reduction import VarianceReduction
from vdiff.schedule import Schedule
from vdiff.times import generator_of

BINS, PER_BIN = 32, 16  # at most so many bins of time, with at least so many pairs each
UNIFORM = UniformDensity()
# antithetic noise must save this factor: a pilot sees less of its heavier tails
CLEARLY = 0.7
LENGTH = 0.15  # in time, over which an image's mean stays about the same
LATENTS = 64  # images at a time whose schedules are drawn, whatever the batch
FLOOR = 0.1  # the uniform part of a fitted density, so that no weight is above ten


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@dataclass(frozen=True)
class PilotFit:
    """What the pilot fitted: the density, the controls' coefficients, and what it saw.

    By bin of time: `coefficients` of the controls, the mean term `level` (0 without a baseline),
    the variance over ε that the controls leave, `left`, and the variance of the images' means,
    `between`. `variance` is that of one network evaluation, nats², as the techniques are added
    one by one. `evaluations` are the pilot's.

    >>> PilotFit(VarianceReduction.plain()).density.place(torch.tensor([0.5]))
    (tensor([0.5000]), tensor([1.]))
    """

    plan: VarianceReduction
    density: Density = UNIFORM
    controls: tuple[FittedControl, ...] = ()
    antithetic: bool = False
    coefficients: Tensor = field(default_factory=lambda: _zeros(1, 0))
    level: Tensor = field(default_factory=lambda: _zeros(1))
    left: Tensor = field(default_factory=lambda: 1 + _zeros(1))
    between: Tensor = field(default_factory=lambda: _zeros(1))
    variance: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0

    def diffusion(
        self,
        integrand: Integrand,
        rows: Tensor,
        t: Tensor,
        q: Tensor,
        eps: Tensor,
        term: Tensor,
        drawn: Drawn | None = None,
    ) -> Tensor:
        """Draws of the diffusion term's integral, from those of the term at times of density q.

        The controls have mean zero given (image, t). The level, in proportion to the image's
        modelled dimensions, is replaced by its own integral.
        """
        index, level = bin_index(t, len(self.level)), self.level.to(t.device)
        if self.controls:
            values = control_values(integrand, self.controls, rows, t, eps, drawn)
            term = term - (self.coefficients.to(t.device)[index] * values).sum(1)
        at, integral, weight = level[index], level.mean(), integrand.weight(rows)
        if weight is not None:
            at, integral = weight * at, weight * integral
        return (term - at) / q + integral

    def best(self, times: int) -> Tensor:
        """The density by bin for so many times K per grid, with mean one: it minimises ∫ v/q +
        B/q³ dt.

        v is the variance over ε. Two times of a grid are 1/(K q) apart. Over its correlation
        length ℓ an image's mean moves by its standard deviation √b between images, so that
        B = b/(12 ℓ² K²). Where q is stationary, v/q² + 3 B/q⁴ is a constant μ.
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

    def prepared(self, integrand: Integrand, draws: int) -> "PilotFit":
        """With the density that the plan asks for, at so many draws per grid."""
        times = draws // 2 if self.antithetic else draws
        if isinstance(self.plan.importance, Schedule):
            return replace(self, density=Along(self.plan.importance, integrand.base))
        if self.plan.importance and self.left.sum() > 0:
            return replace(self, density=Binned((1 - FLOOR) * self.best(times) + FLOOR))
        return self


def pilot_evaluations(integrand: Integrand, plan: VarianceReduction) -> int:
    """How many network evaluations the pilot takes; 0 where it has nothing to fit."""
    signs, pairs = _size(integrand, plan)
    return 2 * len(signs) * pairs * integrand.evaluations


def _size(integrand: Integrand, plan: VarianceReduction) -> tuple[tuple[int, ...], int]:
    """The signs of ε at each (image, t), and the number of (image, t), each with two ε."""
    signs = (1,) if plan.antithetic is False else (1, -1)
    controls = controls_of(plan, integrand)
    fitted = plan.importance is not False or controls or plan.baseline
    if not fitted and plan.antithetic is not None:
        return signs, 0
    return signs, max(PER_BIN, plan.pilot // (2 * len(signs) * integrand.evaluations))


def run_pilot(
    integrand: Integrand,
    plan: VarianceReduction,
    seed: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> PilotFit:
    """Fit a plan to an integrand. `progress` gets the number of network evaluations so far."""
    signs, pairs = _size(integrand, plan)
    if not pairs:
        return PilotFit(plan, antithetic=bool(plan.antithetic))
    progress(0)
    controls = tuple(fitted_to(control, integrand) for control in controls_of(plan, integrand))
    bins = max(1, min(BINS, pairs // PER_BIN, integrand.steps or BINS))
    loss, values, t, weight = _draw(integrand, controls, pairs, signs, seed, batch, progress)
    index = bin_index(t, bins)
    level = _zeros(bins).index_add_(0, index, loss.mean((0, 1)))
    if weight is None:
        level = level / torch.bincount(index, minlength=bins)
    else:
        least = torch.finfo(level.dtype).tiny
        level = level / _zeros(bins).index_add_(0, index, weight).clamp(min=least)
    fits = {False: _Regression(loss[:, 0], values[:, 0], level, index, weight)}
    if len(signs) == 2:
        fits[True] = _Regression(loss.mean(1), values.mean(1), level, index, weight)
    cost = {pair: (1 + pair) * fit.left.sqrt().mean().item() ** 2 for pair, fit in fits.items()}
    antithetic = plan.antithetic
    if antithetic is None:
        antithetic = cost[True] < CLEARLY * cost[False]
    best = fits[antithetic]
    return PilotFit(
        plan, controls=controls, antithetic=antithetic, coefficients=best.coefficients,
        level=level if plan.baseline else torch.zeros_like(level), left=best.left,
        between=best.between,
        variance=_by_technique(fits[False].raw, level, cost, bool(controls), antithetic),
        evaluations=loss.numel() * integrand.evaluations,
    )  # fmt: skip


def _by_technique(
    raw: Tensor, level: Tensor, cost: dict[bool, float], controls: bool, antithetic: bool
) -> dict[str, float]:
    """The variance of one network evaluation as the techniques are added one by one."""
    variance = {
        "plain Monte Carlo": raw.mean().item() + level.var(correction=0).item(),
        "stratified times": raw.mean().item(),
        "importance density": raw.sqrt().mean().item() ** 2,
    }
    variance |= {"control variates": cost[False]} if controls else {}
    return variance | ({"antithetic noise": cost[True]} if antithetic else {})


class _Regression:
    """By bin of time: the controls' coefficients, the variances over ε without and with them, and
    the variance between images; from two draws at each (image, t), whose level has a `weight`."""

    def __init__(
        self,
        loss: Tensor,
        values: Tensor,
        level: Tensor,
        index: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        bins, controls = len(level), values.shape[-1]
        self.coefficients = _zeros(bins, controls)
        self.raw, self.left, self.between = _zeros(3, bins)
        for i in range(bins):
            y, v = loss[:, index == i], values[:, index == i]  # (2, pairs), (2, pairs, controls)
            off, moved = y[0] - y[1], v[0] - v[1]
            self.raw[i] = self.left[i] = 0.5 * off.square().mean()
            if controls and len(off) > 2 * controls:
                scale = moved.square().mean(0).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
                solve = functools.partial(torch.linalg.lstsq, rcond=1e-6, driver="gelsd")
                b = solve(moved / scale, off[:, None]).solution[:, 0] / scale
                left = 0.5 * (off - moved @ b).square().sum() / (len(off) - controls)
                if left < self.raw[i]:
                    self.coefficients[i], self.left[i] = b, left
            own = level[i] if weight is None else weight[index == i] * level[i]
            rest = y - v @ self.coefficients[i] - own
            self.between[i] = (rest[0] * rest[1]).mean().clamp(min=0)


def bin_index(t: Tensor, bins: int) -> Tensor:
    """The bin of equal width that each time falls in."""
    return (t * bins).long().clamp(0, bins - 1)


def integral_by_bin(level: Tensor, bins: int) -> Tensor:
    """The integral over each of so many bins of [0, 1] of a function that is constant within bins
    of its own.

    >>> integral_by_bin(torch.tensor([1.0, 3.0]), 4)
    tensor([0.2500, 0.2500, 0.7500, 0.7500])
    """
    before = torch.nn.functional.pad(level.cumsum(0), (1, 0)) / len(level)
    edges = torch.linspace(0, len(level), bins + 1, dtype=level.dtype)
    left = edges.long().clamp(max=len(level) - 1)
    return torch.lerp(before[left], before[left + 1], edges - left).diff()


def _draw(
    integrand: Integrand,
    controls: tuple[FittedControl, ...],
    pairs: int,
    signs: tuple[int, ...],
    seed: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Diffusion terms (2, signs, pairs), controls (2, signs, pairs, controls), times (pairs,), and
    with a mask the weights of the images (pairs,).

    All images with a modelled dimension come about equally often. The draws do not depend on the
    batch.
    """
    x, device = integrand.x, integrand.x.device
    generator = generator_of(seed, 0, "pilot", device)
    t = Stratified().draw(pairs, generator, device)
    counted = integrand.counted
    n = len(x) if counted is None else len(counted)
    rows = torch.randperm(max(pairs, n), generator=generator, device=device)[:pairs] % n
    rows = rows if counted is None else counted.to(device)[rows]
    noise = integrand.noise(rows.repeat(2), generator).view(2, pairs, *x.shape[1:])
    loss = torch.empty(2, len(signs), pairs, dtype=torch.float64)
    width = len(controls) * integrand.paths_of_controls
    values = torch.empty(*loss.shape, width, dtype=torch.float64)
    done, batch = 0, LATENTS if integrand.depends_on_data else batch
    for part in torch.split(torch.arange(pairs, device=device), batch):
        at, when, index = rows[part], t[part], part.cpu()
        for first in range(2):
            for i, sign in enumerate(signs):
                eps = noise[first, part]
                eps = eps if sign == 1 else integrand.process.opposite(eps)
                drawn = integrand.draw(at, generator)
                parts = integrand(at, when, eps, drawn)
                integrand.refuse_nonfinite(parts.sum(0), at, when)
                loss[first, i, index] = parts[1].cpu()
                value = control_values(integrand, controls, at, when, eps, drawn)
                values[first, i, index] = value.cpu()
                done += len(part) * integrand.evaluations
                progress(done)
    weight = integrand.weight(rows)
    return loss, values, t.cpu(), None if weight is None else weight.cpu()


def _smooth(v: Tensor) -> Tensor:
    """The largest of a bin and its neighbors, with a quarter from each neighbor.

    A bin's variance comes from few pairs. Where errors are rare and large, it is too small more
    often than too large.
    """
    padded = torch.nn.functional.max_pool1d(v[None], 3, stride=1, padding=1)[0]
    padded = torch.cat([padded[:1], padded, padded[-1:]])
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]

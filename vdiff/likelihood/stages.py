"""An evaluation's draws: replicates over all images, in one stage, or in two for a tolerance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, NoReturn

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Number, require
from vdiff.errors import InvalidValue
from vdiff.likelihood.chunks import Run, State, check_resume, fail_together
from vdiff.likelihood.digest import data_hash
from vdiff.likelihood.estimate import RunningMoments, mean_error, replicates_for
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import PilotFit, integral_by_bin, pilot_evaluations, run_pilot
from vdiff.likelihood.tally import BINS, Tally
from vdiff.likelihood.variance_reduction import VarianceReduction
from vdiff.profile import Profile
from vdiff.times import generator_of

DRAWS = 32  # times in a grid, unless given
FEW_DRAWS = 2  # the least, with a tolerance
FEWEST = 1024  # network evaluations of a pilot, at least
TOLERANCES = (1e-12, 1e12)  # bits/dim; between them nothing overflows
_ERROR = "a standard error in bits/dim, for instance 0.005"
Tolerance = Annotated[float, Number(at_least=TOLERANCES[0], at_most=TOLERANCES[1], hint=_ERROR)]
MOST = 10**15  # network evaluations; nobody waits for more
ENOUGH = 30  # degrees of freedom of the first stage, from which the second one is computed

_RUN = Run()


@dataclass(frozen=True)
class Budget:
    """How much to draw: `draws` times in a grid and `replicates` grids per image. With a
    `tolerance` (bits/dim), as many replicates as it takes, within `evaluations` of the network.

    >>> Budget(tolerance=0.005).replicates
    4
    """

    draws: int | None = None
    replicates: int = 4
    tolerance: float | None = None
    evaluations: int | None = None

    def __post_init__(self) -> None:
        hint = "without one, draws and replicates say how much is drawn"
        limited = self.evaluations is None or self.tolerance is not None
        require(limited, "budget", "come with tolerance", self.evaluations, hint)


@dataclass
class Evaluation:
    """An integrand, how it is drawn, and how that is run. A call draws.

    `profile` collects ‖ε − ε̂‖² by λ (of an `Integrand`, not of a difference). Progress counts
    network evaluations of this process, the pilot's among them. `record` is what the protocol says
    beside the settings; a saved state belongs to one record.
    """

    integrand: Integrand
    plan: VarianceReduction
    budget: Budget
    run: Run = _RUN
    profile: Profile | None = None
    record: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draws, self.images = self.budget.draws, len(self.integrand.x)
        if draws is not None and draws % 2:
            even = "be even with antithetic noise"
            require(not self.plan.antithetic, "draws", even, draws)
            self.plan = replace(self.plan, antithetic=False)
        self.given = self.plan
        counted = self.integrand.counted
        self.counted = self.images if counted is None else len(counted)
        if self.budget.tolerance is None:  # the pilot costs at most as much as the draws
            cost = self._cost(self.budget.replicates, draws or DRAWS)
            self.plan = replace(self.plan, pilot=min(self.plan.pilot, max(FEWEST, cost)))
        dims = self.integrand.dims
        self.dims = dims.cpu() if isinstance(dims, Tensor) else None  # by image, if they differ
        mean = dims if isinstance(dims, int) else to_float64(dims).mean().item()
        self.scale = 1 / (mean * math.log(2))  # from nats to bits/dim, a ratio of sums
        self.own = torch.arange(self.run.share.index, self.images, self.run.share.count)
        self.paid = self.own if self.dims is None else self.own[self.dims[self.own] > 0]

    @cached_property
    def _pilot(self) -> PilotFit:
        """What the pilot fitted. The pilot runs at the first access."""
        first = self._first_replicates() * len(self.paid) * (self.budget.draws or FEW_DRAWS)
        total = pilot_evaluations(self.integrand, self.plan) + first * self.integrand.evaluations

        def count(done: int) -> None:
            self.run.report(done, total)

        return run_pilot(self.integrand, self.plan, self.run.seed, self.run.batch, count)

    @cached_property
    def draws(self) -> int:
        """Times in a grid: as given, or as the pilot suggests."""
        return self.budget.draws or self._suggested_draws(self._pilot)

    @cached_property
    def fitted(self) -> PilotFit:
        """What the pilot fitted, with the density for so many draws."""
        return self._pilot.prepared(self.integrand, self.draws)

    @cached_property
    def level(self) -> Tensor:
        """The baseline's integral over each bin of the curve."""
        return integral_by_bin(self.fitted.level, BINS)

    def __call__(self) -> Tally:
        """Draw what the budget asks for, or what is left of it; the tally of all processes."""
        self._check_budget(self.budget.draws or FEW_DRAWS)  # before anything that takes long
        state = self.run.resume
        check_resume(state, self.key)
        tally = Tally.empty(self.images) if state is None else Tally.of(state)
        if self._ahead(tally):
            tally, state = Tally.empty(self.images), None
        if self.profile is not None:
            self.before = self.profile.sums.clone()
            if state is not None:
                self.profile.sums += state["profile"].to(self.profile.sums)
        self._check_budget(self.draws)
        total = self._stage(tally, self._first_replicates())
        if self.budget.tolerance is not None:
            tally.first = tally.first or total.terms
            total = self._stage(tally, self._needed(tally.first))
        if self.profile is not None:
            gained = self.run.share.sum(self._gained()["profile"])
            self.profile.sums.copy_(self.before + gained.to(self.before))
        return total

    def _ahead(self, tally: Tally) -> bool:
        """Whether this process resumes in the second stage and another one does not: draws of the
        second stage would decide on its length."""
        if self.run.share.count == 1 or self.budget.tolerance is None:
            return False
        first = tally.first is not None
        behind = self.run.share.sum(torch.tensor([float(not first)], dtype=torch.float32))
        return first and behind.item() > 0

    @cached_property
    def key(self) -> Tensor:
        """A hash of what the draws depend on. A saved state holds it."""
        integrand, p = self.integrand, self.profile
        profile = None if p is None else (p.logsnr_min, p.logsnr_max, p.bins)
        return self.run.key(
            integrand.data, integrand.condition, self.record, integrand.models,
            integrand.names, self.plan, self.run.seed, self.draws,
            profile, *sorted((word, data_hash(m)) for word, m in integrand.given.items()),
        )  # fmt: skip

    def _gained(self) -> State:
        """What the profile has collected since the start."""
        return {} if self.profile is None else {"profile": (self.profile.sums - self.before).cpu()}

    def _first_replicates(self) -> int:
        if self.budget.tolerance is None:
            return self.budget.replicates
        return max(self.budget.replicates, 1 + math.ceil(ENOUGH / self.images))

    def _suggested_draws(self, fitted: PilotFit | None = None) -> int:
        variances = list((fitted or self.fitted).variance.values())
        if self.budget.tolerance is None or not variances:
            return DRAWS
        total = variances[-1] * (self.scale / self.budget.tolerance) ** 2
        total *= self.counted / self.images  # of images with nothing modelled it is 0
        pairs = math.ceil(total / (2 * self.images * self._first_replicates()))
        return min(128, max(FEW_DRAWS, 2 * pairs))

    def _needed(self, first: RunningMoments) -> int:
        """Stein's rule: how many replicates the first stage's variance asks for."""
        tolerance, limit = self.budget.tolerance, self.budget.evaluations
        assert tolerance is not None
        needed = int(replicates_for(tolerance / self.scale, first.variances()[3]))
        replicates = max(first.replicates, needed)
        cost = self._cost(replicates)
        if cost > MOST:
            self._beyond_reach(f"{MOST:g}", f"it takes {cost:.1e}")
        if limit is not None and cost > limit:
            error = mean_error(first.variances()[3], 1, 2)[0].item() * self.scale
            reached = f"{limit:,} reaches about {error * math.sqrt(self._cost(1) / limit):.2g}"
            hint = f"a budget of {cost:,} would do; {reached}"
            self._beyond_reach(f"budget = {limit:,}", hint)
        return replicates

    def _check_budget(self, draws: int) -> None:
        """Raise where a first stage with so many draws in each grid is beyond the budget."""
        cost, limit = self._cost(self._first_replicates(), draws), self.budget.evaluations
        if limit is not None and cost > limit:
            hint = (
                f"its first stage takes {cost:,} alone; fewer draws or replicates make it smaller"
            )
            self._beyond_reach(f"budget = {limit:,}", hint)

    def _beyond_reach(self, limit: str, hint: str) -> NoReturn:
        what = f"be within reach of {limit} network evaluations"
        unit = self.integrand.process.unit.name
        raise InvalidValue("tolerance", what, f"{self.budget.tolerance:g} {unit}", hint)

    def _cost(self, replicates: int, draws: int | None = None) -> int:
        return replicates * self.counted * (draws or self.draws) * self.integrand.evaluations

    def _stage(self, tally: Tally, replicates: int) -> Tally:
        """Draw until each image has so many replicates; the tally of all processes."""
        own, size = self.own, max(1, self.run.batch // self.draws)
        size = 1 if self.integrand.depends_on_data else size  # an image's own latents
        pilot, cost = self.fitted.evaluations, self.draws * self.integrand.evaluations
        with fail_together(self.run.share):
            for chunk in torch.split(own, size) if len(own) else ():
                begun = int(tally.terms.count[0, chunk].min())
                errors: list[tuple[Tensor, ...]] = []
                for replicate in range(begun, replicates):
                    rows = chunk[tally.terms.count[0, chunk] == replicate]
                    errors += self._replicate(tally, rows, replicate)
                    done = pilot + int(tally.terms.count[:, self.paid].sum()) * cost
                    self.run.report(done, pilot + replicates * len(self.paid) * cost)
                if self.profile is not None and errors:
                    self.profile.update(*map(torch.cat, zip(*errors, strict=True)))
                if begun < replicates:
                    self.run.save(tally.state() | self._gained() | {"key": self.key})
        total = tally.over(self.run.share)
        self._refuse(total.nonfinite)
        return total

    def _replicate(self, tally: Tally, rows: Tensor, replicate: int) -> list[tuple[Tensor, ...]]:
        """Draw one grid of each image; for the profile λ, ‖ε − ε̂‖² and the image of each draw."""
        if self.dims is not None:  # an image with nothing modelled costs nothing
            rest = rows[self.dims[rows] == 0]
            tally.terms.add(rest, torch.zeros(4, len(rest), dtype=torch.float64))
            rows = rows[self.dims[rows] > 0]
            if not len(rows):
                return []
        draws, fitted, device = self.draws, self.fitted, self.integrand.x.device
        seed, pairs = self.run.seed, fitted.antithetic
        generators = [generator_of(seed, replicate, f"image {i}", device) for i in rows.tolist()]
        times = draws // 2 if pairs else draws
        u = torch.stack([self.plan.times.draw(times, g, device) for g in generators])
        u = torch.cat([u, u], 1).flatten() if pairs else u.flatten()
        eps = self._noise(rows.to(device), times, generators, pairs)
        t, q = fitted.density.place(u)
        each = rows.to(device).repeat_interleave(draws)
        drawn = self.integrand.draw(each, generators[0])
        parts = self.integrand(each, t, eps, drawn)
        diffusion = fitted.diffusion(self.integrand, each, t, q, eps, parts[1], drawn)
        bad, weight = ~torch.isfinite(parts.sum(0)), self.integrand.weight(rows.to(device))
        level = self.level if weight is None else weight.cpu()[:, None] * self.level
        tally.add(rows, parts.cpu(), diffusion.cpu(), t.cpu(), bad.cpu(), level)
        if self.run.share.count == 1:  # several processes raise together, at the end of the stage
            self._refuse(tally.nonfinite)
        if self.profile is None:
            return []
        images = torch.arange(len(rows), device=device).repeat_interleave(draws)
        return [(*self.integrand.squared_error(each, eps, t), images)]

    def _noise(
        self, rows: Tensor, times: int, generators: list[torch.Generator], pairs: bool
    ) -> Tensor:
        """Noise for so many times of each image. In pairs, the second half is opposite."""
        eps = self.integrand.noise(rows.repeat_interleave(times), generators)
        if not pairs:
            return eps
        eps = eps.view(len(rows), times, *eps.shape[1:])
        return torch.cat([eps, self.integrand.process.opposite(eps)], 1).flatten(0, 1)

    def _refuse(self, nonfinite: Tensor) -> None:
        rows = nonfinite.nonzero()[:, 0]
        t = (nonfinite[rows] - 1).to(self.integrand.x.device)
        self.integrand.refuse_nonfinite(nonfinite[rows] * math.nan, rows, t)

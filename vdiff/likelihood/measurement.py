"""The run of an evaluation: replicates over all images, in one stage, or in two for a
tolerance."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from vdiff.errors import InvalidValue
from vdiff.likelihood.estimate import Tally, mean_error, replicates_for
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.measured import BINS, Measurement
from vdiff.likelihood.pieces import (
    Progress,
    Share,
    State,
    check_resume,
    condition_digest,
    data_hash,
    fail_together,
    key_of,
    weights_of,
)
from vdiff.likelihood.pilot import Design, integral_by_bin, pilot_evaluations, run_pilot
from vdiff.likelihood.plan import Plan
from vdiff.profile import Profile
from vdiff.times import generator_of

DRAWS, FEWEST = 32, 1024  # per grid where nothing else is said; of a pilot
FEW = 2  # draws per grid at least, where a tolerance is given
TOLERANCES = (1e-12, 1e12)  # bits/dim; between them nothing overflows
MOST = 10**15  # network evaluations; nobody waits for more
_ALONE = Share()
ENOUGH = 30  # degrees of freedom that the first stage must have before it decides on the second


@dataclass(frozen=True)
class Effort:
    """How much to draw: `draws` per grid, `replicates` grids per image, until `tolerance`
    (bits/dim) within `budget` evaluations.

    >>> Effort(tolerance=0.005).replicates
    4
    """

    draws: int | None = None
    replicates: int = 4
    tolerance: float | None = None
    budget: int | None = None
    batch: int = 1024
    seed: int = 0


@dataclass
class Evaluation:
    """An integrand, how it is drawn, and who listens; a call draws.

    `profile` collects ‖ε − ε̂‖² by λ (that of `Integrand`, not of a difference), `progress` is
    given (done, all) network evaluations of this process, its pilot among them, `checkpoint`
    receives the measurement's state after each batch of images; `mark` tells this model's from
    another's.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.level_values, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> Evaluation(integrand, Plan(), Effort(draws=8))().terms.replicates
    4
    """

    integrand: Integrand
    plan: Plan
    effort: Effort
    share: Share = _ALONE
    profile: Profile | None = None
    progress: Progress | None = None
    checkpoint: Callable[[State], None] | None = None
    mark: str = ""

    def __post_init__(self) -> None:
        if self.effort.draws is not None and self.effort.draws % 2:
            self.plan = replace(self.plan, antithetic=False)
        self.given = self.plan
        self.images = len(self.integrand.x)
        if self.effort.tolerance is None:  # a pilot that costs more than what it steers is none
            draws = self.effort.replicates * self.images * (self.effort.draws or DRAWS)
            pilot = min(self.plan.pilot, max(FEWEST, draws * self.integrand.evaluations))
            self.plan = replace(self.plan, pilot=pilot)
        self.scale = 1 / (self.integrand.x[0].numel() * math.log(2))  # nats to bits/dim
        self.own = torch.arange(self.share.index, self.images, self.share.count)

    @cached_property
    def _pilot(self) -> Design:
        """What the pilot says. It is run here, where it is first asked for."""
        first = self._first_replicates() * len(self.own) * (self.effort.draws or FEW)
        least = pilot_evaluations(self.integrand, self.plan) + first * self.integrand.evaluations

        def count(done: int) -> None:
            if self.progress is not None:
                self.progress(done, least)

        plan, effort = self.plan, self.effort
        return run_pilot(self.integrand, plan, effort.seed, effort.batch, count)

    @cached_property
    def draws(self) -> int:
        """Times in a grid: as asked for, or what the pilot finds enough."""
        return self.effort.draws or self._suggested_draws(self._pilot)

    @cached_property
    def design(self) -> Design:
        """The plan as the pilot fitted it, for so many draws."""
        return self._pilot.prepared(self.integrand, self.draws)

    @cached_property
    def level(self) -> Tensor:
        """The baseline's integral over each bin of the curve."""
        return integral_by_bin(self.design.level, BINS)

    def __call__(self, resume: State | None = None) -> Measurement:
        """Draw what is asked for, or what is left of it."""
        self._check_budget(self.effort.draws or FEW)  # before anything that takes long
        check_resume(resume, self.key)
        mine = Measurement.empty(self.images) if resume is None else Measurement.of(resume)
        if self._ahead(mine):
            mine, resume = Measurement.empty(self.images), None
        if self.profile is not None:
            self.before = self.profile.sums.clone()
            if resume is not None:
                self.profile.sums += resume["profile"].to(self.profile.sums)
        self._check_budget(self.draws)
        whole = self._stage(mine, self._first_replicates())
        if self.effort.tolerance is not None:
            if mine.first is None:
                mine.first = whole.terms
            whole = self._stage(mine, self._needed(mine.first))
        if self.profile is not None:
            gained = self.share.sum(self._gained()["profile"])
            self.profile.sums.copy_(self.before + gained.to(self.before))
        return whole

    def _ahead(self, mine: Measurement) -> bool:
        """Whether this process resumes in the second stage and another one does not: draws of the
        second stage would decide on its length."""
        if self.share.count == 1 or self.effort.tolerance is None:
            return False
        first = mine.first is not None
        behind = self.share.sum(torch.tensor([float(not first)], dtype=torch.float32))
        return first and behind.item() > 0

    @cached_property
    def key(self) -> Tensor:
        """A hash of what the draws depend on, by which a checkpoint is known."""
        integrand, effort, share = self.integrand, self.effort, self.share
        p = self.profile
        profile = None if p is None else (p.logsnr_min, p.logsnr_max, p.bins)
        return key_of(
            data_hash(integrand.data), condition_digest(integrand.condition),
            [side.name("") for side in integrand.sides], self.plan, effort.seed,
            self.draws, share.index, share.count, profile, self.mark,
            weights_of(*integrand.models),
        )  # fmt: skip

    def _gained(self) -> State:
        """What the profile has seen since the start."""
        return {} if self.profile is None else {"profile": (self.profile.sums - self.before).cpu()}

    def _first_replicates(self) -> int:
        if self.effort.tolerance is None:
            return self.effort.replicates
        return max(self.effort.replicates, 1 + math.ceil(ENOUGH / self.images))

    def _check_budget(self, draws: int) -> None:
        """Raise where so many draws in each grid of the first stage are beyond the budget."""
        cost = self._cost(self._first_replicates(), draws)
        if self.effort.budget is not None and cost > self.effort.budget:
            hint = "fewer draws or replicates make it smaller"
            self._beyond_budget(f"its first stage takes {cost:,} alone; {hint}")

    def _suggested_draws(self, design: Design | None = None) -> int:
        known = (design or self.design).variance
        if self.effort.tolerance is None or not known:
            return DRAWS
        variance = list(known.values())[-1]
        whole = variance * (self.scale / self.effort.tolerance) ** 2
        pairs = math.ceil(whole / (2 * self.images * self._first_replicates()))
        return min(128, max(FEW, 2 * pairs))

    def _needed(self, first: Tally) -> int:
        """Stein's rule: how many replicates the first stage's variance asks for."""
        tolerance, budget = self.effort.tolerance, self.effort.budget
        assert tolerance is not None
        needed = int(replicates_for(tolerance / self.scale, first.variances()[3]))
        replicates = max(first.replicates, needed)
        cost = self._cost(replicates)
        if cost > MOST:
            what = f"be within reach of {MOST:g} network evaluations"
            raise InvalidValue("tolerance", what, self._asked, f"it takes {cost:.1e}")
        if budget is not None and cost > budget:
            error = mean_error(first.variances()[3], 1, 2)[0].item() * self.scale
            reached = f"{budget:,} reaches about {error * math.sqrt(self._cost(1) / budget):.2g}"
            self._beyond_budget(f"a budget of {cost:,} would do; {reached}")
        return replicates

    @property
    def _asked(self) -> str:
        return f"{self.effort.tolerance:g} bits/dim"

    def _beyond_budget(self, hint: str) -> NoReturn:
        what = f"be within reach of budget = {self.effort.budget:,} network evaluations"
        raise InvalidValue("tolerance", what, self._asked, hint)

    def _cost(self, replicates: int, draws: int | None = None) -> int:
        return replicates * self.images * (draws or self.draws) * self.integrand.evaluations

    def _stage(self, mine: Measurement, replicates: int) -> Measurement:
        device = self.integrand.x.device
        own, pilot = self.own, self.design.evaluations
        each = self.draws * self.integrand.evaluations
        failure = None
        try:
            size = max(1, self.effort.batch // self.draws)
            for chunk in torch.split(own, size) if len(own) else ():
                seen: list[tuple[Tensor, Tensor, Tensor]] = []
                begun = int(mine.terms.count[0, chunk].min())
                for replicate in range(begun, replicates):
                    rows = chunk[mine.terms.count[0, chunk] == replicate]
                    errors = self._replicate(mine, rows, replicate, device)
                    seen.extend([errors] if self.profile is not None else [])
                    if self.progress is not None:
                        done = pilot + int(mine.terms.count.sum()) * each
                        self.progress(done, pilot + replicates * len(own) * each)
                if self.profile is not None and seen:
                    self.profile.update(*(torch.cat(column) for column in zip(*seen, strict=True)))
                if self.checkpoint is not None and begun < replicates:
                    state = mine.state() | self._gained() | {"key": self.key}
                    self.checkpoint({k: v.clone() for k, v in state.items()})
        except Exception as error:
            failure = error  # the others wait at the sum
        fail_together(self.share, failure)
        whole = mine.over(self.share)
        self._refuse(whole.trouble)
        return whole

    def _replicate(
        self, mine: Measurement, rows: Tensor, replicate: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        draws, x, design = self.draws, self.integrand.x, self.design
        seed, pairs = self.effort.seed, design.antithetic
        generators = [generator_of(seed, replicate, f"image {i}", device) for i in rows.tolist()]
        times = draws // 2 if pairs else draws
        u = torch.stack([self.plan.times.draw(times, g, device) for g in generators])
        u = torch.cat([u, u], 1).flatten() if pairs else u.flatten()
        eps = torch.cat([self.plan.noise((draws, *x.shape[1:]), pairs, g, x) for g in generators])
        t, q = design.density.place(u)
        each = rows.to(device).repeat_interleave(draws)
        parts = self.integrand(each, t, eps)
        diffusion = design.diffusion(self.integrand, each, t, q, eps, parts[1])
        bad = ~torch.isfinite(parts.sum(0))
        mine.add(rows, parts.cpu(), diffusion.cpu(), t.cpu(), bad.cpu(), self.level)
        if self.share.count == 1:  # else all processes raise together, at the end of the stage
            self._refuse(mine.trouble)
        images = torch.arange(len(rows), device=device).repeat_interleave(draws)
        return *self.integrand.squared_error(), images

    def _refuse(self, trouble: Tensor) -> None:
        rows = trouble.nonzero()[:, 0]
        t = (trouble[rows] - 1).to(self.integrand.x.device)
        self.integrand.refuse_nonfinite(trouble[rows] * math.nan, rows, t)


__all__ = ["BINS", "Effort", "Evaluation", "Measurement"]

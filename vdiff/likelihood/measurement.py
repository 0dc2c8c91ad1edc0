"""The run of an evaluation: replicates over all images, in one stage or in the two that a
tolerance takes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from vdiff.errors import check_positive_int, finite, must
from vdiff.likelihood.estimate import Tally, mean_error, replicates_for
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pieces import (
    Progress,
    Share,
    State,
    check_resume,
    data_hash,
    fail_together,
    key_of,
    told,
    weights_of,
)
from vdiff.likelihood.pilot import Design, bins_of, integral_by_bin, pilot_evaluations, run_pilot
from vdiff.likelihood.plan import Plan
from vdiff.profile import Profile
from vdiff.times import generator_of

DRAWS, FEWEST = 32, 1024  # per grid where nothing else is said; of a pilot
FEW = 2  # draws per grid at least, where a tolerance is given
TOLERANCES = (1e-12, 1e12)  # bits/dim; between them nothing overflows
MOST = 10**15  # network evaluations; nobody waits for more
_ALONE = Share()
BINS = 40  # of the curves by log-SNR
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

    def check(self, name: str) -> None:
        """Raise unless all of it is meaningful; `name` is the caller's."""
        for word in ("draws", "replicates", "batch", "budget"):
            if getattr(self, word) is not None:
                check_positive_int(name, word, getattr(self, word))
        if self.replicates < 2:
            raise ValueError(
                must(
                    name,
                    "replicates",
                    "be at least 2",
                    self.replicates,
                    "one grid has no standard error",
                )
            )
        if self.tolerance is not None:
            hint = "a standard error in bits/dim, for instance 0.005"
            low, high = TOLERANCES
            if not low <= finite(name, "tolerance", self.tolerance, above=0.0, hint=hint) <= high:
                what = f"lie between {low:g} and {high:g}"
                raise ValueError(must(name, "tolerance", what, f"{self.tolerance:g}", hint))
        elif self.budget is not None:
            raise ValueError(
                must(
                    name,
                    "budget",
                    "come with tolerance",
                    self.budget,
                    "without one, draws and replicates say how much is drawn",
                )
            )


class Measurement:
    """What has been drawn so far, as tensors by name, so that it is its own checkpoint and
    processes add theirs.

    Of each image: its tally of prior, diffusion, reconstruction and total; its diffusion term by
    bin of time, summed over draws (`curve`); Σ|w|, Σw² and max|w| of its draws w of that term,
    density divided out (`weights`); one plus a time where its bound was not finite (`trouble`).
    `first` is the tally of all images when the first stage ended.

    >>> sorted(Measurement.empty(3).state())
    ['count', 'curve', 'mean', 'spread', 'trouble', 'weights']
    """

    def __init__(
        self,
        terms: Tally,
        curve: Tensor,
        weights: Tensor,
        trouble: Tensor,
        first: Tally | None = None,
    ) -> None:
        self.terms, self.curve, self.weights, self.trouble, self.first = (
            terms,
            curve,
            weights,
            trouble,
            first,
        )

    @classmethod
    def empty(cls, images: int) -> "Measurement":
        """Nothing drawn yet."""
        curve, weights, trouble = (
            torch.zeros(images, *more, dtype=torch.float64) for more in ((BINS,), (3,), ())
        )
        return cls(Tally.empty(4, images), curve, weights, trouble)

    def state(self) -> State:
        """As tensors by name."""
        named = self.terms.state() | {
            "curve": self.curve,
            "weights": self.weights,
            "trouble": self.trouble,
        }
        return (
            named
            if self.first is None
            else named | {f"first_{k}": v for k, v in self.first.state().items()}
        )

    @classmethod
    def of(cls, state: State) -> "Measurement":
        """From `state()`, copied."""
        own = {k: v.clone() for k, v in state.items()}
        first = (
            Tally(own["first_count"], own["first_mean"], own["first_spread"])
            if "first_mean" in own
            else None
        )
        return cls(
            Tally(own["count"], own["mean"], own["spread"]),
            own["curve"],
            own["weights"],
            own["trouble"],
            first,
        )

    def over(self, share: Share) -> "Measurement":
        """The same over all processes."""
        whole = Measurement.of(
            {
                k: share.sum(v.clone())
                for k, v in self.state().items()
                if not k.startswith("first_")
            }
        )
        whole.first = self.first
        return whole

    def add(
        self, rows: Tensor, parts: Tensor, diffusion: Tensor, t: Tensor, bad: Tensor, level: Tensor
    ) -> None:
        """One replicate of images `rows`; everything else is (…, rows·draws), an image's draws
        together.

        `level` is what each draw holds of the integral of a baseline, by bin: it lies where the
        baseline does, not where the draw fell.
        """
        n = len(rows)
        means = torch.stack([parts[0], diffusion, parts[2]]).view(3, n, -1).mean(2)
        self.terms.add(rows, torch.cat([means, means.sum(0, keepdim=True)]))
        place = torch.arange(n).repeat_interleave(len(t) // n) * BINS + bins_of(t, BINS)
        drawn = (
            torch.zeros(n * BINS, dtype=torch.float64)
            .index_add_(0, place, diffusion - level.sum())
            .view(n, BINS)
        )
        self.curve[rows] += drawn + len(t) // n * level
        weight = diffusion.abs().view(n, -1)
        self.weights[rows, 0] += weight.sum(1)
        self.weights[rows, 1] += weight.square().sum(1)
        self.weights[rows, 2] = torch.maximum(self.weights[rows, 2], weight.amax(1))
        found, place = (bad * (1 + t)).view(n, -1).max(1)
        self.trouble[rows] = torch.maximum(self.trouble[rows], found)


@dataclass
class Evaluation:
    """An integrand, how it is drawn, and who listens; a call draws.

    `profile` collects ‖ε − ε̂‖² by λ (that of `Integrand`, not of a difference), `progress` is
    told (done, all) network evaluations of this process, its pilot among them, `checkpoint`
    receives the measurement's state after each batch of images; `mark` tells this model's from
    another's.

    >>> from vdiff import Categorical, Lattice, Linear
    >>> decoder = Categorical(levels=2)
    >>> integrand = Integrand(Lattice(decoder.grid, [0.5, 0.5]), torch.tensor([[0], [1]]), Linear(), decoder)
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
            if self.plan.antithetic:
                raise ValueError(
                    must(
                        self.integrand.name,
                        "draws",
                        "be even with antithetic noise",
                        self.effort.draws,
                    )
                )
            self.plan = replace(self.plan, antithetic=False)
        self.given = self.plan
        self.images = len(self.integrand.x)
        if self.effort.tolerance is None:  # a pilot that costs more than what it steers is none
            planned = (
                self.effort.replicates
                * self.images
                * (self.effort.draws or DRAWS)
                * self.integrand.evaluations
            )
            self.plan = replace(self.plan, pilot=min(self.plan.pilot, max(FEWEST, planned)))
        self.scale = 1 / (self.integrand.x[0].numel() * math.log(2))  # nats to bits/dim
        self.own = torch.arange(self.share.index, self.images, self.share.count)

    @cached_property
    def _pilot(self) -> Design:
        """What the pilot says. It is run here, where it is first asked for."""
        first = self._first_replicates() * len(self.own) * (self.effort.draws or FEW)
        least = pilot_evaluations(self.integrand, self.plan) + first * self.integrand.evaluations

        def told(done: int) -> None:
            if self.progress is not None:
                self.progress(done, least)

        plan, effort = self.plan, self.effort
        return run_pilot(self.integrand, plan, effort.seed, effort.batch, told)

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
        check_resume(self.integrand.name, resume, self.key)
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
            self.profile.sums.copy_(
                self.before + self.share.sum(self._gained()["profile"]).to(self.before)
            )
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
        profile = (
            None
            if self.profile is None
            else (self.profile.logsnr_min, self.profile.logsnr_max, self.profile.bins)
        )
        return key_of(
            data_hash(integrand.data), told(integrand.condition),
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
        replicates = max(
            first.replicates, int(replicates_for(tolerance / self.scale, first.variances()[3]))
        )
        cost = self._cost(replicates)
        if cost > MOST:
            what, came = (
                f"be within reach of {MOST:g} network evaluations",
                f"{tolerance:g} bits/dim",
            )
            raise ValueError(
                must(self.integrand.name, "tolerance", what, came, f"it takes {cost:.1e}")
            )
        if budget is not None and cost > budget:
            reached = (
                mean_error(first.variances()[3], 1, 2)[0].item()
                * self.scale
                * math.sqrt(self._cost(1) / budget)
            )
            self._beyond_budget(
                f"a budget of {cost:,} would do; {budget:,} reaches about {reached:.2g}"
            )
        return replicates

    def _beyond_budget(self, hint: str) -> NoReturn:
        what = f"be within reach of budget = {self.effort.budget:,} network evaluations"
        raise ValueError(
            must(
                self.integrand.name, "tolerance", what, f"{self.effort.tolerance:g} bits/dim", hint
            )
        )

    def _cost(self, replicates: int, draws: int | None = None) -> int:
        return replicates * self.images * (draws or self.draws) * self.integrand.evaluations

    def _stage(self, mine: Measurement, replicates: int) -> Measurement:
        device = self.integrand.x.device
        own, pilot = self.own, self.design.evaluations
        each = self.draws * self.integrand.evaluations
        failure = None
        try:
            for chunk in (
                torch.split(own, max(1, self.effort.batch // self.draws)) if len(own) else ()
            ):
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
                    self.checkpoint(
                        {
                            k: v.clone()
                            for k, v in (mine.state() | self._gained() | {"key": self.key}).items()
                        }
                    )
        except Exception as error:
            failure = error  # the others wait at the sum
        fail_together(self.integrand.name, self.share, failure)
        whole = mine.over(self.share)
        self._refuse(whole.trouble)
        return whole

    def _replicate(
        self, mine: Measurement, rows: Tensor, replicate: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        draws, x, design = self.draws, self.integrand.x, self.design
        generators = [
            generator_of(self.effort.seed, replicate, f"image {i}", device) for i in rows.tolist()
        ]
        pairs = design.antithetic
        u = torch.stack(
            [self.plan.times.draw(draws // 2 if pairs else draws, g, device) for g in generators]
        )
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
        return *self.integrand.squared_error(), torch.arange(
            len(rows), device=device
        ).repeat_interleave(draws)

    def _refuse(self, trouble: Tensor) -> None:
        rows = trouble.nonzero()[:, 0]
        self.integrand.refuse_nonfinite(
            trouble[rows] * math.nan, rows, (trouble[rows] - 1).to(self.integrand.x.device)
        )


__all__ = ["Effort", "Evaluation", "Measurement"]

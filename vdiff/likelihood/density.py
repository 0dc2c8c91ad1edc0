"""The times in [0, 1] of an evaluation: grids of uniform numbers, and the density of the times.

Time here is the coordinate of the integral, not of training. In continuous time it is linear in λ
between the ends of the schedule. On a chain it counts the steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import float64_for
from vdiff._validate import require
from vdiff.schedule import Schedule
from vdiff.times import stratified

_BITS = 30  # of a number of torch's Sobol engine


@dataclass(frozen=True)
class Times(ABC):
    """n numbers for an image. A random one of them is uniform on [0, 1), so that their mean is
    unbiased. Images are independent of each other.

    >>> Stratified(), Stratified() == Stratified()
    (Stratified(), True)
    """

    __example__: ClassVar[str] = "Stratified(), Sobol() or Independent()"

    @abstractmethod
    def draw(
        self, n: int, generator: torch.Generator, device: torch.device
    ) -> Float[Tensor, " n"]:
        """The numbers of one image."""


@dataclass(frozen=True)
class Independent(Times):
    """n independent numbers.

    >>> Independent().draw(2, torch.Generator().manual_seed(0), torch.device("cpu")).shape
    torch.Size([2])
    """

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.rand(n, generator=generator, device=device, dtype=float64_for(device))


@dataclass(frozen=True)
class Stratified(Times):
    """One number in each of n equal strata, in order: (i + u)/n with one offset u.

    >>> t = Stratified().draw(2, torch.Generator().manual_seed(0), torch.device("cpu"))
    >>> t.diff(), t.mul(2).floor()
    (tensor([0.5000], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        offset = stratified(1, generator=generator, device=device)[0]
        return stratified(n, offset=offset / n, device=device)


@dataclass(frozen=True)
class Sobol(Times):
    """The first n points of a Sobol sequence under a random digital shift. If n is a power of two,
    each of n equal strata has one.

    >>> u = Sobol().draw(2, torch.Generator().manual_seed(0), torch.device("cpu"))
    >>> u.mul(2).floor().sort().values
    tensor([0., 1.], dtype=torch.float64)
    """

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        shift = torch.randint(2**_BITS, (), generator=generator, device=device)
        below = torch.rand(n, generator=generator, device=device, dtype=float64_for(device))
        u: Tensor = ((_sobol(n).to(device) ^ shift) + below) / 2**_BITS
        return u


@lru_cache
def _sobol(n: int) -> Tensor:
    """The first n points of the sequence, times 2^30."""
    engine = torch.quasirandom.SobolEngine(1)  # type: ignore[no-untyped-call]
    points: Tensor = engine.draw(n, dtype=torch.float64)[:, 0]
    integers: Tensor = (points * 2**_BITS).long()
    return integers


class Density(ABC):
    """A density q of times in [0, 1]."""

    @abstractmethod
    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform numbers to times with density q. Returns the times and q at each."""


class UniformDensity(Density):
    """The density q = 1."""

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u, torch.ones_like(u)


class Binned(Density):
    """A density that is constant in each of several equal bins.

    >>> Binned(torch.tensor([1.0, 3.0])).place(torch.tensor([0.125, 0.625]))
    (tensor([0.2500, 0.7500]), tensor([0.5000, 1.5000]))
    """

    def __init__(self, heights: Float[Tensor, " bins"]) -> None:
        self.heights = heights / heights.mean()
        self.edges = torch.nn.functional.pad((heights / heights.sum()).cumsum(0), (1, 0))

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        heights, edges, bins = self.heights.to(u), self.edges.to(u), len(self.heights)
        index = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, bins - 1)
        q = heights[index]
        return ((index + (u - edges[index]) * bins / q) / bins).clamp(0, 1), q


class Along(Density):
    """The density of a schedule with the ends of the evaluation. Continuous time only.

    >>> from vdiff.schedule import Cosine, Linear
    >>> t, q = Along(Cosine(10.0, -10.0), Linear(10.0, -10.0)).place(torch.tensor([0.5]))
    >>> t, q.round(decimals=2)
    (tensor([0.5000]), tensor([3.2100]))
    """

    def __init__(self, schedule: Schedule, base: Schedule) -> None:
        scalar, path = "be left out for a path over dimensions", "the density is one over time"
        require(not base.over_dims, "importance", scalar, schedule, path)
        ends, got = ([s.logsnr_min, s.logsnr_max] for s in (base, schedule))
        hint = "where the density is zero, the bound leaves out a part and comes out too good"
        same = f"have an importance density with the ends of the evaluation, {ends}"
        require(got == ends, "plan", same, got, hint)
        self.schedule, self.base = schedule, base

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        logsnr, rate = self.schedule.at(u)[:2]
        t = self.base.inverse(logsnr, clamp=True)
        return t.to(u), (self.base.rate(t) / rate).to(u)

"""Where on [0, 1] an evaluation looks: grids of uniform numbers, and the density that they are
mapped to.

Time here is the coordinate of the integral, not of training: in continuous time it is linear in λ
between the schedule's ends, on a chain it counts the steps.
"""

from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import float64_for
from vdiff._validate import require
from vdiff.schedule import Schedule
from vdiff.times import stratified

_BITS = 30  # of torch's Sobol engine


class Times:
    """n numbers of an image, of which one taken at random is uniform on [0, 1), so that a mean
    over them is unbiased; images are independent of each other.

    >>> Stratified(), Stratified() == Stratified()
    (Stratified(), True)
    """

    __example__: ClassVar[str] = "Stratified(), Sobol() or Independent()"

    def draw(
        self, n: int, generator: torch.Generator, device: torch.device
    ) -> Float[Tensor, " n"]:
        """The numbers of one image."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Independent(Times):
    """n independent numbers.

    >>> Independent().draw(2, torch.Generator().manual_seed(0), torch.device("cpu")).shape
    torch.Size([2])
    """

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.rand(n, generator=generator, device=device, dtype=float64_for(device))


class Stratified(Times):
    """One number in each of n equal strata, in order: (i + u)/n with one offset u.

    >>> t = Stratified().draw(2, torch.Generator().manual_seed(0), torch.device("cpu"))
    >>> t.diff(), t.mul(2).floor()
    (tensor([0.5000], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        offset = stratified(1, generator=generator, device=device)[0]
        return stratified(n, offset=offset / n, device=device)


class Sobol(Times):
    """The first n points of a Sobol sequence under a random digital shift: one in each stratum
    where n is a power of two.

    >>> Sobol().draw(2, torch.Generator().manual_seed(0), torch.device("cpu")).mul(2).floor().sort().values
    tensor([0., 1.], dtype=torch.float64)
    """

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        shift = torch.randint(2**_BITS, (), generator=generator, device=device)
        below = torch.rand(n, generator=generator, device=device, dtype=float64_for(device))
        u: Tensor = ((_sobol(n).to(device) ^ shift) + below) / 2**_BITS
        return u


@lru_cache
def _sobol(n: int) -> Tensor:
    """The sequence's first points as integers, the bits of their binary digits."""
    engine = torch.quasirandom.SobolEngine(1)  # type: ignore[no-untyped-call]
    points: Tensor = engine.draw(n, dtype=torch.float64)[:, 0]
    whole: Tensor = (points * 2**_BITS).long()
    return whole


class Density:
    """A density over time in [0, 1]: `place(u)` maps uniform numbers to times and says the density
    q there.

    >>> t, q = Density().place(torch.tensor([0.5]))            # uniform
    >>> t, q
    (tensor([0.5000]), tensor([1.]))
    """

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times with density q, and q at each."""
        return u, torch.ones_like(u)


class Binned(Density):
    """A density that is constant in each of equal bins.

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
    """The density of a schedule of one's own, over a range that it must cover; continuous time
    only.

    >>> from vdiff.schedule import Cosine, Linear
    >>> t, q = Along(Cosine(10.0, -10.0), Linear(10.0, -10.0)).place(torch.tensor([0.5]))
    >>> t, q.round(decimals=2)
    (tensor([0.5000]), tensor([3.2100]))
    """

    def __init__(self, schedule: Schedule, base: Schedule) -> None:
        ends, came = ([s.logsnr_min, s.logsnr_max] for s in (base, schedule))
        hint = "where the density is zero the bound leaves a part out and comes out too good"
        same = f"have an importance density with the ends of the evaluation, {ends}"
        require(came == ends, "plan", same, came, hint)
        self.schedule, self.base = schedule, base

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        logsnr, rate = self.schedule.at(u)[:2]
        t = self.base.inverse(logsnr, clamp=True)
        return t.to(u), (self.base.rate(t) / rate).to(u)


__all__ = ["Along", "Binned", "Density", "Independent", "Sobol", "Stratified", "Times"]

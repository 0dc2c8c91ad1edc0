"""Averages whose length is chosen after the training (EDM2; Karras et al., arXiv:2312.02696).

The average of the profile exponent γ after n updates weighs the weights of time τ by τ^γ, and its
relative length σ_rel is the standard deviation of that profile, relative to n. Averages of a few
lengths, stored from time to time, span those of other lengths.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from vdiff._validate import Count, Given, Instance, Number, Whole, require, validated
from vdiff.training.ema import Averages, M, has_mean

LONGEST = 12**-0.5  # of the plain mean, γ = 0
FAR = 0.05  # of the norm of a profile
_Length = Number(above=0.0, at_most=LONGEST, hint="0.05 is 5 % of the training")
Length = Annotated[float, _Length]


def _lengths(value: Any, argument: str, given: Given) -> tuple[float, ...]:
    lengths = tuple(_Length(length, argument, given) for length in value)
    apart = len(lengths) > 0 and len(set(lengths)) == len(lengths)
    require(apart, argument, "be lengths that differ", value, "two are enough: (0.05, 0.1)")
    return lengths


@validated
def exponent_of(length: Length) -> float:
    """The exponent γ of a relative length, σ_rel² = (γ + 1)/((γ + 2)²(γ + 3)).

    >>> round(exponent_of(0.05), 2), round(exponent_of(0.1), 2)
    (16.97, 6.94)
    """
    t = length**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max()))


@dataclass(frozen=True)
class Snapshot:
    """An average of a relative length after a number of updates: its weights, and the tensors that
    were copied.

    >>> Snapshot(1000, 0.05, {"weight": torch.zeros(1)}, {}).length
    0.05
    """

    updates: int
    length: float
    means: Mapping[str, Tensor]
    copied: Mapping[str, Tensor]


class PowerEMA(Averages[M]):
    """Power function averages of a module's weights, one copy for each relative length, and
    snapshots of them, from which `reconstruct` makes the average of any other length.

        θ̄ ← (1 − 1/n)^{γ+1} θ̄ + (1 − (1 − 1/n)^{γ+1}) θ   at update n = 1, 2, …

    The initial weights do not count. Averages are at least in float32; buffers and integer weights
    are copied. Make it when the module is on its device, with the module itself rather than its
    DDP wrapper.

    Snapshots are kept on the CPU, in `snapshots`, and are part of `state_dict`. Some tens of them
    over a training give lengths from 0.03 to 0.2; `reconstruct` warns where they are too few.

    >>> module = nn.Linear(1, 1)
    >>> ema = PowerEMA(module)
    >>> for step in range(100):
    ...     with torch.no_grad():
    ...         _ = module.weight.fill_(step)  # in place of an optimizer's step
    ...     ema.update(step)
    ...     if step % 5 == 4:
    ...         ema.snapshot()
    >>> module.load_state_dict(reconstruct(ema.snapshots, 0.07))
    <All keys matched successfully>
    >>> 80.0 < module.weight.item() < 99.0
    True
    """

    @validated
    def __init__(
        self,
        module: Annotated[M, Instance((nn.Module,))],
        lengths: Annotated[Sequence[float], _lengths] = (0.05, 0.1),
    ) -> None:
        super().__init__(module, lengths)
        self.updates = 0
        self.snapshots: list[Snapshot] = []
        self._exponents = {length: exponent_of(length) for length in lengths}

    def kept(self, key: float, n: int) -> float:
        return float((n / (n + 1)) ** (self._exponents[key] + 1))

    @validated
    def update(self, n: Annotated[int, Whole(at_least=0)]) -> None:
        """Update the averages after step n = 0, 1, …, each once."""
        hint = "load_state_dict resumes the averages, too"
        require(n == self.updates, "n", "be the number of updates so far", n, hint)
        super().update(n)
        self.updates = n + 1

    def snapshot(self) -> None:
        """Keep the averages of now in `snapshots`."""
        what, hint = "have been updated since the last snapshot", "it would be the same"
        last = self.snapshots[-1].updates if self.snapshots else 0
        require(last < self.updates, "averages", what, f"{self.updates} updates", hint)
        for length, averaged in self.copies.items():
            means, copied = dict[str, Tensor](), dict[str, Tensor]()
            for name, value in averaged.state_dict(keep_vars=True).items():
                of = means if isinstance(value, nn.Parameter) and has_mean(value) else copied
                of[name] = value.detach().to("cpu", copy=True)
            self.snapshots.append(Snapshot(self.updates, length, means, copied))

    def state_dict(self) -> dict[str, Any]:
        """The averages, the number of updates, and the snapshots as plain dicts."""
        kept = [dict(vars(snapshot)) for snapshot in self.snapshots]
        return {"averages": super().state_dict(), "updates": self.updates, "snapshots": kept}

    @validated
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore averages and snapshots. Raises as `EMA.load_state_dict`."""
        names = ["averages", "updates", "snapshots"]
        require(sorted(state) == sorted(names), "state", f"hold {', '.join(names)}", list(state))
        super().load_state_dict(state["averages"])
        self.updates = state["updates"]
        self.snapshots = [Snapshot(**snapshot) for snapshot in state["snapshots"]]


def _apart(stored: Sequence[tuple[int, float]], updates: int | None) -> None:
    """Rule: there are averages, all different, and some are as late as the one wanted."""
    require(len(stored) > 0, "stored", "hold averages", "none", "PowerEMA.snapshot() keeps them")
    twice = [pair for pair in stored if list(stored).count(pair) > 1]
    require(not twice, "stored", "hold each average once", twice[:1])
    last = max(n for n, _ in stored)
    hint = "nothing is known of later weights"
    require(updates is None or updates <= last, "updates", f"be at most {last}", updates, hint)


@validated(rules=[_apart])
def power_weights(
    stored: Sequence[tuple[int, float]], length: Length, *, updates: Count | None = None
) -> Tensor:
    """The factors of stored averages whose sum is nearest to the average of another length.

    The profiles' distance is least squares (appendix C of the paper), among factors that sum to
    one, so that weights which did not change come out as they are. Warns if the distance is more
    than 5 % of the profile's norm.

    Args:
        stored: the updates and the length of each average.
        length: σ_rel of the average wanted.
        updates: after which it is wanted; the latest stored, by default.

    Returns:
        (len(stored),) in float64.

    >>> stored = [(50, 0.05), (50, 0.1), (100, 0.05), (100, 0.1)]
    >>> power_weights(stored, 0.1).round(decimals=9).abs()
    tensor([0., 0., 0., 1.], dtype=torch.float64)
    """
    wanted = updates or max(n for n, _ in stored)
    n = torch.tensor([float(n) for n, _ in stored] + [float(wanted)], dtype=torch.float64)
    gammas = [exponent_of(each) for _, each in stored] + [exponent_of(length)]
    gamma = torch.tensor(gammas, dtype=torch.float64)
    products = _inner_products(n, gamma)
    norm = products.diagonal().sqrt()
    cosines = products / norm[:, None] / norm
    size = len(stored)
    system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size] = cosines[:size, :size]
    system[:size, size] = system[size, :size] = norm[:size].reciprocal()
    right = torch.cat([cosines[:size, size], norm[size:].reciprocal()])
    x: Tensor = torch.linalg.solve(system, right)[:size]
    far = 1 - 2 * x @ cosines[:size, size] + x @ cosines[:size, :size] @ x
    if far > FAR**2:
        share = f"{100 * math.sqrt(far):.0f} % of its norm"
        what = f"the average of length {length:g} after {wanted} updates is {share} away from what"
        warnings.warn(f"{what} the stored averages can make: store more of them", stacklevel=3)
    return x * norm[size] / norm[:size]


def _inner_products(n: Tensor, gamma: Tensor) -> Tensor:
    """∫ p_i p_j dτ of the profiles p_i(τ) = (γ_i + 1) τ^γ_i / n_i^{γ_i + 1} on [0, n_i]."""
    g, m = gamma[:, None], n[:, None]
    shorter = torch.where(m < n, gamma, -g)
    ratio = torch.exp(shorter * (m.log() - n.log()))
    return (g + 1) * (gamma + 1) / ((g + gamma + 1) * torch.maximum(m, n)) * ratio


@validated
def reconstruct(
    snapshots: Sequence[Snapshot], length: Length, *, updates: Count | None = None
) -> dict[str, Tensor]:
    """The average of any relative length, as a state dict, from snapshots up to `updates` (the
    latest, by default). Sums are in float64; what was copied is that of the latest snapshot.

    Raises ValueError without snapshots up to then, and for snapshots that are there twice. Warns
    as `power_weights`.

    >>> first = Snapshot(100, 0.05, {"weight": torch.ones(1)}, {})
    >>> reconstruct([first], 0.05)
    {'weight': tensor([1.])}
    """
    used = [s for s in snapshots if updates is None or s.updates <= updates]
    until = f"hold some up to {updates} updates"
    require(len(used) > 0, "snapshots", until, f"{len(snapshots)} of later ones")
    stored = [(s.updates, s.length) for s in used]
    latest = max(used, key=lambda s: s.updates)
    weights = power_weights(stored, length, updates=updates).tolist()
    pairs = list(zip(weights, used, strict=True))
    made = {}
    for name, value in latest.means.items():
        wide = torch.promote_types(value.dtype, torch.float64)
        total = sum((w * s.means[name].to(wide) for w, s in pairs), torch.zeros((), dtype=wide))
        made[name] = total.to(value.dtype)
    return made | dict(latest.copied)

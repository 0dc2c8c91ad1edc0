"""What a comparison averages: the difference between two bounds of an image at one (t, ε)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vdiff._arguments import Model
from vdiff.decoder import Decoder
from vdiff.likelihood._rules import is_path, pair
from vdiff.likelihood.integrand import Drawn, Integrand
from vdiff.schedule import Schedule
from vdiff.times import on_chain

_OUTER = ((max, "logsnr_max"), (min, "logsnr_min"))


class Difference(Integrand):
    """The bound of the first model minus that of the second, at the same (image, t, ε).

    `schedule`, `decoder` and `steps` may be pairs, one for each model. In continuous time both
    models get the same λ between their outer ends, and a diffusion term is zero outside its own
    ends. Where one is a chain or a path over dimensions, both get the same t.
    """

    name = "compare"

    def __init__(
        self,
        model: Model,
        other: Model,
        data: Tensor,
        schedule: Schedule | tuple[Schedule, Schedule],
        decoder: Decoder | tuple[Decoder | None, Decoder | None] | None,
        steps: int | tuple[int | None, int | None] | None = None,
        condition: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
        absent: Tensor | None = None,
        any_order: bool = True,
    ) -> None:
        schedules, decoders, chains = pair(schedule), pair(decoder), pair(steps)
        masks: Any = {"mask": mask, "absent": absent, "any_order": any_order}
        super().__init__(model, data, schedules[0], decoders[0], chains[0], condition, **masks)
        bounds = zip((model, other), schedules, decoders, chains, strict=True)
        self._set_sides([*bounds], any_order)
        second = self.sides[1].process
        if second is not self.process or decoders[1] is not decoders[0]:
            known = self.part.clean(data, second.blank)
            second.encode(known, decoders[1])  # raises for data it does not take
        self.paths = [is_path(side.base) for side in self.sides]
        self.continuous = chains == (None, None) and not any(self.paths)
        if self.continuous:
            bases = [side.base for side in self.sides]
            high, low = (f(getattr(base, end) for base in bases) for f, end in _OUTER)
            self.base = self.process.even(high, low)

    def __call__(self, rows: Tensor, t: Tensor, eps: Tensor, drawn: Drawn | None = None) -> Tensor:
        first, second = (self._within(index, rows, t, eps, drawn) for index in range(2))
        return first - second

    @property
    def paths_of_controls(self) -> int:
        """Two where one side is a path, and the other another one."""
        return 1 + (any(self.paths) and self.sides[0].base is not self.sides[1].base)

    def all_levels(self, t: Tensor, drawn: Drawn | None = None) -> list[tuple[Tensor, Tensor]]:
        """The levels of both sides, where controls are taken along two paths."""
        if self.paths_of_controls == 1:
            return super().all_levels(t, drawn)
        bases = [side.base for side in self.sides] if drawn is None else [b for b, _ in drawn]
        times = (t if side.steps is None else on_chain(t, side.steps) for side in self.sides)
        return [
            base.at(when, side.steps, ndim=self.x.ndim)[:2]
            for base, when, side in zip(bases, times, self.sides, strict=True)
        ]

    def _within(
        self, index: int, rows: Tensor, t: Tensor, eps: Tensor, drawn: Drawn | None
    ) -> Tensor:
        """A side's parts at a time between the outer ends."""
        own, base = self.sides[index].base, self.base
        ends = (own.logsnr_max, own.logsnr_min)
        if not self.continuous or ends == (base.logsnr_max, base.logsnr_min):
            return self._parts(index, rows, t, eps, drawn)
        level = base.at(t)[0]
        when = own.inverse(level, clamp=True).to(t)
        parts = self._parts(index, rows, when, eps)
        share = own.rate(when) / base.rate(t)
        inside = (level <= ends[0]) & (level >= ends[1])
        parts[1] = torch.where(inside, parts[1] / share, 0.0)
        return parts

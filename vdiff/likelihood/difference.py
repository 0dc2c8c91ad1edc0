"""What a comparison averages: the difference between two bounds of an image at one (t, ε)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vdiff._arguments import Model
from vdiff._validate import require
from vdiff.decoder import Decoder
from vdiff.likelihood._rules import is_path, pair
from vdiff.likelihood.integrand import Drawn, Integrand, side_of
from vdiff.schedule import Linear, Schedule
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
        decoder: Decoder | tuple[Decoder, Decoder],
        steps: int | tuple[int | None, int | None] | None = None,
        condition: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
        absent: Tensor | None = None,
    ) -> None:
        schedules, decoders, chains = pair(schedule), pair(decoder), pair(steps)
        levels = [getattr(each, "levels", None) for each in decoders]
        came, hint = "{!r} and {!r}".format(*decoders), "their data is not the same"
        require(levels[0] == levels[1], "decoder", "be a pair for the same levels", came, hint)
        masks = {"mask": mask, "absent": absent}
        super().__init__(model, data, schedules[0], decoders[0], chains[0], condition, **masks)
        self.sides.append(side_of(other, schedules[1], decoders[1], chains[1]))
        if decoders[1] is not decoders[0]:
            decoders[1].encode(self.part.clean(data))  # raises for data that it does not take
        self.paths = [is_path(side.base) for side in self.sides]
        self.continuous = chains == (None, None) and not any(self.paths)
        if self.continuous:
            bases = [side.base for side in self.sides]
            high, low = (f(getattr(base, end) for base in bases) for f, end in _OUTER)
            self.base = Linear(high, low)

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
        parts = self._parts(index, rows, own.inverse(level, clamp=True).to(t), eps)
        share = (ends[0] - ends[1]) / (base.logsnr_max - base.logsnr_min)
        inside = (level <= ends[0]) & (level >= ends[1])
        parts[1] = torch.where(inside, parts[1] / share, 0.0)
        return parts

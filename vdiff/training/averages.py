"""Exponential moving averages of the weights."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff.objective import Objective


class Averages:
    """Copies of an objective whose weights are running means, one for each decay; schedules are
    averaged with the network.

        θ̄ ← d θ̄ + (1 − d) θ,   d = min(decay, (1 + n)/(10 + n)) at update n

    Without the warm-up of d, 1/e of the initial weights would be left after 1/(1 − decay) updates.
    Averages are in float32 at least: in bfloat16 a decay of 0.9999 never moves. Buffers, and
    weights that are whole numbers, are those of the objective. `torch.optim.swa_utils` has the
    same but for a count that is read from the device in every step.

    >>> objective = Objective(torch.nn.Linear(2, 2), schedule=Cosine())
    >>> averages = Averages(objective, [0.999])
    >>> with torch.no_grad(): _ = objective.model.bias.zero_()
    >>> averages.update(0)
    >>> bool((averages.copies[0.999].model.bias.abs() <= 0.1).all())
    True
    """

    def __init__(self, objective: Objective, decays: Sequence[float]) -> None:
        self.copies = {decay: copy.deepcopy(objective).eval() for decay in decays}
        self._pairs: dict[float, list[tuple[list[Tensor], list[Tensor]]]] = {}
        self._buffers: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for decay, averaged in self.copies.items():
            for p in averaged.parameters():
                if _has_mean(p) and torch.finfo(p.dtype).bits < 32:
                    p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
            weights = list(zip(averaged.parameters(), objective.parameters(), strict=True))
            pairs = [pair for pair in weights if _has_mean(pair[0])]
            others = [pair for pair in weights if not _has_mean(pair[0])]
            dtypes = {
                (mean.dtype, now.dtype) for mean, now in pairs
            }  # lists of one dtype are one operation
            alike = [
                [(m.detach(), n.detach()) for m, n in pairs if (m.dtype, n.dtype) == dtype]
                for dtype in sorted(dtypes, key=str)
            ]
            self._pairs[decay] = [
                ([m for m, _ in group], [n for _, n in group]) for group in alike
            ]
            means, now = [m.detach() for m, _ in others], [n.detach() for _, n in others]
            self._buffers[decay] = ([*means, *averaged.buffers()], [*now, *objective.buffers()])

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the weights after update number n = 0, 1, …"""
        for decay in self.copies:
            kept = min(decay, (1 + n) / (10 + n))
            for means, now in self._pairs[decay]:
                wide = (
                    now if now[0].dtype == means[0].dtype else [v.to(means[0].dtype) for v in now]
                )
                torch._foreach_lerp_(means, wide, 1 - kept)
            buffers, current = self._buffers[decay]
            if buffers:
                torch._foreach_copy_(buffers, current)


def _has_mean(p: Tensor) -> bool:
    """Whether weights can be averaged: whole numbers, such as those of a quantised layer, are
    copied.
    """
    return p.is_floating_point() or p.is_complex()


__all__ = ["Averages"]

"""Exponential moving averages of the weights."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff.objective import Objective

Lists = tuple[list[Tensor], list[Tensor]]


class Averages:
    """Copies of an objective whose weights are running means, one for each decay; schedules are
    averaged with the network.

        θ̄ ← d θ̄ + (1 − d) θ,   d = min(decay, (1 + n)/(10 + n)) at update n

    Without the warm-up of d, 1/e of the initial weights would be left after 1/(1 − decay) updates.
    Averages are in float32 at least: in bfloat16 a decay of 0.9999 never moves. Buffers and
    integer weights are copied. `torch.optim.swa_utils` reads its count from the device in every
    step.
    """

    def __init__(self, objective: Objective, decays: Sequence[float]) -> None:
        self.copies = {decay: copy.deepcopy(objective).eval() for decay in decays}
        self._means: dict[float, list[Lists]] = {}
        self._copied: dict[float, Lists] = {}
        for decay, averaged in self.copies.items():
            for p in averaged.parameters():
                if _has_mean(p) and torch.finfo(p.dtype).bits < 32:
                    p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
            groups: dict[str, Lists] = {}  # lists of one dtype are one operation
            copied: Lists = ([], [])
            for mean, now in zip(averaged.parameters(), objective.parameters(), strict=True):
                key = f"{mean.dtype} {now.dtype}"
                lists = groups.setdefault(key, ([], [])) if _has_mean(mean) else copied
                lists[0].append(mean.detach())
                lists[1].append(now.detach())
            self._means[decay] = [groups[key] for key in sorted(groups)]
            self._copied[decay] = (
                [*copied[0], *averaged.buffers()],
                [*copied[1], *objective.buffers()],
            )

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Average in the weights after update number n = 0, 1, …"""
        for decay in self.copies:
            kept = min(decay, (1 + n) / (10 + n))
            for means, now in self._means[decay]:
                dtype = means[0].dtype
                values = now if now[0].dtype == dtype else [v.to(dtype) for v in now]
                torch._foreach_lerp_(means, values, 1 - kept)
            buffers, current = self._copied[decay]
            if buffers:
                torch._foreach_copy_(buffers, current)


def _has_mean(p: Tensor) -> bool:
    """Whether weights can be averaged; the integers of a quantized layer cannot."""
    return p.is_floating_point() or p.is_complex()


__all__ = ["Averages"]

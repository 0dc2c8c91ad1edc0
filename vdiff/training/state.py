"""Everything that training changes: weights, optimizer, averages. A checkpoint holds it."""

import copy
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from vdiff.groups import parameter_groups
from vdiff.objective import Objective
from vdiff.training.config import Config

COUNTS = ("step", "skipped", "in_a_row")
FACTS = (*COUNTS, "window", "best")
Lists = tuple[list[Tensor], list[Tensor]]


class EMA:
    """Exponential moving averages of an objective (its schedule too), one copy for each decay.

        θ̄ ← d θ̄ + (1 − d) θ,   d = min(decay, (1 + n)/(10 + n)) at update n

    Without the warm-up of d, 1/e of the initial weights would be left after 1/(1 − decay) updates.
    Averages are at least in float32: in bfloat16 a decay of 0.9999 never moves. Buffers and
    integer weights are copied. Unlike `torch.optim.swa_utils`, an update reads nothing from the
    device.
    """

    def __init__(self, objective: Objective, decays: Sequence[float]) -> None:
        self.copies = {decay: copy.deepcopy(objective).eval() for decay in decays}
        self._means: dict[float, list[Lists]] = {}
        self._copied: dict[float, Lists] = {}
        for decay, averaged in self.copies.items():
            for p in averaged.parameters():
                if _has_mean(p) and torch.finfo(p.dtype).bits < 32:
                    p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
            groups: dict[str, Lists] = {}  # tensors of one dtype take one operation
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
        """Update the averages after step n = 0, 1, …"""
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
    """Whether weights can be averaged. The integers of a quantized layer cannot."""
    return p.is_floating_point() or p.is_complex()


class State:
    """An objective in training, with its optimizer and averages.

    Images, times, noise, learning rates and seeds are functions of the step, so that nothing else
    is stored. `step` counts the steps done, `skipped` those with a non-finite loss or gradient,
    and `in_a_row` the most recent of these. `window` is the sum and the number of losses since the
    last log entry, `best` the lowest validation with its step. `provenance` records the training
    data, and how the objective differs from its config.
    """

    def __init__(self, objective: Objective, config: Config) -> None:
        self.objective = objective
        rates = {"lr": config.lr, "schedule_lr": config.schedule_lr}
        groups = parameter_groups(objective, weight_decay=config.weight_decay, **rates)
        # a fused step can be skipped by a flag on the device; complex weights have no such kernel
        self.fused = all(p.is_floating_point() for group in groups for p in group["params"])
        betas = (config.betas[0], config.betas[1])
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=self.fused)
        for group in self.optimizer.param_groups:
            group["full_lr"] = group["lr"]
            for p in group["params"]:  # what the optimizer itself creates in its first step
                self.optimizer.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        self.ema = EMA(objective, config.ema)
        self.step = self.skipped = self.in_a_row = 0
        self.window: list[float] = [0.0, 0]
        self.best: dict[str, float] | None = None
        self.provenance: dict[str, Any] = {}

    def advance(self, skip: Tensor) -> None:
        """One step of the optimizer, without effect if the flag `skip` is set."""
        if self.fused:
            self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as torch's GradScaler does
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()

    @property
    def averaged(self) -> Objective:
        """The average that is evaluated: that of the first decay."""
        return next(iter(self.ema.copies.values()))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors by file and name (not copies)."""
        moments = {
            f"{moment}.{name}": value
            for name, p in self.objective.named_parameters()
            for moment, value in self.optimizer.state.get(p, {}).items()
        }
        averages = {f"ema-{decay}": o.state_dict() for decay, o in self.ema.copies.items()}
        return {"objective": self.objective.state_dict(), **averages, "optimizer": moments}

    def facts(self) -> dict[str, Any]:
        """Non-tensor state."""
        return {name: getattr(self, name) for name in FACTS}

    def load_facts(self, facts: dict[str, Any]) -> None:
        """Restore non-tensor state."""
        for name in FACTS:
            setattr(self, name, facts[name])


def is_state(facts: object) -> TypeGuard[dict[str, Any]]:
    """Whether these are the facts of a state."""
    if not isinstance(facts, dict) or facts.keys() != set(FACTS):
        return False
    window, best = facts["window"], {"step": 0, "bits_per_dim": 0}
    best = best if facts["best"] is None else facts["best"]
    if not (isinstance(window, list) and len(window) == 2 and isinstance(best, dict)):
        return False
    numbers = (*window, best.get("step"), best.get("bits_per_dim"))
    counts = (facts[name] for name in COUNTS)
    whole = all(type(count) is int and count >= 0 for count in counts)
    return whole and all(type(value) in (int, float) for value in numbers)


__all__ = ["EMA", "State", "is_state"]

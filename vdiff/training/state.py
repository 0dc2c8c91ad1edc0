"""Everything that training changes: weights, optimizer, averages. A checkpoint holds it."""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from vdiff.groups import parameter_groups
from vdiff.objective import Objective
from vdiff.training.config import Config
from vdiff.training.ema import EMA

COUNTS = ("step", "skipped", "in_a_row")
FACTS = (*COUNTS, "window", "best")


class State:
    """An objective in training, with its optimizer and averages.

    Images, times, noise, learning rates and seeds are functions of the step, so that nothing else
    is stored. `step` counts the steps done, `skipped` those with a non-finite loss or gradient,
    and `in_a_row` the most recent of these. `window` is the sum and the number of losses since the
    last log entry, `best` the lowest validation with its step. `provenance` records the training
    data, and how the objective differs from its config. `stream` is the state of data without
    numbers.
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
        self.stream: Any = None

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

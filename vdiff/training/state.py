"""Everything that training changes: what a checkpoint holds."""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from vdiff.groups import parameter_groups
from vdiff.objective import Objective
from vdiff.training.averages import Averages
from vdiff.training.config import Config


class State:
    """An objective in training, with its optimizer, its averages, and where it stands.

    There is no more to it: images, times, noise, learning rates and seeds are functions of the
    step. `step` is the number of steps done, of which `skipped` had a loss or gradient that was
    not finite, the last `in_a_row` of them; `window` is the sum and the number of losses since the
    last entry of the log, `best` that of the lowest validation, with its step. `about` is what its
    weights say of themselves beside the config.

    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> list(State(config.objective(), config).tensors())
    ['objective', 'ema-0.999', 'optimizer']
    """

    def __init__(self, objective: Objective, config: Config) -> None:
        self.objective = objective
        groups = parameter_groups(
            objective,
            lr=config.lr,
            weight_decay=config.weight_decay,
            schedule_lr=config.schedule_lr,
        )
        # fused, a step can be left out by a flag that never comes back from the device; complex
        # weights have no such kernel
        self.fused = all(p.is_floating_point() for group in groups for p in group["params"])
        self.optimizer = torch.optim.AdamW(
            groups, betas=(config.betas[0], config.betas[1]), fused=self.fused
        )
        for group in self.optimizer.param_groups:
            group["full_lr"] = group["lr"]
            for p in group["params"]:  # what the optimizer itself makes in its first step
                self.optimizer.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        self.averages = Averages(objective, config.ema)
        self.step = self.skipped = self.in_a_row = 0
        self.window: list[float] = [0.0, 0]
        self.best: dict[str, float] | None = None
        self.about: dict[str, Any] = {}

    def advance(self, skip: Tensor) -> None:
        """One step of the optimizer, which the flag `skip` leaves out."""
        if self.fused:
            self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as torch's GradScaler tells it
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()

    @property
    def averaged(self) -> Objective:
        """The average that is evaluated, that of the first decay."""
        return next(iter(self.averages.copies.values()))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors by file and name, in place: what is written, and what is read into."""
        moments = {
            f"{moment}.{name}": value
            for name, p in self.objective.named_parameters()
            for moment, value in self.optimizer.state.get(p, {}).items()
        }
        averages = {
            f"ema-{decay}": averaged.state_dict()
            for decay, averaged in self.averages.copies.items()
        }
        return {"objective": self.objective.state_dict(), **averages, "optimizer": moments}

    def facts(self) -> dict[str, Any]:
        """All that is no tensor."""
        return {
            name: getattr(self, name) for name in ("step", "skipped", "in_a_row", "window", "best")
        }

    def take(self, facts: dict[str, Any]) -> None:
        """Go on from such facts."""
        for name in self.facts():
            setattr(self, name, facts[name])


def is_state(facts: object) -> TypeGuard[dict[str, Any]]:
    """Whether these can be the facts of a state.

    >>> is_state({"step": 3, "skipped": 0, "in_a_row": 0, "window": [1.5, 1], "best": None}), is_state({"step": -1})
    (True, False)
    """
    if not isinstance(facts, dict) or facts.keys() != {
        "step",
        "skipped",
        "in_a_row",
        "window",
        "best",
    }:
        return False
    counts, window, best = (
        [facts[name] for name in ("step", "skipped", "in_a_row")],
        facts["window"],
        facts["best"],
    )
    best_values = (
        []
        if best is None
        else [best.get("step"), best.get("bits_per_dim")]
        if isinstance(best, dict)
        else [None]
    )
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and isinstance(window, list)
        and len(window) == 2
        and all(type(value) in (int, float) for value in (*window, *best_values))
    )


__all__ = ["State", "is_state"]

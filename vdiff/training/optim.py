"""Which parameters decay, and which learn at their own pace."""

from typing import Any

from torch import nn

from vdiff.schedule import Schedule


def parameter_groups(module: nn.Module, *, lr: float, weight_decay: float = 0.0, schedule_lr: float | None = None) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: schedules never decay and may have a learning rate of their own.

    Weight decay would pull learned log-SNR ends towards zero. The groups carry a `name`, "model" or "schedule", so that
    a loop can clip the first alone.

    >>> from vdiff import Categorical, Denoiser, LearnedLinear, Objective, X
    >>> from vdiff.nn import UNet
    >>> objective = Objective(Denoiser(UNet(1, width=8), X()), schedule=LearnedLinear(), decoder=Categorical(17))
    >>> [(g["name"], g["weight_decay"]) for g in parameter_groups(objective, lr=1e-3, weight_decay=0.01)]
    [('model', 0.01), ('schedule', 0.0)]
    """
    of_schedules = {id(p) for m in module.modules() if isinstance(m, Schedule) for p in m.parameters()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"name": "model", "params": [p for p in parameters if id(p) not in of_schedules], "lr": lr, "weight_decay": weight_decay},
        {
            "name": "schedule",
            "params": [p for p in parameters if id(p) in of_schedules],
            "lr": lr if schedule_lr is None else schedule_lr,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]

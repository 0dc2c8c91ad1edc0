"""Parameter groups for an optimizer."""

from typing import Any

from torch import nn

from vdiff.schedule import Schedule


def parameter_groups(
    module: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    schedule_lr: float = 0.01,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: schedules have no weight decay, and their own
    learning rate.

    Weight decay would pull learned log-SNR ends towards zero, and at a network's rate a learned
    schedule hardly moves. Without `lr` the network uses the optimizer's. Each group has a `name`,
    "model" or "schedule", so that a loop can clip the first one alone.

    >>> from vdiff import Denoiser, Objective
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> from vdiff.schedule import Spline
    >>> from vdiff.nn import UNet
    >>> from vdiff.objective import VLB
    >>> model, decoder = Denoiser(UNet(1, width=8), X()), Categorical(17)
    >>> objective = Objective(model, schedule=Spline(), loss=VLB(decoder))
    >>> groups = parameter_groups(objective, lr=1e-3, weight_decay=0.01)
    >>> [(g["name"], g["lr"], g["weight_decay"]) for g in groups]
    [('model', 0.001, 0.01), ('schedule', 0.01, 0.0)]
    """
    of_schedules = {  # a network within one, such as MuLAN's encoder, is trained as the model is
        id(p)
        for m in module.modules()
        if isinstance(m, Schedule)
        for p in m.parameters(recurse=False)
    }
    parameters = [p for p in module.parameters() if p.requires_grad]
    model: dict[str, Any] = {
        "name": "model",
        "params": [p for p in parameters if id(p) not in of_schedules],
        "weight_decay": weight_decay,
    }
    schedule = {
        "name": "schedule",
        "params": [p for p in parameters if id(p) in of_schedules],
        "lr": schedule_lr,
        "weight_decay": 0.0,
    }
    if lr is not None:
        model["lr"] = lr
    return [group for group in (model, schedule) if group["params"]]


__all__ = ["parameter_groups"]

"""Small runs and checkpoints, and what is wrong with some of them."""

from pathlib import Path
from typing import Any

import torch
from points import data_of
from torch import Tensor, nn

from vdiff import Denoiser, Objective
from vdiff.decoder import Categorical
from vdiff.objective import VLB
from vdiff.parameterization import V
from vdiff.schedule import Spline
from vdiff.training import Config, Run, train


def objective_of(network: nn.Module) -> Objective:
    return Objective(
        Denoiser(network, V()), schedule=Spline(10.0, -7.0, knots=4), loss=VLB(Categorical(17))
    )


def small(value: float) -> dict[str, dict[str, Tensor]]:
    return {
        "a": {"x": torch.full((7,), float(value))},
        "b": {"y": torch.full((2, 3), float(value)), "n": torch.tensor(int(value))},
    }


def run_of(folder: Path, config: Config, **options: Any) -> Objective:
    torch.manual_seed(0)
    with Run.open(folder, config) as run:
        return train(
            config.objective(), data_of(config), config, run=run, every=4, quiet=True, **options
        )

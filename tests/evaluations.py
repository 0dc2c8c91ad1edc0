"""Runs, a command and a small lattice to evaluate."""

from pathlib import Path

import torch
from registry import ORACLES

from vdiff.cli import main
from vdiff.data.digits import LEVELS
from vdiff.decoder import Categorical
from vdiff.schedule import Linear
from vdiff.training import Config, Run

CONFIG = Config(
    network={
        "name": "UNet",
        "channels": 1,
        "channels_out": LEVELS,
        "width": 8,
        "multipliers": [1],
        "heads": 1,
    },
    schedule={"name": "Linear", "logsnr_max": 7.0, "logsnr_min": -6.0},
    ema=[0.5],
)


def made(folder: Path, seed: int = 0, config: Config = CONFIG, scale: float = 0.05) -> Path:
    torch.manual_seed(seed)
    run = Run.create(folder, config)
    objective = config.objective()
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))  # a new last layer is zero
    run.save(objective)
    return run.folder


def call(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--quiet"])


DECODER = Categorical(levels=4)
ORACLE = ORACLES["lattice"]()
LEVELS_OF_FOUR = torch.arange(4).repeat(25)[:, None]
SETTING = {
    "schedule": Linear(7.0, -6.0),
    "decoder": DECODER,
    "draws": 8,
    "batch": 64,
    "tolerance": 0.06,
}

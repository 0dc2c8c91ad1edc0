"""A small run."""

from pathlib import Path

from points import data_of, points

from vdiff import Objective
from vdiff.training import Config, Run, train

CONFIG = points(
    steps=4, schedule={"name": "Linear", "logsnr_max": 10.0, "logsnr_min": -7.0}, ema=[0.9]
)


def trained(folder: Path, config: Config = CONFIG, **options: object) -> Objective:
    with Run.open(folder, config) as run:
        return train(config.objective(), data_of(config), config, run=run, quiet=True, **options)

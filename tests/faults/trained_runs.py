"""A small training, and what its files are asked."""

from pathlib import Path

import torch

from vdiff.training import Config, Run, train

NETWORK = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
CONFIG = Config(network=NETWORK, steps=2, batch=4)
IMAGES = torch.randint(0, 17, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def trained(folder: Path, config: Config = CONFIG) -> Run:
    with Run.open(folder, config) as run:
        train(
            config.objective(),
            IMAGES,
            config,
            run=run,
            every=1,
            quiet=True,
            labels=IMAGES[:, 0, 0, 0] % 3 if config.conditional else None,
        )
    return run


EVALUATE = ["--data", "digits", "--draws", "2", "--replicates", "2", "--device", "cpu", "--quiet"]

"""A small run, and the programs that print."""

import sys
from pathlib import Path

from vdiff.training import Config, Run

ROOT = Path(__file__).parent.parent
CONFIG = Config(
    network={
        "name": "UNet",
        "channels": 1,
        "channels_out": 17,
        "width": 8,
        "multipliers": [1],
        "heads": 1,
    }
)

VDIFF = [sys.executable, "-c", "import sys; from vdiff.cli import main; sys.exit(main())"]


def made(folder: Path, config: Config = CONFIG) -> Path:
    with Run.create(folder, config) as run:
        run.save(config.objective())
    return run.folder

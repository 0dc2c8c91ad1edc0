"""Training: configuration, loop and run folder. Needs the extra `train`."""

from vdiff.training.config import Config
from vdiff.training.loop import train
from vdiff.training.optim import parameter_groups
from vdiff.training.run import Run

__all__ = ["Config", "Run", "parameter_groups", "train"]

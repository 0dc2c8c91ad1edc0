"""Training: configuration, loop and run folder. Needs the extra `train`."""

from vdiff.groups import parameter_groups
from vdiff.training.config import Config
from vdiff.training.loop import train
from vdiff.training.ranks import over_ranks
from vdiff.training.run import Run

__all__ = ["Config", "Run", "over_ranks", "parameter_groups", "train"]

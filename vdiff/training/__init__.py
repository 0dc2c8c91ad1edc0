"""Training: configuration, loop and run folder. Importing it needs the extra `train`."""

from vdiff.extras import extra

with extra("train"):  # before anything is trained, not at the first checkpoint
    import filelock  # noqa: F401
    import safetensors.torch  # noqa: F401

from vdiff.groups import parameter_groups
from vdiff.training.config import Config
from vdiff.training.ema import EMA
from vdiff.training.loop import train
from vdiff.training.power_ema import PowerEMA, reconstruct
from vdiff.training.ranks import all_reduce, distributed, rank, shard
from vdiff.training.run import Run
from vdiff.training.validation import Validation

__all__ = [
    "EMA", "Config", "PowerEMA", "Run", "Validation", "all_reduce", "distributed",
    "parameter_groups", "rank", "reconstruct", "shard", "train",
]  # fmt: skip

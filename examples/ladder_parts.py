"""What the rows of `ladder.py` are made of: data, network, reverse variances, and the setting that
all share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdiff.data.digits import LEVELS, Split, digits
from vdiff.gaussian import Step, per_example
from vdiff.nn import MLP
from vdiff.variance import (
    FixedLarge,
    FixedSmall,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
    ReverseVariance,
)


class Output(ReverseVariance):
    """Σ is the network's output itself without its sign: nothing stands between the weights and
    the gradient's 1/Σ²."""

    learned = True

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Tensor:
        assert variance_output is not None
        posterior = per_example(step.variance.log(), variance_output)
        return torch.log(variance_output.abs() + 1e-8) - posterior


VARIANCES = {
    "output": Output,
    "direct": LearnedVariance,
    "log": LearnedLogVariance,
    "small": FixedSmall,
    "large": FixedLarge,
    "range": LearnedRange,
}


@dataclass(frozen=True)
class Setting:
    """What all rows share: the chain's noise levels, training, and how much is drawn to
    measure."""

    data: str = "digits"
    levels: int = 100
    steps: int = 2000
    batch: int = 128
    lr: float = 4e-3
    draws: int = 64
    samples: int = 500


class Flat(nn.Module):
    """Images through an MLP, with `heads` times their channels out."""

    def __init__(self, channels: int, size: int, heads: int) -> None:
        super().__init__()
        self.mlp = MLP(channels * size * size, dims_out=heads * channels * size * size, width=256)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        return self.mlp(z.flatten(1), logsnr).view(len(z), -1, *z.shape[2:])


@dataclass(frozen=True)
class Problem:
    """Integer images to train on, to draw curves with and to test on, and a network for them with
    1 or 2 heads."""

    images: Split
    grey_levels: int
    network: Callable[[int], nn.Module]


DATA: dict[str, Callable[[], Problem]] = {
    "digits": lambda: Problem(digits(), LEVELS, lambda heads: Flat(1, 8, heads))
}

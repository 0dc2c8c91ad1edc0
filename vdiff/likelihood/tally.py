"""What an evaluation has drawn so far."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff.likelihood.chunks import Share, State
from vdiff.likelihood.estimate import RunningMoments
from vdiff.likelihood.pilot import bin_index

BINS = 40  # of the curves by log-SNR


@dataclass
class Tally:
    """Sums of what was drawn, by image. `state()` is what a checkpoint holds.

    Attributes:
        terms: moments of prior, diffusion, reconstruction and total over replicates.
        curve: the diffusion term by bin of time, summed over draws.
        weights: Σ|w|, Σw² and max|w| over draws w of the diffusion term divided by their density.
        nonfinite: 1 + t for a time t where the bound was not finite, else 0.
        first: the moments of all images at the end of the first stage.

    >>> sorted(Tally.empty(3).state())
    ['count', 'curve', 'mean', 'spread', 'trouble', 'weights']
    """

    terms: RunningMoments
    curve: Tensor
    weights: Tensor
    nonfinite: Tensor
    first: RunningMoments | None = None

    @classmethod
    def empty(cls, images: int) -> "Tally":
        """Nothing drawn yet."""
        curve, weights, nonfinite = (
            torch.zeros(images, *size, dtype=torch.float64) for size in ((BINS,), (3,), ())
        )
        return cls(RunningMoments.empty(4, images), curve, weights, nonfinite)

    def state(self) -> State:
        """As tensors by name."""
        own = {"curve": self.curve, "weights": self.weights, "trouble": self.nonfinite}
        first = {} if self.first is None else self.first.state()
        return self.terms.state() | own | {f"first_{word}": v for word, v in first.items()}

    @classmethod
    def of(cls, state: State) -> "Tally":
        """From `state()`, copied."""
        own, words = {word: v.clone() for word, v in state.items()}, ("count", "mean", "spread")
        first = (
            RunningMoments(*(own[f"first_{w}"] for w in words)) if "first_mean" in own else None
        )
        terms = RunningMoments(*(own[w] for w in words))
        return cls(terms, own["curve"], own["weights"], own["trouble"], first)

    def over(self, share: Share) -> "Tally":
        """The tally of all processes."""
        own = {k: v for k, v in self.state().items() if not k.startswith("first_")}
        total = Tally.of({k: share.sum(v.clone()) for k, v in own.items()})
        total.first = self.first
        return total

    def add(
        self, rows: Tensor, parts: Tensor, diffusion: Tensor, t: Tensor, bad: Tensor, level: Tensor
    ) -> None:
        """One replicate of the images `rows`. The last dimension of the other arguments is
        rows · draws, an image's draws together.

        `level` is each draw's share of the integral of a baseline, by bin, or a row of it for each
        image. It belongs to the bins of the baseline, not to the bin of the draw.
        """
        n, draws = len(rows), len(t) // len(rows)
        means = torch.stack([parts[0], diffusion, parts[2]]).view(3, n, -1).mean(2)
        self.terms.add(rows, torch.cat([means, means.sum(0, keepdim=True)]))
        index = torch.arange(n).repeat_interleave(draws) * BINS + bin_index(t, BINS)
        drawn = torch.zeros(n * BINS, dtype=torch.float64)
        whole = level.sum() if level.ndim == 1 else level.sum(1).repeat_interleave(draws)
        drawn = drawn.index_add_(0, index, diffusion - whole).view(n, BINS)
        self.curve[rows] += drawn + draws * level
        weight = diffusion.abs().view(n, -1)
        self.weights[rows, 0] += weight.sum(1)
        self.weights[rows, 1] += weight.square().sum(1)
        self.weights[rows, 2] = torch.maximum(self.weights[rows, 2], weight.amax(1))
        latest = (bad * (1 + t)).view(n, -1).amax(1)
        self.nonfinite[rows] = torch.maximum(self.nonfinite[rows], latest)

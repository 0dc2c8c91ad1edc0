"""What an evaluation has drawn so far."""

import torch
from torch import Tensor

from vdiff.likelihood.estimate import Tally
from vdiff.likelihood.pieces import Share, State
from vdiff.likelihood.pilot import bins_of

BINS = 40  # of the curves by log-SNR


class Measurement:
    """What has been drawn so far, as tensors by name, so that it is its own checkpoint and
    processes add theirs.

    Of each image: its tally of prior, diffusion, reconstruction and total; its diffusion term by
    bin of time, summed over draws (`curve`); Σ|w|, Σw² and max|w| of its draws w of that term,
    density divided out (`weights`); one plus a time where its bound was not finite (`trouble`).
    `first` is the tally of all images when the first stage ended.

    >>> sorted(Measurement.empty(3).state())
    ['count', 'curve', 'mean', 'spread', 'trouble', 'weights']
    """

    def __init__(
        self,
        terms: Tally,
        curve: Tensor,
        weights: Tensor,
        trouble: Tensor,
        first: Tally | None = None,
    ) -> None:
        self.terms, self.curve, self.weights = terms, curve, weights
        self.trouble, self.first = trouble, first

    @classmethod
    def empty(cls, images: int) -> "Measurement":
        """Nothing drawn yet."""
        curve, weights, trouble = (
            torch.zeros(images, *more, dtype=torch.float64) for more in ((BINS,), (3,), ())
        )
        return cls(Tally.empty(4, images), curve, weights, trouble)

    def state(self) -> State:
        """As tensors by name."""
        own = {"curve": self.curve, "weights": self.weights, "trouble": self.trouble}
        first = {} if self.first is None else self.first.state()
        return self.terms.state() | own | {f"first_{k}": v for k, v in first.items()}

    @classmethod
    def of(cls, state: State) -> "Measurement":
        """From `state()`, copied."""
        own = {k: v.clone() for k, v in state.items()}
        words = ("count", "mean", "spread")
        first = Tally(*(own[f"first_{k}"] for k in words)) if "first_mean" in own else None
        terms = Tally(*(own[k] for k in words))
        return cls(terms, own["curve"], own["weights"], own["trouble"], first)

    def over(self, share: Share) -> "Measurement":
        """The same over all processes."""
        own = {k: v for k, v in self.state().items() if not k.startswith("first_")}
        whole = Measurement.of({k: share.sum(v.clone()) for k, v in own.items()})
        whole.first = self.first
        return whole

    def add(
        self, rows: Tensor, parts: Tensor, diffusion: Tensor, t: Tensor, bad: Tensor, level: Tensor
    ) -> None:
        """One replicate of images `rows`; everything else is (…, rows·draws), an image's draws
        together.

        `level` is what each draw holds of the integral of a baseline, by bin: it lies where the
        baseline does, not where the draw fell.
        """
        n = len(rows)
        means = torch.stack([parts[0], diffusion, parts[2]]).view(3, n, -1).mean(2)
        self.terms.add(rows, torch.cat([means, means.sum(0, keepdim=True)]))
        place = torch.arange(n).repeat_interleave(len(t) // n) * BINS + bins_of(t, BINS)
        drawn = torch.zeros(n * BINS, dtype=torch.float64)
        drawn = drawn.index_add_(0, place, diffusion - level.sum()).view(n, BINS)
        self.curve[rows] += drawn + len(t) // n * level
        weight = diffusion.abs().view(n, -1)
        self.weights[rows, 0] += weight.sum(1)
        self.weights[rows, 1] += weight.square().sum(1)
        self.weights[rows, 2] = torch.maximum(self.weights[rows, 2], weight.amax(1))
        found, place = (bad * (1 + t)).view(n, -1).max(1)
        self.trouble[rows] = torch.maximum(self.trouble[rows], found)


__all__ = ["BINS", "Measurement"]

"""Uniform tokens."""

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import validated
from vdiff.discrete.process import Process, Vocabulary


class Uniform(Process):
    """A token keeps its value with probability α, else it is uniform on the vocabulary.

    Austin et al., arXiv:2107.03006 (D3PM); Lou et al., arXiv:2310.16834 (SEDD).

    >>> noise = torch.tensor([[0.05, 0.45, 0.6]])
    >>> Uniform(5).corrupt(torch.tensor([[0, 1, 2]]), noise, torch.zeros(1))
    tensor([[0, 4, 2]])
    """

    @validated
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def pi(self, logsnr: Tensor) -> Tensor:
        each = torch.full_like(logsnr, 1 / self.vocabulary, dtype=to_float64(logsnr).dtype)
        return each[..., None].expand(*logsnr.shape, self.vocabulary)

    def _draw(self, place: Tensor, level: Tensor) -> Tensor:
        below = 1 - torch.finfo(place.dtype).eps / 2  # the largest number below 1
        return (place.clamp(max=below) * self.vocabulary).long()

    def __repr__(self) -> str:
        return f"Uniform({self.vocabulary})"


__all__ = ["Uniform"]

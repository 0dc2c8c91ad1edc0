"""scikit-learn's digits: 1,797 real 8×8 scans with 17 grey levels, split by a fixed rule."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdiff.extras import extra

LEVELS = 17


@dataclass(frozen=True)
class Split:
    """Integer images (n, channels, height, width) and labels (n,) for training, selection and
    test."""

    train: Tensor
    selection: Tensor
    test: Tensor
    train_labels: Tensor
    selection_labels: Tensor
    test_labels: Tensor


def digits() -> Split:
    """1,300 images to train on, 200 to select with and 297 to test, in the order of
    `RandomState(0).permutation`. They come with scikit-learn.

    >>> digits().train.shape, digits().test.shape
    (torch.Size([1300, 1, 8, 8]), torch.Size([297, 1, 8, 8]))
    """
    with extra("train"):
        from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.images))
    images = torch.from_numpy(data.images[order]).long()[:, None]
    labels = torch.from_numpy(data.target[order]).long()
    parts = [slice(0, -497), slice(-497, -297), slice(-297, None)]
    return Split(*(images[part] for part in parts), *(labels[part] for part in parts))

"""Samples as one picture."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff.extras import extra


def cells_of(count: int, labels: Tensor | None) -> tuple[Tensor, int]:
    """The cell of each image in a grid, and the grid's columns: nearly a square, or one row for
    each class."""
    if labels is None or len(set(labels.tolist())) == 1:
        return torch.arange(count), math.ceil(math.sqrt(count))
    columns, cells = int(labels.bincount().max()), torch.zeros_like(labels)
    for row, label in enumerate(sorted(set(labels.tolist()))):
        members = (labels == label).nonzero().flatten()
        cells[members] = row * columns + torch.arange(len(members))
    return cells, columns


def picture(data: Tensor, levels: int, cells: Tensor, columns: int, smallest: int = 320) -> Any:
    """Integer images (n, channels, h, w) as one picture with thin gaps, enlarged to at least
    `smallest` pixels."""
    with extra("train"):
        from PIL import Image

    _, channels, h, w = data.shape
    rows = int(cells.max()) // columns + 1
    canvas = np.full((rows * (h + 1) + 1, columns * (w + 1) + 1, channels), 128, dtype=np.uint8)
    images = to_bytes(data, levels).permute(0, 2, 3, 1).numpy()
    for cell, image in zip(cells.tolist(), images, strict=True):
        top, left = (cell // columns) * (h + 1) + 1, (cell % columns) * (w + 1) + 1
        canvas[top : top + h, left : left + w] = image
    factor = max(1, -(-smallest // canvas.shape[1]))
    canvas = canvas.repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def to_bytes(data: Tensor, levels: int) -> Tensor:
    """Levels 0 … `levels` − 1 as bytes 0 … 255, rounded."""
    return (data.float() * (255 / (levels - 1))).round().to(torch.uint8)

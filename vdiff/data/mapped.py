"""Rows of an array in a file, which are read when they are asked for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

# how a row lies in the file: as it is used, channels last (with alpha), or without channels
Layout = Literal["as it is", "channels last", "alpha last", "no channels"]


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows of an array in a file, (n, …). Only the rows that are read take memory.

    The file is mapped for each `read` and unmapped after it: the pages of a mapping that stays
    would count as memory of this process, up to the whole file.

    Attributes:
        path, offset: the file, and where in it the values begin, in bytes.
        full: the shape of the whole array in the file.
        order: "C" or "F".
        layout: how a row lies in the file.
        rows: the numbers of the rows that these are.
    """

    path: Path
    offset: int
    full: tuple[int, ...]
    kind: np.dtype[np.generic]
    order: Literal["C", "F"]
    layout: Layout
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> "Mapped":
        return replace(self, rows=self.rows[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of these rows as `read` returns them."""
        row = self.full[1:]
        shapes = {
            "as it is": row,
            "no channels": (1, *row),
            "channels last": (*row[-1:], *row[:-1]),
            "alpha last": (row[-1] - 1, *row[:-1]),
        }
        return (len(self), *shapes[self.layout])

    def read(self) -> Tensor:
        """These rows as a tensor."""
        whole = np.memmap(self.path, self.kind, "r", self.offset, self.full, self.order)
        values = np.asarray(whole[self.rows.numpy()])  # a copy of these rows alone
        if self.layout == "no channels":
            values = values[:, None]
        elif self.layout != "as it is":
            values = np.moveaxis(values, -1, 1)
        if self.layout == "alpha last":
            values = values[:, :-1]
        kind = np.dtype(np.uint8) if self.kind.kind == "b" else self.kind.newbyteorder("=")
        return torch.from_numpy(np.ascontiguousarray(values, kind))

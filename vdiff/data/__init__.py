"""Data sets, read safely and split by rule."""

from vdiff.data.images import Images
from vdiff.data.registry import dataset

__all__ = ["Images", "dataset"]

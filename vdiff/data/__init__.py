"""Data sets, read safely and split by rule; augmentation."""

from vdiff.data.augment import augment
from vdiff.data.images import Images, Splits
from vdiff.data.registry import dataset, splits

__all__ = ["Images", "Splits", "augment", "dataset", "splits"]

"""Data sets that are read safely and split by a fixed rule; augmentation."""

from vdiff.data.augment import augment
from vdiff.data.images import Images, Splits
from vdiff.data.load import load, load_images
from vdiff.data.registry import dataset, splits
from vdiff.data.split import split

__all__ = ["Images", "Splits", "augment", "dataset", "load", "load_images", "split", "splits"]

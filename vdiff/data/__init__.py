"""Data sets that are read safely and split by a fixed rule, images and text; augmentation."""

from vdiff.data.augment import augment
from vdiff.data.images import Images, Splits
from vdiff.data.load import load, load_images
from vdiff.data.registry import dataset, splits
from vdiff.data.split import split
from vdiff.data.text import Text, TextSplits, text, text_from

__all__ = [
    "Images", "Splits", "Text", "TextSplits", "augment", "dataset", "load", "load_images", "split",
    "splits", "text", "text_from",
]  # fmt: skip

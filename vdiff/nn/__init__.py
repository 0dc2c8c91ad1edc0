"""Small networks that take (z, logsnr): enough for points and small images."""

from vdiff.nn.embedding import FourierFeatures
from vdiff.nn.levels import LevelHead
from vdiff.nn.mlp import MLP
from vdiff.nn.unet import UNet

__all__ = ["MLP", "FourierFeatures", "LevelHead", "UNet"]

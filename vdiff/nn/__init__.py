"""Networks of (z, logsnr): small ones for points, images, sequences and tokens, and those of
published CIFAR-10 results. With `field=True` they take a noise level for each dimension."""

from vdiff.nn.embedding import FourierFeatures
from vdiff.nn.field import split_field, with_field
from vdiff.nn.levels import LevelHead
from vdiff.nn.mlp import MLP
from vdiff.nn.published import DDPMUNet, IDDPMUNet, VDMUNet
from vdiff.nn.transformer import Transformer
from vdiff.nn.unet import UNet, UNet1d

__all__ = [
    "MLP", "DDPMUNet", "FourierFeatures", "IDDPMUNet", "LevelHead", "Transformer", "UNet",
    "UNet1d", "VDMUNet", "split_field", "with_field",
]  # fmt: skip

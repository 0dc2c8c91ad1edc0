"""A lossless codec of images and tokens, whose files are as long as the bound of a chain says."""

from vdiff.codec._compressed import Compressed
from vdiff.codec.compression import compress
from vdiff.codec.decompression import decompress, decompress_batches

__all__ = ["Compressed", "compress", "decompress", "decompress_batches"]

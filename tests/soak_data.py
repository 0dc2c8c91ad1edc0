"""`python tests/soak_data.py 10000`: so many damaged data files, each of which loads right or is
refused in words."""

import gzip
import resource
import sys
from collections import Counter
from collections.abc import Callable

import torch
from cifar_files import damaged, pictures, small, write_binary
from watch import nothing_happens

from vdiff.data.cifar10 import decode_binary, unpack
from vdiff.data.images import Images


def outcomes(count: int, seed: int = 0) -> Counter[str]:
    """Damage `count` files of three kinds and read each without its checksum's help.

    Raises where one does anything but load images or be refused by a ValueError in the library's
    words, where code runs or a file is written, or where memory grows."""
    form, packed, _ = small()
    third = -(-count // 3)
    data, labels = pictures(3)
    kinds: list[tuple[str, Callable[[bytes], object], bytes]] = [
        ("binary", decode_binary, write_binary(data, labels)),
        ("archive", lambda raw: list(unpack(raw, form)), packed),
        ("tar", lambda raw: list(unpack(gzip.compress(raw, 1), form)), gzip.decompress(packed)),
    ]
    seen: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, read, raw in kinds:
        right = read(raw)
        for bad in damaged(raw, third, seed):
            try:
                with nothing_happens():
                    got = read(bad)
            except ValueError as error:
                if "argument '" not in str(error) or "; got " not in str(error):
                    raise AssertionError(f"{kind}: refused in other words: {error}") from error
                seen[f"{kind} refused"] += 1
            else:
                if isinstance(got, Images):
                    fits = (
                        got.pixels.shape == (len(got.labels), 3, 32, 32)
                        and got.pixels.dtype == torch.uint8
                    )
                    if not fits or not ((got.labels >= 0) & (got.labels < 10)).all():
                        raise AssertionError(f"{kind}: loaded {got.pixels.shape}, {got.labels}")
                elif got != right:
                    raise AssertionError(f"{kind}: a damaged batch passed its checksum")
                seen[f"{kind} loaded"] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > 200_000:  # kilobytes
        raise AssertionError(f"memory grew by {grown:,} kB")
    return seen


if __name__ == "__main__":
    print(dict(outcomes(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)))

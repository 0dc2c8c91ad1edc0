"""Is a file as long as the bound says? Chains of 10 to 1,000 steps on digits and on patches.

    python benchmarks/codec.py  # writes codec_digits.txt, codec_patches.txt and figures of both
                                # into benchmarks/results

Digits: the test set, 297 images, with the weights in examples/weights/digits. Patches: 8×8 squares
of colour from the photographs china.jpg and flower.jpg, with the exact denoiser of the Gaussian
that fits the training squares: a simple model of real pixels.

By T, in bits/dim:

    bound      of the same images, all T terms of each with noise of its own
    code       what the images added to the stack
    path       the log-ratio of the latents that were coded, as densities: its mean is the bound
    code−path  what the grids, the coder and the window cost; below 0 where p(z_s | z_t) is more
               than eight standard deviations off, because the code takes fewer bits there
    ± 3 SE     three standard errors of code − bound, image by image: of both paths

then the bytes of the file, of it the start and the container, and the seconds to write it and to
read it. Every file is read back and compared.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff import Objective, elbo, plots
from vdiff.codec import compress, decompress
from vdiff.codec.baselines import baselines
from vdiff.data.digits import digits
from vdiff.decoder import Categorical
from vdiff.likelihood._models import evaluating
from vdiff.oracle import Gaussian
from vdiff.schedule import Linear
from vdiff.terminal import replace_unencodable, say

ROOT = Path(__file__).parents[1]
STEPS = (10, 25, 50, 100, 250, 500, 1000)
SIDE = 8
HEAD = (
    f"{'T':>5}{'bound':>9}{'code':>9}{'path':>9}{'code−path':>11}{'code−bound':>12}{'± 3 SE':>8}"
    f"{'file':>9}{'start':>7}{'rest':>6}{'write':>8}{'read':>7}"
)


def squares(count: int, first: int, last: int, seed: int) -> Tensor:
    """Squares of pixels from columns first … last − 1 of two photographs, (n, 3, 8, 8)."""
    from sklearn.datasets import load_sample_image

    rng, found = np.random.default_rng(seed), []
    for name in ("china.jpg", "flower.jpg"):
        picture = load_sample_image(name).transpose(2, 0, 1)
        for _ in range(count // 2):
            row, column = rng.integers(picture.shape[1] - SIDE), rng.integers(first, last - SIDE)
            found.append(picture[:, row : row + SIDE, column : column + SIDE])
    return torch.from_numpy(np.stack(found))


def subjects(images: int) -> dict[str, tuple[Any, Tensor, Tensor, dict[str, Any]]]:
    """By name: a model, its images, the same as pictures, and schedule and decoder."""
    trained = Objective.from_pretrained(ROOT / "examples" / "weights" / "digits")
    test, decoder = digits().test[:images], Categorical(256)
    train, held_out = squares(20_000, 0, 500, 0), squares(images, 500, 640, 1)
    fitted = Gaussian.fit(decoder.encode(train.flatten(1)), shrinkage=1e-5)
    of_digits = {"schedule": trained.schedule, "decoder": trained.decoder}
    of_patches = {"schedule": Linear(13.3, -7.0), "decoder": decoder}
    return {
        "digits": (trained.model, test, test, of_digits),
        "patches": (fitted, held_out.flatten(1), held_out, of_patches),
    }


def row(model: Any, data: Tensor, steps: int, chain: dict[str, Any]) -> dict[str, float]:
    """One file: written, read, and compared with the bound."""
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder) / "images.vdiff", time.perf_counter()
        written = compress(model, data, path, steps=steps, **chain)
        middle = time.perf_counter()
        back = decompress(model, path, **chain)
        ended = time.perf_counter()
    assert torch.equal(back, data)
    generator = torch.Generator().manual_seed(steps)
    with evaluating(model):
        given = {"steps": steps, "draws": steps, "generator": generator}
        bound = elbo(model, data, **given, **chain).bits_per_dim.double()
    own = written.log_ratio / (written.dims * math.log(2))
    return {
        "T": steps, "bound": bound.mean().item(), "code": written.bits_per_dim,
        "path": own.mean().item(), "error": (own - bound).std().item() / math.sqrt(len(data)),
        "file": written.bytes, "start": written.start / 8, "container": written.container,
        "write": middle - began, "read": ended - middle,
    }  # fmt: skip


def line(r: dict[str, float]) -> str:
    return (
        f"{r['T']:>5}{r['bound']:>9.4f}{r['code']:>9.4f}{r['path']:>9.4f}"
        f"{r['code'] - r['path']:>11.4f}{r['code'] - r['bound']:>12.4f}{3 * r['error']:>8.4f}"
        f"{r['file']:>9,.0f}{r['start']:>7,.0f}{r['container']:>6.0f}"
        f"{r['write']:>8.1f}{r['read']:>7.1f}"
    )


def draw(name: str, rows: list[dict[str, float]], path: Path) -> None:
    """Bound and code by T."""
    _, (panel,) = plots.figure()
    steps = [r["T"] for r in rows]
    panel.plot(steps, [r["bound"] for r in rows], **plots.line_style(0), label="bound")
    code = [r["code"] for r in rows]
    panel.plot(steps, code, color=plots.COLORS[1], marker="o", linestyle="", label="file")
    plots.finish(panel, name, xscale="log", xlabel="T", ylabel="bits/dim")
    plots.save(path, panel)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", nargs="+", default=["digits", "patches"], help="which images")
    parser.add_argument("--images", type=int, default=297, help="at most so many of each kind")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="T")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    every = subjects(options.images)
    for name in options.of:
        model, data, pictures, chain = every[name]
        out, said, rows = options.out / f"codec_{name}.txt", list[str](), []
        said.append(f"python {' '.join(sys.argv)}")
        said.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        said.append(f"{name}: {len(data)} images of {data[0].numel()} dimensions\n{HEAD}")
        say(*said)
        for steps in options.steps:
            rows.append(row(model, data, steps, chain))
            said.append(line(rows[-1]))
            say(said[-1])
            out.write_text("\n".join(said) + "\n", encoding="utf-8")
        others, best = baselines(pictures, chain["decoder"].levels), min(r["file"] for r in rows)
        sizes = (f"{other} {size:,} ({size / best:.2f}×)" for other, size in others.items())
        said.append(f"bytes of the same images, and of the smallest file: {', '.join(sizes)}")
        say(said[-1])
        out.write_text("\n".join(said) + "\n", encoding="utf-8")
        draw(name, rows, out.with_suffix(".png"))


if __name__ == "__main__":
    replace_unencodable()
    main()

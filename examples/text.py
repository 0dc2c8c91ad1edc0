"""A masked diffusion language model of the English text that ships with Python, in bits per byte.

Two Transformers of the same size are trained by the same loop on windows of the same tokens, for
the same time: one on the bound of masked diffusion, which predicts any token from those that are
not masked (few are at first), and an autoregressive one, which predicts each token from those
before it. Tokens are bytes and frequent pairs (`--pairs`), learned on the training text. Of each
network the weights are kept that have the fewest bits on the selection, at the temperature that
has the fewest there.

Printed are bits per byte on the test's documents: the bits of all windows over the bytes counted
in them, with the Monte Carlo error and the error over windows; and the masked model's bits less
those of the row, paired by window. "Left to right" is the same masked network, asked for one token
after the other. "With counts" mixes its probabilities with those of an n-gram of the same tokens,
by one share for all tokens. Networks and n-grams see one window and nothing else. The n-grams
are interpolated Kneser-Ney over tokens and over bytes, their orders and the share chosen on the
selection; that over bytes is printed for whole documents too. gzip and xz compress the whole test
as one file: alone, and what it adds to the file of the training text (of which gzip sees the last
32 KB).

    python examples/text.py --out runs/text --bf16     # ten minutes on two idle cores
    python examples/text.py --minutes 30               # of training for each network
    python examples/text.py --steps 5000               # the same weights each time
    python examples/text.py --quick                    # seconds: too few steps

samples.txt has text that both networks wrote. What was measured, and what it says:
benchmarks/results/text.txt.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from byte_pairs import BytePairs
from text_baselines import COMPRESSORS, NGram, best_ngram, bits_by_window, compressed
from text_mixed import best_share, bits_of, counted, in_order
from text_training import SCHEDULE, Windows, autoregressive_loss, fit, masked_loss, written
from torch import Tensor

import vdiff
from vdiff.cli.parser import Parser, positive
from vdiff.data import text
from vdiff.discrete import AnyOrder, TokenDenoiser
from vdiff.disk import write_text
from vdiff.nn import Transformer
from vdiff.terminal import replace_unencodable, say
from vdiff.times import generator_of

MASKED = "masked, left to right"
SAMPLES = 4  # windows that each network writes
QUICK = 64  # windows of the selection and of the test with --quick


@dataclass(frozen=True)
class Row:
    """Bits per byte, with the Monte Carlo error and that over windows; the same of the masked
    model's difference to it."""

    bits: float
    monte_carlo: float | None = None
    windows: float | None = None
    difference: float | None = None
    difference_windows: float | None = None

    @classmethod
    def of(cls, bits: Tensor, counts: Tensor, masked: Tensor) -> "Row":
        """From the bits and bytes of each window, and the masked model's bits."""
        values = (*per_byte(bits, counts), *per_byte(masked - bits, counts))
        return cls(values[0], 0.0, *values[1:])


def per_byte(bits: Tensor, counts: Tensor) -> tuple[float, float]:
    """All bits over all bytes, with the standard error of the ratio over windows."""
    ratio = (bits.sum() / counts.sum()).item()
    error = (bits - ratio * counts).std() * math.sqrt(len(bits)) / counts.sum()
    return ratio, error.item()


def trained(
    options: argparse.Namespace, pairs: BytePairs, parts: list[Windows]
) -> dict[str, Transformer]:
    """Both networks."""
    train, selection, _ = parts
    tokens = train.tokens[~train.absent]
    networks = {}
    for name, loss in (("masked", masked_loss), ("autoregressive", autoregressive_loss)):
        torch.manual_seed(options.seed)
        network = Transformer(
            pairs.vocabulary, length=options.length, width=options.width, depth=options.depth,
            heads=options.heads, dropout=options.dropout, neighbours=options.neighbours,
            causal=name == "autoregressive",
        )  # fmt: skip
        fit(name, network, loss(network), tokens, selection, options)
        networks[name] = network
    return networks


def in_order_bits(networks: dict[str, Transformer], parts: list[Windows]) -> dict[str, Tensor]:
    """Bits of each window of the test from left to right: of networks, of an n-gram of the same
    tokens, and of both together, by the share that has the fewest bits on the selection."""
    train, selection, test = parts
    vocabulary = networks["masked"].vocabulary
    ngram = best_ngram(np.concatenate(train.symbols), selection.symbols, vocabulary)
    q_selection, q = counted(ngram, selection), counted(ngram, test)
    bits = {f"{ngram.order}-gram of tokens": bits_of(q)}
    for name, network in networks.items():
        p = in_order(network, test)
        share = best_share(in_order(network, selection), q_selection)
        row = name if network.causal else MASKED
        say(f"{row}, with counts: {share:.2f} of the {ngram.order}-gram of tokens")
        bits |= {row: bits_of(p), f"{row}, with counts": bits_of(torch.lerp(p, q, share))}
    return bits


def measured(
    networks: dict[str, Transformer], parts: list[Windows], options: argparse.Namespace
) -> dict[str, Row]:
    """Bits per byte of both networks and of all yardsticks on the test."""
    train, selection, test = parts
    model = TokenDenoiser(networks["masked"], AnyOrder(networks["masked"].vocabulary))
    report = vdiff.evaluate(
        model, test.tokens, schedule=SCHEDULE, absent=test.absent, bytes=test.bytes,
        draws=options.draws, seed=options.seed,
    )  # fmt: skip
    say(str(report))
    assert report.by_image is not None
    masked, found = report.by_image * (~test.absent).sum(1), report.bits_per_byte
    before, whole = b"".join(train.content), b"".join(test.content)
    ngram = best_ngram(before, selection.content)
    bits = in_order_bits(networks, parts) | {
        f"{ngram.order}-gram of bytes": torch.from_numpy(bits_by_window(ngram, test.content)),
        "unigram": torch.from_numpy(bits_by_window(NGram(before, 1), test.content)),
        "uniform": 8.0 * test.bytes,
    }
    less = bits[f"{MASKED}, with counts"] - bits[f"{ngram.order}-gram of bytes"]
    value, error = per_byte(less, test.bytes)
    say(f"{MASKED}, with counts, less the {ngram.order}-gram: {value:.4f} ± {error:.4f}")
    rows = {"masked diffusion": Row(found.value, found.monte_carlo, found.images)}
    rows |= {name: Row.of(each, test.bytes, masked) for name, each in bits.items()}
    name = f"{ngram.order}-gram, not in windows"
    rows[name] = Row(bits_by_window(ngram, [whole]).sum() / len(whole))
    for name in COMPRESSORS:
        for how, others in (("alone", b""), ("after the training text", before)):
            rows[f"{name}, {how}"] = Row(compressed(name, whole, others) / len(whole))
    return rows


def parsed() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="folder")
    numbers = {
        "batch": (32, "windows in a step"),
        "pairs": (1536, "tokens of several bytes"),
        "length": (64, "tokens in a window"),
        "width": (128, "of the networks"),
        "depth": (2, "of the networks"),
        "heads": (4, "of the networks"),
        "neighbours": (4, "tokens on each side in a convolution before the blocks"),
        "draws": (16, "masks of each test window and replicate"),
    }
    for name, (number, what) in numbers.items():
        what = f"{what} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=positive, default=number, help=what)
    parser.add_argument("--minutes", type=float, default=3.25, help="of training of each network")
    parser.add_argument("--steps", type=positive, help="of training of each, instead of minutes")
    parser.add_argument("--lr", type=float, default=1.4e-2, help="(default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, help="(default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="for CPUs that compute in bfloat16")
    parser.add_argument("--threads", type=positive, help="of torch")
    parser.add_argument("--seed", type=int, default=0, help="of weights, windows and masks")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few steps")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.pairs, options.length, options.draws = 10, 16, 32, 2
        options.width, options.depth, options.heads, options.batch = 16, 1, 2, 4
    return options


def table(rows: dict[str, Row]) -> str:
    lines = [f"{'':<40}{'bits/byte':>10}{'MC':>8}{'windows':>9}{'masked less':>13}{'windows':>9}"]
    for name, row in rows.items():
        values = zip(asdict(row).values(), (10, 8, 9, 13, 9), strict=True)
        cells = (f"{'' if v is None else f'{v:.4f}':>{width}}" for v, width in values)
        lines.append(f"{name:<40}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    options = parsed()
    if options.threads:
        torch.set_num_threads(options.threads)
    documents = text()
    pairs = BytePairs.learned(documents.train.documents.values(), options.pairs)
    parts = [Windows.of(part, pairs, options.length) for part in documents]
    if options.quick:
        parts = [parts[0], *(part[:QUICK] for part in parts[1:])]
    say(documents.test.record)
    networks = trained(options, pairs, parts)
    rows = measured(networks, parts, options)
    say(table(rows))
    generator = generator_of(options.seed, 0, "samples")
    made = {
        name: [
            pairs.decode(row.tolist()).decode(errors="replace")
            for row in written(network, SAMPLES, generator)
        ]
        for name, network in networks.items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    shown = "\n".join(f"--- {name}\n{text}" for name, texts in made.items() for text in texts)
    say(shown)
    write_text(options.out / "samples.txt", shown + "\n")
    write_text(options.out / "table.txt", table(rows) + "\n")
    plain = {name: asdict(row) for name, row in rows.items()}
    write_text(options.out / "results.json", json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    replace_unencodable()
    main()

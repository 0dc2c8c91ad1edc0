"""Is a file of texts as long as the bound says? In any order, and with chains of T steps.

    python benchmarks/codec_tokens.py  # writes benchmarks/results/codec_tokens.txt

The texts are of a Markov chain over four values that keeps its value with probability 0.85 and
else takes another one at random. Its entropy and its conditionals are known: the model is exact.

By T, in bits/token:

    bound      of the same texts, as many draws of each as there are evaluations, noise of its own
    code       what the texts added to the stack
    own        −Σ log p of what was coded: its mean is the bound
    code−own   what the coder costs
    code−bound and three standard errors of it, text by text

then the seconds to write the file and to read it. Every file is read back and compared. In any
order the code's expectation is the entropy; with T steps it is longer, because tokens of one step
are coded independently.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from vdiff import elbo
from vdiff.codec import compress, decompress
from vdiff.discrete import AnyOrder, Masked, TokenDenoiser
from vdiff.schedule import LogLinear
from vdiff.terminal import replace_unencodable, say

OUT = Path(__file__).parent / "results" / "codec_tokens.txt"
VALUES, KEEP, LENGTH = 4, 0.85, 32
HEAD = (
    f"{'T':>9}{'bound':>9}{'code':>9}{'own':>9}{'code−own':>11}{'code−bound':>12}{'± 3 SE':>8}"
    f"{'write':>8}{'read':>7}"
)


class Markov:
    """log p(x_i | z) of the chain, where `VALUES` is the mask: forward and backward sums."""

    def __init__(self) -> None:
        other = (1 - KEEP) / (VALUES - 1)
        self.moves = torch.full((VALUES, VALUES), other, dtype=torch.float64)
        self.moves.fill_diagonal_(KEEP)

    def __call__(self, z: Tensor) -> Tensor:
        known = torch.eye(VALUES + 1, VALUES, dtype=torch.float64)
        known[VALUES] = 1.0  # a mask says nothing
        likelihood = known[z]
        before, after = torch.ones_like(likelihood), torch.ones_like(likelihood)
        for i in range(1, z.shape[1]):
            into = (before[:, i - 1] * likelihood[:, i - 1]) @ self.moves
            before[:, i] = into / into.sum(-1, keepdim=True)
            back = (after[:, -i] * likelihood[:, -i]) @ self.moves
            after[:, -i - 1] = back / back.sum(-1, keepdim=True)
        return (before * after).log()

    def draw(self, count: int, seed: int) -> Tensor:
        """Texts, (count, LENGTH)."""
        generator = torch.Generator().manual_seed(seed)
        texts = [torch.randint(VALUES, (count,), generator=generator)]
        while len(texts) < LENGTH:
            moves = self.moves[texts[-1]]
            texts.append(torch.multinomial(moves, 1, generator=generator)[:, 0])
        return torch.stack(texts, 1)

    def bits(self, x: Tensor) -> Tensor:
        """−log₂ p(x) by token, (count,)."""
        of_moves = self.moves[x[:, :-1], x[:, 1:]].log2().sum(1)
        return (math.log2(VALUES) - of_moves) / LENGTH

    @property
    def entropy(self) -> float:
        """Bits/token."""
        of_move = -(self.moves[0] * self.moves[0].log2()).sum().item()
        return (math.log2(VALUES) + (LENGTH - 1) * of_move) / LENGTH


def line(chain: Markov, texts: Tensor, steps: int | None) -> str:
    """One file: written, read, and compared with the bound."""
    model = TokenDenoiser(chain, Masked(VALUES) if steps else AnyOrder(VALUES))
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder) / "texts.vdiff", time.perf_counter()
        written = compress(model, texts, path, steps=steps)
        middle = time.perf_counter()
        back = decompress(model, path)
        ended = time.perf_counter()
    assert torch.equal(back, texts)
    given = {"steps": steps, "draws": steps or LENGTH, "schedule": LogLinear()}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        bound = elbo(model, texts, generator=generator, **given).bits_per_token.double()
    own, code = written.log_ratio / (LENGTH * math.log(2)), written.bits_per_token
    mean, error = bound.mean().item(), (own - bound).std().item() / math.sqrt(len(texts))
    return (
        f"{steps or 'any order':>9}{mean:>9.4f}{code:>9.4f}{own.mean().item():>9.4f}"
        f"{code - own.mean().item():>11.6f}{code - mean:>12.4f}{3 * error:>8.4f}"
        f"{middle - began:>8.1f}{ended - middle:>7.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32, 128, 512], help="T")
    options = parser.parse_args()
    chain = Markov()
    texts = chain.draw(options.texts, seed=0)
    exact = f"entropy {chain.entropy:.4f}, −log p of these texts {chain.bits(texts).mean():.4f}"
    said = [
        f"python {' '.join(sys.argv)}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads\n",
        f"{len(texts)} texts of {LENGTH} tokens, bits/token: {exact}\n{HEAD}",
    ]
    say(*said)
    for steps in (None, *options.steps):
        said.append(line(chain, texts, steps))
        say(said[-1])
    OUT.write_text("\n".join(said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    replace_unencodable()
    main()

"""What a loss over tokens costs: a training step with vdiff over the same Transformer with plain
cross-entropy on all tokens, in one interleaved run.

The network is an `nn.TransformerEncoder`, by default of width 256 and depth 4, on 16 sequences of
256 tokens. A step is forward and backward, without an optimizer; in the bare step the tokens that
the network sees are fixed. Time is the median over adjacent pairs of (step / bare step), order
alternating, of the processor's time where there is one thread; operations are those beyond the
bare step's own; memory is the profiler's peak of live allocations, as a ratio. A quarter of an
hour on an idle core:

    python benchmarks/token_loss.py --threads 1
    python benchmarks/token_loss.py --vocabulary 8192 --width 64 --depth 1 --length 64
"""

import argparse

import torch
import torch.nn.functional as F
from loss_overhead import Step, operations, peak_memory, ratio, run
from torch import Tensor, nn

import vdiff
from vdiff.discrete import AnyOrder, Hybrid, Masked, Process, TokenDenoiser, Uniform
from vdiff.schedule import LogLinear, Spline
from vdiff.terminal import replace_unencodable, say

PROCESSES = {"masks": Masked, "any order": AnyOrder, "uniform": Uniform, "gidd": Hybrid.gidd}
PROCESSES["masks, spline"] = Masked
HEAD = f"{'loss':<28}{'time':>7}{'quartiles':>15}{'operations':>12}{'memory':>8}"


class Network(nn.Module):
    """Tokens to logits."""

    def __init__(self, states: int, vocabulary: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(states, width), nn.Linear(width, vocabulary)
        self.place = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(z) + self.place))
        return logits


def steps(network: nn.Module, process: Process, x: Tensor, learned: bool) -> tuple[Step, Step]:
    """The bare step, and the step of a loss."""
    model, z = TokenDenoiser(network, process), x.roll(1)
    schedule = Spline(12.0, -12.0, learn_ends=False) if learned else LogLinear(12.0, -12.0)

    def bare() -> Tensor:
        return F.cross_entropy(network(z).flatten(0, 1), x.flatten())

    def step() -> Tensor:
        loss = vdiff.weighted_elbo(model, x, schedule=schedule).mean()
        schedule.update()
        return loss

    return bare, step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"vocabulary": 256, "batch": 16, "length": 256, "width": 256, "depth": 4}
    for name, size in {**sizes, "pairs": 30, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    v = options.vocabulary
    say(f"torch {torch.__version__}, {options.threads} threads, {vars(options)}\n{HEAD}")
    for name, make in PROCESSES.items():
        process: Process = make(v)
        shape = options.length, options.width, options.depth
        network = Network(process.states, v, *shape)
        x = torch.randint(0, v, (options.batch, options.length))
        bare, step = steps(network, process, x, "spline" in name)
        for _ in range(2):
            run(network, step)
        middle, low, high = ratio(network, bare, step, options.pairs)
        more = operations(network, step)[0] - operations(network, bare)[0]
        memory = peak_memory(network, step) / peak_memory(network, bare)
        say(f"{name:<28}{middle:>7.3f}{low:>8.3f}–{high:<6.3f}{more:>12}{memory:>8.2f}")


if __name__ == "__main__":
    replace_unencodable()
    main()

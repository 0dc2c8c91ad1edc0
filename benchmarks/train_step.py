"""What training costs beyond its network: a recipe's own training loop over bare steps of the same
network, interleaved.

A bare step is forward, a plain MSE at fixed input, time and target, backward and the optimizer, in
the same precision and with the same compiled graph. The loop has all the rest: images by number,
times, noise, encoding, the loss, checks, the averages, the log. Rounds of a few steps of each take
turns; printed are the median ratio with its quartiles, images per second, the peak of memory, what
parts of the rest cost alone, and, in multiply-adds of the network (three times its forward pass),
which share of the device's own measured rate for matrices is used. On a CPU, seconds are those of
the processor, which others on the machine disturb less.

    python benchmarks/train_step.py                       # on a GPU: VDM, bf16, compiled
    python benchmarks/train_step.py --batch 2 --rounds 9  # on a CPU, float32
    python benchmarks/train_step.py --recipe small
"""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import matrix_rate, peak, seconds, title
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vdiff.objective import Objective
from vdiff.training import Config
from vdiff.training.failures import autocast
from vdiff.training.logger import Logger
from vdiff.training.trainer import Trainer

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import recipes

from vdiff.cli.parser import Parser
from vdiff.terminal import replace_unencodable, say

Run = Callable[[], None]


def eager() -> AbstractContextManager[Any]:
    """Without compiling again, for what is called once."""
    return torch.compiler.set_stance("force_eager")


class _Known(nn.Module):
    """A network that costs nothing."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out.clone())

    def forward(self, z: Tensor, level: Tensor, **condition: Tensor) -> Tensor:
        return self.out


class Steps:
    """The same network in its training loop and in bare steps."""

    def __init__(self, config: Config, device: torch.device) -> None:
        torch.manual_seed(0)
        self.objective: Objective = config.objective().to(device)
        data = torch.randint(0, 256, (max(1024, config.batch), *config.shape), dtype=torch.uint8)
        self.trainer = Trainer(self.objective, data, config)
        self.config, self.device, self.entries = config, device, 0
        self.network: nn.Module = self.objective.model.network  # type: ignore[union-attr, assignment]
        self.given, self.condition = self._inputs()
        with torch.no_grad(), eager():
            self.target = torch.randn_like(self.network(*self.given, **self.condition))

    def _inputs(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What the loop gives its network. Of inputs that need gradients elsewhere, as with
        learned ends they do, it would be compiled a second time."""
        calls: list[Any] = []
        hook = self.network.register_forward_pre_hook(
            lambda _, *call: calls.append(call), with_kwargs=True
        )
        with eager():
            self.trainer.losses(0, 0)
        hook.remove()
        [(given, condition)] = calls
        return [v.detach().requires_grad_(v.requires_grad) for v in given], condition

    def loop(self, steps: int) -> None:
        """So many steps of training, the last of them logged."""
        self.trainer.config = replace(self.config, steps=self.trainer.state.step + steps)
        with Logger(steps, "bits/dim", quiet=True, listeners=[self._listen]) as logger:
            self.trainer.fit(logger, None, sys.maxsize, sys.maxsize, int)

    def bare(self, steps: int) -> None:
        """So many bare steps."""
        optimizer = self.trainer.state.optimizer
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            for _ in range(self.config.accumulate):
                given = [v.detach().requires_grad_(v.requires_grad) for v in self.given]
                with autocast(self.config, self.device):
                    out = self.network(*given, **self.condition)
                F.mse_loss(out.float(), self.target).backward()
            optimizer.step()

    def parts(self) -> dict[str, Run]:
        """Pieces of what the loop has beyond the network, each by itself."""
        trainer, batch = self.trainer, self.trainer.batches(0, 0)
        network, free = self.network, _Known(self.target)

        def loss() -> None:
            self.objective.model.network = free  # type: ignore[union-attr]
            try:
                self.objective(
                    batch.data, u=batch.u, eps=batch.eps, condition=batch.condition
                ).mean().backward()
            finally:
                self.objective.model.network = network  # type: ignore[union-attr]

        return {
            "images, times and noise": lambda: (
                [trainer.batches(trainer.state.step, i) for i in range(self.config.accumulate)]
                and None
            ),
            "loss, forward and back": loss,
            "averages": lambda: trainer.state.ema.update(trainer.state.step),
        }

    def _listen(self, entry: dict[str, object]) -> None:
        self.entries += 1


def multiply_adds(network: nn.Module, *given: Tensor, **condition: Tensor) -> float:
    """Of one image's forward pass."""
    one = {name: value[:1] for name, value in condition.items()}
    with torch.no_grad(), eager(), FlopCounterMode(display=False) as count:
        network(*(v.detach()[:1] for v in given), **one)
    return count.get_total_flops() / 2


def report(
    name: str,
    config: Config,
    device: torch.device,
    *,
    rounds: int,
    steps: int,
    stop: float = float("inf"),
) -> None:
    """Measure and print. Rounds end early after `stop` (of `time.monotonic`), but for two."""
    both = Steps(config, device)
    micro = len(both.given[0])
    how = (
        f"autocast {config.autocast}, compile {config.compile}, channels_last "
        f"{config.channels_last}"
    )
    say(
        f"torch {torch.__version__}, {title(device)}; {name}, batch {config.batch} in "
        f"micro-batches of {micro}; {how}"
    )
    start = time.monotonic()
    for run in (both.bare, both.loop):  # compile, choose kernels, fill caches
        run(2)
    say(f"the first four steps: {time.monotonic() - start:.1f} s")
    bare, loop = [], []
    for i in range(rounds):
        if i >= 2 and time.monotonic() > stop:
            break
        for run, times in ((both.bare, bare), (both.loop, loop))[:: 1 if i % 2 else -1]:
            times.append(seconds(lambda run=run: run(steps), device) / steps)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(bare, loop, strict=True)], n=4)
    step = statistics.median(loop)
    say(
        f"training over bare step: {middle:.3f} (quartiles {low:.3f} to {high:.3f}, "
        f"{len(loop)} rounds of {steps} steps)"
    )
    say(
        f"a training step: {step:.4g} s, {config.batch / step:.4g} images/s; bare "
        f"{statistics.median(bare):.4g} s"
    )
    for part, alone in both.parts().items():
        alone()
        share = statistics.median(
            seconds(alone, device) for _ in range(rounds)
        ) / statistics.median(bare)
        say(f"  {part:<26}{100 * share:6.2f} % of a bare step, by itself")
    most = {}
    for run in (both.bare, both.loop):
        both.trainer.state.optimizer.zero_grad(
            set_to_none=True
        )  # gradients are part of a step's memory
        most[run.__name__] = peak(lambda run=run: run(1), device) / 2**20
    say(f"peak memory of a step: bare {most['bare']:,.0f} MiB, training {most['loop']:,.0f} MiB")
    rate = matrix_rate(device, torch.bfloat16 if config.autocast else torch.float32)
    forward = multiply_adds(both.network, *both.given, **both.condition)
    used = 3 * forward * config.batch / step
    kind = "bf16" if config.autocast else "float32"
    share = (
        f"{100 * used / rate:.1f} % of this device's {kind} matrices at {rate / 1e12:.3g} TMAC/s"
    )
    say(f"{forward / 1e9:.4g} GMAC forward for an image; {used / 1e12:.3g} TMAC/s, {share}")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--recipe",
        default="vdm",
        choices=recipes.NAMES,
        metavar="NAME",
        help="(default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, help="images in a step (default: the recipe's)")
    text = "of each of the two (default: %(default)s)"
    parser.add_argument("--rounds", type=int, default=15, help=text)
    text = "in a round (default: 10 on a GPU, 1 on a CPU)"
    parser.add_argument("--steps", type=int, default=None, help=text)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="NAME=VALUE",
        help="settings of the recipe",
    )
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, steps = torch.device("cuda" if gpu else "cpu"), options.steps or (10 if gpu else 1)
    config = recipes.load(options.recipe)
    if not gpu:
        config = replace(config, autocast=False, compile=False, channels_last=False)
    config = replace(config, batch=options.batch or config.batch).override(options.set)
    report(options.recipe, config, device, rounds=options.rounds, steps=steps)


if __name__ == "__main__":
    replace_unencodable()
    main()

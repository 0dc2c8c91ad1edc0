"""What a loss costs: a training step with vdiff over the same network with a plain MSE, in one
interleaved run.

Two networks: an MLP of 37,762 parameters on 2-D points at batch 512, and a U-Net of about 0.4
million parameters on 3x32x32 images at batch 16. A step is forward and backward, without an
optimizer; in the bare step the network's input, its time and the target are fixed. Time is the
median over adjacent pairs of (step / bare step), order alternating; operations are those that
reach the dispatcher beyond the bare step's own; memory is the profiler's peak of live allocations,
as a ratio. Two minutes on two idle cores:

    python benchmarks/loss_overhead.py

With --peers, the published losses of other libraries too, on the MLP (see peers.py).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import peers
import torch
import torch.nn.functional as F
from measure import peak
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vdiff
from vdiff.nn import MLP, UNet, with_field
from vdiff.terminal import replace_unencodable, say

Step = Callable[[], Tensor]
HEAD = f"{'loss':<40}{'time':>7}{'quartiles':>15}{'operations':>12}{'views':>7}{'memory':>8}"
VIEWS = (
    "view",
    "expand",
    "t",
    "transpose",
    "detach",
    "alias",
    "as_strided",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "split",
    "unbind",
    "permute",
)


class Count(TorchDispatchMode):
    """Counts tensor operations; views, which move no data, are counted apart."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.views = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name.split("::")[1]
        if name.lstrip("_").split(".")[0] in VIEWS or name in ("_unsafe_view", "_reshape_alias"):
            self.views += 1
        else:
            self.operations += 1
        return func(*args, **(kwargs or {}))


def bare_step(network: nn.Module, x: Tensor) -> Step:
    """The network with a plain MSE; of one with a variance head, on the first half of its
    channels."""
    logsnr, target = torch.linspace(-5, 10, len(x)), torch.randn_like(x)
    return lambda: F.mse_loss(network(x, logsnr)[:, : x.shape[1]], target)


def losses(network: nn.Module, x: Tensor, data: Tensor) -> dict[str, Step]:
    """The steps to compare with the bare one, by name."""
    schedule, cosine = vdiff.schedule.Linear(), vdiff.schedule.Cosine()

    def plain() -> Tensor:  # what a hand-written loop does
        t = torch.rand(len(x))
        eps = torch.randn_like(x)
        angle = 0.5 * torch.pi * t.view(-1, *(1 for _ in x.shape[1:]))
        z = torch.cos(angle) * x + torch.sin(angle) * eps
        return F.mse_loss(network(z, t), eps)

    def weighted(
        parameterization: vdiff.parameterization.Parameterization,
        schedule: vdiff.schedule.Schedule,
        weighting: vdiff.weighting.Weighting,
    ) -> Step:
        model = vdiff.Denoiser(network, parameterization)
        return lambda: vdiff.weighted_elbo(model, x, schedule=schedule, weighting=weighting).mean()

    decoder, model = (
        vdiff.decoder.Categorical(256),
        vdiff.Denoiser(network, vdiff.parameterization.Eps()),
    )

    def learned(schedule: vdiff.schedule.Schedule, whole: bool = False) -> Step:
        """The diffusion term, or the whole bound with its ends, under a schedule that learns from
        it, its statistics taken in."""

        def step() -> Tensor:
            if whole:
                bound = vdiff.elbo(model, data, schedule=schedule, decoder=decoder)
                loss = bound.total.mean()
            else:
                loss = vdiff.weighted_elbo(model, x, schedule=schedule).mean()
            schedule.update()
            return loss

        return step

    return {
        "hand-written ε-MSE": plain,
        "linear, ε, ELBO": weighted(
            vdiff.parameterization.Eps(), schedule, vdiff.weighting.ELBO()
        ),
        "cosine, v, sigmoid": weighted(
            vdiff.parameterization.V(), cosine, vdiff.weighting.Sigmoid(2.0)
        ),
        "EDM": weighted(
            vdiff.parameterization.V(0.5), vdiff.schedule.Normal(), vdiff.weighting.EDM()
        ),
        "flow matching": weighted(
            vdiff.parameterization.Flow(),
            vdiff.schedule.OptimalTransport(),
            vdiff.recipe("flow-matching").weighting,
        ),
        "cosine, ε, MSE x min-SNR": weighted(
            vdiff.parameterization.Eps(),
            cosine,
            vdiff.weighting.MSE(cosine, vdiff.parameterization.Eps()) * vdiff.weighting.MinSNR(),
        ),
        "iDDPM offset cosine, x, P2": weighted(
            vdiff.parameterization.X(),
            vdiff.schedule.Cosine(offset=0.008),
            vdiff.weighting.MSE(cosine, vdiff.parameterization.Eps()) * vdiff.weighting.P2(),
        ),
        "γ_η: spline": learned(vdiff.schedule.Spline()),
        "γ_η: spline, its own loss": learned(vdiff.schedule.Spline(follow_variance=False)),
        "γ_η: monotone, 1024 wide": learned(vdiff.schedule.Monotone()),
        "adaptive": learned(vdiff.schedule.Adaptive(13.3, -5.0)),
        "full bound, 256 levels": lambda: vdiff.elbo(
            model, data, schedule=schedule, decoder=decoder
        ).total.mean(),
        "full bound, learned ends": learned(vdiff.schedule.LearnedLinear(), whole=True),
        "full bound, spline": learned(vdiff.schedule.Spline(), whole=True),
    }


def chain_losses(network: nn.Module, x: Tensor, data: Tensor) -> dict[str, Step]:
    """The same for a network with a variance head."""
    model, table = (
        vdiff.Denoiser(
            network, vdiff.parameterization.Eps(), variance=vdiff.variance.LearnedRange()
        ),
        vdiff.schedule.Tabulated.linear_betas(),
    )
    decoder = vdiff.decoder.DiscretizedGaussian(256, uses_network=True)
    return {
        "hybrid, learned range": lambda: vdiff.hybrid_loss(
            model, x, schedule=table, steps=999
        ).mean(),
        "hybrid, its decoder": lambda: vdiff.hybrid_loss(
            model, data, schedule=table, steps=999, decoder=decoder
        ).mean(),
    }


def field_step(network: nn.Module, x: Tensor) -> Step:
    """The bare step of a network that gets a noise level for each pixel or dimension."""
    shape = (len(x), 1, *x.shape[2:]) if x.ndim > 2 else x.shape
    logsnr, target = torch.empty(shape).uniform_(-5, 10), torch.randn_like(x)
    return lambda: F.mse_loss(network(x, logsnr), target)


def run(network: nn.Module, step: Step) -> None:
    network.zero_grad(set_to_none=True)
    step().backward()


def ratio(network: nn.Module, bare: Step, step: Step, pairs: int) -> tuple[float, float, float]:
    """Median of step/bare over adjacent pairs, with its quartiles. One thread's time is that of
    the processor, which others on the machine disturb less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    quotients = []
    for i in range(pairs):
        seconds = {}
        for name, one in (("bare", bare), ("step", step))[:: 1 if i % 2 else -1]:
            start = clock()
            run(network, one)
            seconds[name] = clock() - start
        quotients.append(seconds["step"] / seconds["bare"])
    low, middle, high = statistics.quantiles(quotients, n=4)
    return middle, low, high


def operations(network: nn.Module, step: Step) -> tuple[int, int]:
    run(network, step)
    with Count() as count:
        run(network, step)
    return count.operations, count.views


def peak_memory(network: nn.Module, step: Step) -> int:
    """Peak bytes of live allocations during a step, from the profiler's allocation events."""
    run(network, step)
    network.zero_grad(set_to_none=True)
    return peak(lambda: step().backward(), torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=300,
        help="pairs of steps for the MLP; the U-Net takes a tenth (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="torch threads (default: torch's own choice)"
    )
    parser.add_argument(
        "--peers", type=Path, help="folder that holds other libraries: compare with them alone"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    image_levels, point_levels = (
        torch.randint(0, 256, (16, 3, 32, 32)),
        torch.randint(0, 256, (512, 2)),
    )
    encode = vdiff.decoder.Categorical(256).encode
    cases = [
        ("MLP, 2-D points, batch 512", MLP(2), MLP(2, dims_out=4), point_levels, options.pairs),
        ("U-Net, 3x32x32, batch 16", unet(3), unet(6), image_levels, max(10, options.pairs // 10)),
    ]
    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.peers:
        beside_peers(cases[0][1], encode(point_levels), options.peers, options.pairs)
        return
    for title, network, two_heads, data, pairs in cases:
        x = encode(data)
        say(f"\n{title}: {sum(p.numel() for p in network.parameters()):,} parameters")
        say(HEAD)
        for one, steps in (
            (network, losses(network, x, data)),
            (two_heads, chain_losses(two_heads, x, data)),
        ):
            compare(one, bare_step(one, x), steps, pairs)
        told = with_field(network)
        row = {"plain MSE, network of a field": field_step(told, x)}
        compare(nn.ModuleList([network, told]), bare_step(network, x), row, pairs)


def beside_peers(network: nn.Module, x: Tensor, folder: Path, pairs: int) -> None:
    """The same objectives by other libraries and by this one."""
    others, missing = peers.steps(network, x, folder)
    model = vdiff.Denoiser(network, vdiff.parameterization.Eps())
    ddpm, own = vdiff.recipe("ddpm").objective(model), losses(network, x, x)
    ours = {f"vdiff, {name}": own[name] for name in ("flow matching", "EDM")}
    ours["vdiff, DDPM"] = lambda: ddpm(x).mean()
    say(f"MLP, 2-D points, batch {len(x)}\n{HEAD}")
    compare(network, bare_step(network, x), others | ours, pairs)
    for why in missing:
        say(f"missing: {why}")


def unet(channels_out: int) -> nn.Module:
    return UNet(3, channels_out=channels_out, width=24, multipliers=(1, 2))


def compare(network: nn.Module, bare: Step, steps: dict[str, Step], pairs: int) -> None:
    base_operations, base_views = operations(network, bare)
    base_memory = peak_memory(network, bare)
    for name, step in steps.items():
        for _ in range(3):
            run(network, step)
        middle, low, high = ratio(network, bare, step, pairs)
        more, views = operations(network, step)
        memory = peak_memory(network, step) / base_memory
        say(
            f"{name:<40}{middle:>7.2f}{low:>8.2f}–{high:<6.2f}{more - base_operations:>12}"
            f"{views - base_views:>7}{memory:>8.2f}"
        )


if __name__ == "__main__":
    replace_unencodable()
    main()

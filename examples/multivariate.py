"""What noise of its own for each pixel is worth on digits, in bits/dim at equal budget.

For each schedule and seed the same U-Net is trained on the evidence lower bound, from the same
weights, on the same batches, times and noise, for the same number of steps:

    scalar           one λ(t) for all pixels: normal in λ, fixed
    pixel, fixed     the same, moved in each pixel by log(mean variance/its variance), so that
                     noise and signal balance in all pixels at about the same t
    pixel, learned   MultivariateSpline: starts as "scalar", and follows the bound and its variance
    MuLAN            the same, depending on the image through 8 coins, whose KL counts
                     (arXiv:2312.13236)

All have the same ends, so that prior and reconstruction are equal. Printed are bits/dim on the
test images, and the difference to "scalar" of the same seed, paired by image and noise, each with
its Monte Carlo error and its error over images; then the mean difference over seeds with its
standard error, and what MuLAN's latent costs. Ten minutes on one idle core; what was measured, and
what it says: benchmarks/results/multivariate.txt.

    python examples/multivariate.py --out runs/multivariate
    python examples/multivariate.py --quick                   # a minute: too few steps

The figure levels.png has λ at t = ½ in each pixel. Needs the extra `train`.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vdiff
from vdiff import plots
from vdiff.cli.parser import Parser, positive
from vdiff.data.digits import LEVELS, digits
from vdiff.decoder import Categorical
from vdiff.disk import atomic_write, write_text
from vdiff.likelihood import Estimate
from vdiff.objective import Objective
from vdiff.schedule import MuLAN, MultivariateSpline, Schedule
from vdiff.terminal import replace_unencodable, say
from vdiff.training import Config, train

HIGH, LOW = 9.0, -7.0
MEAN, STD = 2.5, 3.0  # of the density over λ from which all schedules start
KNOTS, LATENTS = 17, 8
SHAPE = [1, 8, 8]
NAMES = "scalar", "pixel, fixed", "pixel, learned", "MuLAN"


def log_density(shift: Tensor) -> Tensor:
    """That of N(MEAN + shift, STD²) at the knots, which go from HIGH to LOW: (*shape, knots)."""
    logsnr = torch.linspace(HIGH, LOW, KNOTS, dtype=torch.float64)
    return -0.5 * ((logsnr - MEAN - shift[..., None]) / STD).square()


def shifts(images: Tensor) -> Tensor:
    """log(mean variance/variance) of each pixel, with the variance of rounding added to both."""
    x = Categorical(LEVELS).encode(images).double()
    variance = x.var(0) + (2 / LEVELS) ** 2 / 12
    return (variance.mean() / variance).log()


def encoder() -> nn.Module:
    """The logits of MuLAN's coins from an image."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Linear(128, LATENTS),
    )  # fmt: skip


def schedule_of(name: str, images: Tensor) -> Schedule:
    """The schedule at its start."""
    ends: dict[str, Any] = {"logsnr_max": HIGH, "logsnr_min": LOW, "learn_ends": False}
    shape = [1, 1, 1] if name == "scalar" else SHAPE
    if name == "MuLAN":
        coins: dict[str, Any] = {"latents": LATENTS, "follow": "both"}
        schedule: MultivariateSpline = MuLAN(encoder(), shape, knots=KNOTS, **coins, **ends)
    else:
        schedule = MultivariateSpline(shape, knots=KNOTS, **ends)
    zero = torch.zeros(shape, dtype=torch.float64)
    shift = shifts(images) if name == "pixel, fixed" else zero
    schedule.log_density.data.copy_(log_density(shift))
    return schedule.requires_grad_(name in ("pixel, learned", "MuLAN"))


def config_of(options: argparse.Namespace, seed: int) -> Config:
    """All but the schedule."""
    return Config(
        network={
            "name": "UNet", "channels": 1, "channels_out": LEVELS, "width": options.width,
            "multipliers": [1, 1], "dropout": 0.2, "field": True,
        },
        decoder={"name": "Categorical", "levels": LEVELS},
        weight_decay=0.05,
        schedule_lr=options.schedule_lr,
        steps=options.steps,
        seed=seed,
    )  # fmt: skip


def trained(name: str, seed: int, options: argparse.Namespace) -> Objective:
    images, config = digits().train, config_of(options, seed)
    torch.manual_seed(seed)
    parts = config.objective()  # first: the same weights for every schedule
    schedule = schedule_of(name, images)
    objective = Objective(parts.model, schedule=schedule, loss=parts.loss)
    return train(objective, images, config, quiet=options.quiet)


def measured(
    objectives: dict[str, Objective], seed: int, options: argparse.Namespace
) -> dict[str, dict[str, Estimate]]:
    """Bits/dim of each, and the difference to the first."""
    images = digits().test[: options.images]
    effort = {"draws": options.draws, "seed": seed}
    results = {}
    for name, objective in objectives.items():
        parts = {"schedule": objective.schedule, "decoder": objective.decoder}
        report = vdiff.evaluate(objective.model, images, **parts, **effort)
        results[name] = {"bits": report.total, "prior": report.prior}
        if name != NAMES[0]:
            first = objectives[NAMES[0]]
            parts["schedule"] = objective.schedule, first.schedule
            paired = vdiff.compare(objective.model, first.model, images, **parts, **effort)
            results[name]["difference"] = paired.difference
    return results


def table(results: dict[int, dict[str, dict[str, Estimate]]]) -> str:
    rows = [f"{'schedule':<16}{'seed':>5}{'bits/dim':>10}{'MC':>8}{'images':>8}"]
    rows[0] += f"{'less scalar':>13}{'MC':>8}{'images':>8}"
    for name in NAMES:
        for seed, of_seed in results.items():
            row = f"{name:<16}{seed:>5}"
            for key, width in (("bits", 10), ("difference", 13)):
                if key in of_seed[name]:
                    found = of_seed[name][key]
                    row += (
                        f"{found.value:>{width}.4f}{found.monte_carlo:>8.4f}{found.images:>8.4f}"
                    )
            rows.append(row)
    rows += ["", "mean over seeds, less scalar, ± its standard error over seeds"]
    for name in NAMES[1:]:
        values = torch.tensor([r[name]["difference"].value for r in results.values()])
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        rows.append(f"{name:<16}{values.mean().item():>+10.4f} ± {error:.4f}")
    kl = [r["MuLAN"]["prior"].value - r["scalar"]["prior"].value for r in results.values()]
    rows.append(f"the KL of MuLAN's latent, in these numbers: {sum(kl) / len(kl):.4f}")
    return "\n".join(rows)


@torch.no_grad()
def draw(path: Path, objectives: dict[str, Objective]) -> None:
    """λ at t = ½ in each pixel; of MuLAN at the coins of two test images."""
    half, images = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64), digits().test[:2]
    fields: dict[str, Tensor] = {}
    for name, objective in objectives.items():
        assert objective.decoder is not None
        schedule, _ = objective.schedule.for_data(objective.decoder.encode(images))
        first, second = schedule.logsnr_at(half).expand(2, *SHAPE)[:, 0]
        fields |= {name: first, **({"MuLAN, another": second} if name == "MuLAN" else {})}
    _, panels = plots.figure(1, len(fields), height=2.8)
    for ax, (name, field) in zip(panels, fields.items(), strict=True):
        ax.imshow(field.numpy(), vmin=-5, vmax=8)
        ax.set_axis_off()
        title = f"{name}: {field.min():.1f} to {field.max():.1f}"
        plots.finish(ax, title, legend=False)
    with atomic_write(path) as file:
        plots.save(file, panels)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/multivariate"), help="folder")
    numbers = {
        "steps": (800, "training steps"),
        "width": (16, "channels of the U-Net"),
        "draws": (16, "times per test image and replicate"),
        "images": (297, "test images"),
    }
    for name, (number, what) in numbers.items():
        text = f"{what} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=positive, default=number, help=text)
    text = "learning rate of the schedules (default: %(default)s)"
    parser.add_argument("--schedule-lr", type=float, default=0.02, help=text)
    text = "of weights, batches and noise; one run each (default: 0 1 2)"
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help=text)
    parser.add_argument("--quick", action="store_true", help="few steps, images and seeds")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.width, options.seeds = 10, 8, options.seeds[:2]
        options.draws, options.images = 4, 8
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for seed in options.seeds:
        objectives = {name: trained(name, seed, options) for name in NAMES}
        results[seed] = measured(objectives, seed, options)
        plain = {
            s: {name: {k: vars(e) for k, e in r.items()} for name, r in of_seed.items()}
            for s, of_seed in results.items()
        }
        write_text(options.out / "results.json", json.dumps(plain, indent=2) + "\n")
        write_text(options.out / "table.txt", table(results) + "\n")
        if seed == options.seeds[0]:
            draw(options.out / "levels.png", objectives)
    say(table(results))


if __name__ == "__main__":
    replace_unencodable()
    main()

"""Samplers side by side on data whose denoiser is known: where each ends after twelve evaluations,
guidance, the way back.

Data: a ring of eight Gaussians in the plane, whose left and right are two classes. Ten seconds on
one idle core. Expect `adams_bashforth` 0.008 from the exact end points (root mean square), `ddim`
0.04, `dpmpp_2m` 0.06 and `heun` 0.16; guidance that moves the samples of a class away from the
other; and an encoding that returns to the noise it came from within 1e-9. The figure has what is
exact in gray behind what was made.

    python examples/samplers.py --out samplers.png
"""

import math
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

import vdiff
from vdiff import plots
from vdiff.cli.parser import Parser
from vdiff.sampling import STEPS, Counted
from vdiff.terminal import replace_unencodable, say

BUDGET = 12
NAMES = ("ancestral", "ddim", "heun", "dpmpp_2m", "adams_bashforth")
ANGLE = 2 * torch.pi * torch.arange(8, dtype=torch.float64) / 8 + 0.2
MEANS = torch.stack([ANGLE.cos(), ANGLE.sin()], 1)
LEFT = MEANS[:, 0] < 0.2
SIDE, NULL = {"left": 0, "right": 1}, 2
SOLVED = partial(vdiff.sampling.ode, method="dopri8", rtol=1e-9, atol=1e-9)


def mixture(means: Tensor) -> vdiff.oracle.GaussianMixture:
    return vdiff.oracle.GaussianMixture(
        torch.full((len(means),), 1 / len(means)), means, torch.full_like(means, 0.1**2)
    )


RING = mixture(MEANS)
CLASSES = (mixture(MEANS[LEFT]), mixture(MEANS[~LEFT]), RING)


def of_class(z: Tensor, logsnr: Tensor, label: Tensor) -> vdiff.Prediction:
    """The perfect denoiser of each sample's class; of the whole ring for the null one."""
    eps = torch.stack([data(z, logsnr).eps for data in CLASSES])
    return vdiff.Prediction(
        z, logsnr, eps[label, torch.arange(len(z))], vdiff.parameterization.Eps()
    )


def main() -> None:
    parser = Parser(description=__doc__)
    text = "the figure (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("samplers.png"), help=text)
    options = parser.parse_args()
    noise = torch.randn(1500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    high, low = -2 * math.log(0.002), -2 * math.log(80.0)
    levels = [torch.full((len(noise),), level, dtype=torch.float64) for level in (low, high)]
    exact = SOLVED(RING, noise, *levels)

    schedule = vdiff.sampling.logistic(high, low)
    picture, axes = plots.figure(2, 4, height=2.7)
    title = f"at most {BUDGET} evaluations (guidance: 19 steps); RMS distance from the exact end"
    picture.suptitle(title, fontsize=11)
    scatter(axes[0], exact, "exact flow", made=exact)
    say(f"{'step':<12}{'evaluations':>12}{'distance from the exact end':>30}")
    for panel, name in zip(axes[1:], NAMES, strict=False):
        counted, generator = Counted(RING), torch.Generator().manual_seed(1)
        visited = BUDGET // 2 if name == "heun" else BUDGET  # as many levels as it allows
        levels_of = {"schedule": schedule, "steps": visited - 1}
        made = vdiff.sample(counted, noise, **levels_of, step=STEPS[name], generator=generator)
        distance = (made - exact).square().sum(1).mean().sqrt().item()
        shown = "a random end" if name == "ancestral" else f"{distance:.4f}"
        say(f"{name:<12}{counted.evaluations:>12}{shown:>30}")
        scatter(panel, exact, f"{name}: {shown}", made)

    right = torch.full((len(noise),), SIDE["right"])
    of_right = SOLVED(Counted(of_class, condition={"label": right}), noise, *levels)
    for panel, scale in zip(axes[6:], (1.0, 3.0), strict=True):
        guided = vdiff.sampling.Guided(of_class, scale, unconditional={"label": NULL})
        given = {"schedule": schedule, "steps": 19, "condition": {"label": right}}
        made = vdiff.sample(guided, noise, **given, step=STEPS["adams_bashforth"])
        scatter(panel, of_right, f"right half, guidance {scale:g}", made)

    encoded = vdiff.sampling.invert(
        RING, exact, schedule=vdiff.schedule.Linear(high, low), step=SOLVED
    )
    say(f"encoding returns to the noise within {(encoded - noise).abs().max():.1e}")
    plots.save(options.out, axes)
    say(f"figure in {options.out}")


def scatter(axes: Axes, exact: Tensor, title: str, made: Tensor) -> None:
    axes.scatter(*exact.T, s=8, color="0.85", linewidths=0)
    axes.scatter(*made.T, s=1.5, linewidths=0, color=plots.COLORS[0])
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[], yticks=[])
    plots.finish(axes, title)


if __name__ == "__main__":
    replace_unencodable()
    main()

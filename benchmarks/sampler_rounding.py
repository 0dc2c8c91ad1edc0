"""How far rounding, and the batch that a sample is made with, move a sample.

    python benchmarks/sampler_rounding.py  # writes benchmarks/results/sampler_rounding.txt

1. Steps in float32 against the same steps in float64, from λ = −20 and from −10 to 10, by what the
   model predicts: the largest difference over 64 samples of each seed. The perfect denoiser of a
   mixture in the plane is evaluated in float64 and rounded to float32, so that what is seen is the
   step's own, and what rounding takes from an output.
2. `ode` with an adaptive method: the same sample made alone and in a batch of 64, at several
   tolerances.

About five minutes on one core.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from vdiff import sample
from vdiff.cli.parser import Parser
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, Parameterization, V, X
from vdiff.prediction import Prediction
from vdiff.sampling import adams_bashforth, ddim, dpmpp_2m, heun, logistic, ode
from vdiff.sampling.step import Step
from vdiff.schedule import Linear, Schedule
from vdiff.terminal import replace_unencodable, say

PLANE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.5, 0.0]], [[0.04, 0.04], [0.09, 0.09]])
HIGH, SAMPLES, SEEDS = 10.0, 64, 8
STEPS: dict[str, Step] = {
    "adams_bashforth": adams_bashforth,
    "adams_bashforth, ε": partial(adams_bashforth, target=Eps()),
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
    "ddim": ddim,
}


def noise(seed: int) -> Tensor:
    """Noise with float32's digits, in float64."""
    return torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(seed)).double()


def saying(target: Parameterization) -> Callable[[Tensor, Tensor], Prediction]:
    """The perfect denoiser as a network that predicts this, in the precision of z."""

    def model(z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(
            z, logsnr, PLANE(z.double(), logsnr).as_target(target).to(z.dtype), target
        )

    return model


def rounding(step: Step, target: Parameterization, schedule: Schedule, levels: int) -> list[float]:
    """The largest difference between float32 and float64 for each seed."""
    options = {"schedule": schedule, "steps": levels - 1, "step": step}
    found = []
    for seed in range(SEEDS):
        single, double = (
            sample(saying(target), z, **options) for z in (noise(seed).float(), noise(seed))
        )
        found.append((single.double() - double).abs().max().item())
    return found


def alone(tolerance: float, method: str, seed: int) -> Tensor:
    """How far each sample is from what it is without the others."""
    options = {
        "schedule": logistic(),
        "steps": 1,
        "step": partial(ode, method=method, rtol=tolerance, atol=tolerance),
    }
    z = noise(seed)
    return (
        (
            sample(PLANE, z, **options)
            - torch.cat([sample(PLANE, one[None], **options) for one in z])
        )
        .abs()
        .amax(1)
    )


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/sampler_rounding.txt")
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "sample: .* by rounding")
    lines = [
        f"python {' '.join(sys.argv)}",
        (
            f"torch {torch.__version__}; largest over {SAMPLES} samples: median and most of "
            f"{SEEDS} seeds"
        ),
    ]
    for low, levels, (grid, schedule) in product(
        (-20.0, -10.0), (6, 12), {"uniform in λ": Linear, "logistic": logistic}.items()
    ):
        lines += [
            "",
            (
                f"float32 against float64, {levels} levels {grid}, λ from {low:g} to {HIGH:g}, by "
                f"what the model predicts"
            ),
        ]
        lines.append(f"{'step':<12}" + "".join(f"{name:>22}" for name in ("ε", "x", "v", "u")))
        for name, step in STEPS.items():
            row = [
                torch.tensor(rounding(step, target, schedule(HIGH, low), levels))
                for target in (Eps(), X(), V(), Flow())
            ]
            lines.append(
                f"{name:<12}"
                + "".join(f"{found.median():>11.1e}{found.max():>11.1e}" for found in row)
            )
            say(lines[-1])
    lines += [
        "",
        "ode: a sample alone against the same in its batch, all seeds together",
        f"{'tolerance':<22}{'median':>10}{'99 %':>10}{'most':>10}",
    ]
    for tolerance, method in ((1e-5, "dopri5"), (1e-7, "dopri5"), (1e-9, "dopri8")):
        moved = torch.cat([alone(tolerance, method, seed) for seed in range(SEEDS)])
        lines.append(
            f"{f'{tolerance:g}, {method}':<22}"
            + "".join(f"{moved.quantile(q):>10.1e}" for q in (0.5, 0.99, 1.0))
        )
        say(lines[-1])
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    replace_unencodable()
    main()

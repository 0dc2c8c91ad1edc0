"""Error against evaluations: every step on every grid, on data whose denoiser is known.

Two questions, both with the perfect denoiser in float64 and against the exact end of the
probability-flow ODE:

- The order of convergence of each step, on a Gaussian and on a mixture, from doubling the number
  of steps.
- The fewest evaluations from which on the root-mean-square error stays below 1 % of the root mean
  square of the end points. Each sampler takes the grid that is best for it on the problems to
  choose by (rings of five and six Gaussians, random mixtures in 2 and 16 dimensions); the same
  choice is then measured on others with other seeds (a ring of eight, other random mixtures). The
  grid `logistic` was chosen on problems of the first kind too. All have the same range of σ,
  EDM's 80 to 0.002, which alone can halve a count. "AB3, rectified" is the plain third-order rule
  on the rectified path in its own uniform time.

Twenty minutes on one core:

    python benchmarks/step_order.py --out benchmarks/results
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import vdiff
from vdiff import plots
from vdiff.cli.parser import Parser
from vdiff.oracle import Gaussian
from vdiff.sampling import Counted, uniform
from vdiff.terminal import replace_unencodable, say, track

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
HIGH, LOW = -2 * math.log(SIGMA_MIN), -2 * math.log(SIGMA_MAX)
GRIDS = {
    "uniform λ": vdiff.schedule.Linear(HIGH, LOW),
    "Karras ρ=7": vdiff.schedule.Karras(SIGMA_MIN, SIGMA_MAX),
    "angle": vdiff.schedule.Cosine(HIGH, LOW),
    "rectified t": vdiff.schedule.OptimalTransport(HIGH, LOW),
    "logistic": vdiff.sampling.logistic(HIGH, LOW),
}
TARGETS = {
    "x": vdiff.parameterization.X(),
    "ε": vdiff.parameterization.Eps(),
    "v": vdiff.parameterization.V(),
    "u": vdiff.parameterization.Flow(),
}
STEPS = {
    "ddim": vdiff.sampling.ddim,
    "heun": vdiff.sampling.heun,
    "dpmpp_2m": vdiff.sampling.dpmpp_2m,
}
STEPS |= {
    f"adams_bashforth {order}, {name}": partial(
        vdiff.sampling.adams_bashforth, order=order, target=target
    )
    for order in (2, 3)
    for name, target in TARGETS.items()
}
SHOWN = (
    "ddim",
    "heun",
    "dpmpp_2m",
    "adams_bashforth 3, x",
    "adams_bashforth 3, u",
)  # in the figure
COUNTS = [*range(6, 31), *range(32, 61, 2)]
EXACT = partial(vdiff.sampling.ode, method="dopri8", rtol=1e-12, atol=1e-13)


def ring(modes: int, radius: float, std: float) -> vdiff.oracle.GaussianMixture:
    angle = 2 * torch.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return vdiff.oracle.GaussianMixture(
        torch.full((modes,), 1 / modes), means, torch.full((modes, 2), std**2)
    )


def random_mixture(dims: int, modes: int, seed: int) -> vdiff.oracle.GaussianMixture:
    """Means from N(0, I), weights in 1 : 6, axes at random with standard deviations from 0.05 to
    0.3."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    means, weights = torch.randn(modes, dims, **options), torch.rand(modes, **options) + 0.2
    axes = torch.linalg.qr(torch.randn(modes, dims, dims, **options))[0]
    std = 0.05 + 0.25 * torch.rand(modes, dims, **options)
    return vdiff.oracle.GaussianMixture(
        weights / weights.sum(), means, torch.einsum("kij,kj,klj->kil", axes, std**2, axes)
    )


@dataclass
class Problem:
    """A mixture, noise to start from, and where the probability-flow ODE leads from there."""

    name: str
    data: vdiff.oracle.GaussianMixture
    start: Tensor
    end: Tensor

    @classmethod
    def of(
        cls,
        name: str,
        data: vdiff.oracle.GaussianMixture,
        *,
        seed: int,
        n: int,
        high: float = HIGH,
        low: float = LOW,
    ) -> "Problem":
        z = torch.randn(
            n, data.dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        ends = (torch.full((n,), level, dtype=torch.float64) for level in (low, high))
        return cls(name, data, z, EXACT(data, z, *ends))

    def error(
        self, step: Callable[..., Tensor], schedule: vdiff.schedule.Schedule, steps: int
    ) -> tuple[float, int]:
        """Of the state at the last level, relative to the root mean square of the end; and the
        evaluations it took."""
        counted = Counted(self.data)
        *_, (z, _) = vdiff.trajectory(
            counted, self.start, levels=uniform(schedule, steps), step=step
        )
        return (
            (z - self.end).square().mean() / self.end.square().mean()
        ).sqrt().item(), counted.evaluations - 1  # without x̂ at the end


def chosen_by() -> list[Problem]:
    problems = [("ring of 5", ring(5, 1.0, 0.05)), ("ring of 6", ring(6, 1.5, 0.1))]
    problems += [(f"2-D, seed {seed}", random_mixture(2, 6, seed)) for seed in (0, 1)]
    problems += [(f"16-D, seed {seed}", random_mixture(16, 8, seed)) for seed in (10, 11)]
    return [Problem.of(name, data, seed=5, n=64) for name, data in problems]


def reported_on() -> list[Problem]:
    problems = [("ring of 8", ring(8, 1.0, 0.1))]
    problems += [(f"2-D, seed {seed}", random_mixture(2, 6, seed)) for seed in (100, 101, 102)]
    problems += [(f"16-D, seed {seed}", random_mixture(16, 8, seed)) for seed in (200, 201, 202)]
    return [Problem.of(name, data, seed=77, n=256) for name, data in problems]


def needed(
    problem: Problem,
    step: Callable[..., Tensor],
    schedule: vdiff.schedule.Schedule,
    bound: float = 0.01,
) -> int | None:
    """The fewest evaluations from which on the error stays below the bound; None if it does not at
    the most."""
    per_step = 2 if step is vdiff.sampling.heun else 1
    fewest = None
    for count in reversed([c for c in COUNTS if c % per_step == 0]):
        error, evaluations = problem.error(step, schedule, count // per_step)
        if not error < bound:
            break
        fewest = evaluations
    return fewest


def orders() -> list[str]:
    """log₂ of how the error falls from 64 to 128 and from 128 to 256 steps, uniform in λ."""
    mixture = vdiff.oracle.GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])
    problems = [
        Problem.of(name, data, seed=0, n=64, high=6.0, low=-6.0)
        for name, data in (("Gaussian", Gaussian([0.3], [0.25])), ("mixture", mixture))
    ]
    rows = [
        "",
        "order of convergence, from doubling twice",
        f"{'step':<24}" + "".join(f"{p.name:>18}" for p in problems),
    ]
    for name, step in STEPS.items():
        row = f"{name:<24}"
        for problem in problems:
            errors = [
                problem.error(step, vdiff.schedule.Linear(6.0, -6.0), steps)[0]
                for steps in (64, 128, 256)
            ]
            row += (
                f"{math.log2(errors[0] / errors[1]):>10.2f}"
                f"{math.log2(errors[1] / errors[2]):>8.2f}"
            )
        rows.append(row)
    return rows


def shown(count: float | None) -> str:
    return f">{COUNTS[-1]}" if count is None else f"{count:.4g}"


def budgets() -> tuple[list[str], dict[str, str], list[Problem]]:
    problems = chosen_by()
    rows = [
        "",
        (
            "evaluations to 1 %, mean over the problems to choose by (one that is not reached "
            "counts as 90)"
        ),
    ]
    rows.append(f"{'step':<24}" + "".join(f"{name:>13}" for name in GRIDS))
    best: dict[str, str] = {}
    for name, step in track(list(STEPS.items()), "step", "choosing"):
        mean = {
            grid: sum(needed(p, step, schedule) or 90 for p in problems) / len(problems)
            for grid, schedule in GRIDS.items()
        }
        best[name] = min(mean, key=mean.__getitem__)
        rows.append(f"{name:<24}" + "".join(f"{value:>13.1f}" for value in mean.values()))
    others = reported_on()
    rows += [
        "",
        "evaluations to 1 % on other mixtures, each with its grid",
        f"{'step':<24}{'grid':<13}" + "".join(f"{p.name:>15}" for p in others),
    ]
    frozen = {"AB3, rectified": ("adams_bashforth 3, u", "rectified t")} | {
        name: (name, grid) for name, grid in best.items()
    }
    for name, (step_name, grid) in track(list(frozen.items()), "step", "reporting"):
        counts = [needed(p, STEPS[step_name], GRIDS[grid]) for p in others]
        rows.append(f"{name:<24}{grid:<13}" + "".join(f"{shown(count):>15}" for count in counts))
    return rows, {name: best[name] for name in SHOWN}, others


def draw(path: Path, best: dict[str, str], problems: list[Problem]) -> None:
    panels = [
        next(p for p in problems if p.name.startswith(start)) for start in ("ring", "2-D", "16-D")
    ]
    picture, axes = plots.figure(1, 3)
    curves = {f"{name} ({grid})": (STEPS[name], GRIDS[grid]) for name, grid in best.items()}
    curves["AB3, rectified (rectified t)"] = (STEPS["adams_bashforth 3, u"], GRIDS["rectified t"])
    for panel, problem in zip(axes, panels, strict=True):
        for label, (step, schedule) in curves.items():
            points = [
                problem.error(step, schedule, steps)
                for steps in (
                    (3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 30)
                    if step is vdiff.sampling.heun
                    else (6, 8, 10, 12, 14, 16, 20, 24, 30, 40, 50, 60)
                )
            ]
            look = (
                {"linestyle": ":", "marker": "x", "markersize": 4}
                if "rectified" in label
                else {"marker": "."}
            )
            panel.loglog([n for _, n in points], [e for e, _ in points], label=label, **look)
        panel.axhline(0.01, **plots.REFERENCE)
        panel.set(title=problem.name, xlabel="evaluations", ylim=(1e-4, 4))
        panel.set_xticks([6, 10, 20, 40, 60], ["6", "10", "20", "40", "60"])
        panel.minorticks_off()
    axes[0].set(ylabel="error of the ODE's end point, relative")
    lines = axes[0].get_legend_handles_labels()
    picture.legend(*lines, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    plots.save(path, axes)


def main() -> None:
    parser = Parser(description=__doc__)
    text = "folder for step_order.txt and step_order.png (default: print alone)"
    parser.add_argument("--out", type=Path, help=text)
    options = parser.parse_args()
    rows, best, others = budgets()
    text = "\n".join(orders() + rows).strip()
    say(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "step_order.txt").write_text(text + "\n", encoding="utf-8")
        draw(options.out / "step_order.png", best, others)


if __name__ == "__main__":
    replace_unencodable()
    main()

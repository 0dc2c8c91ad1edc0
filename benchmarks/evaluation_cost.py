"""What a bound costs: network evaluations for a standard error of 0.01 nats, on data whose perfect
denoiser is known.

    python benchmarks/evaluation_cost.py  # writes benchmarks/results/evaluation_cost.txt
    # the same table for a trained network, in bits/dim
    python benchmarks/evaluation_cost.py --run runs/digits

Two oracles: a ring of eight Gaussians (radius √2, standard deviation 0.1) and a random mixture of
ten in 16 dimensions, 512 data points each. All variances are measured on the given points, in the
same run: a cost is the variance of the mean over the points times network evaluations, over 0.01².
VDM's estimator draws one time per point, (u₀ + i/n) mod 1, uniform in λ; the loop visits every
step of DDPM's 1,000 levels once, with fresh noise at each. "limit" is (∫ std dλ)² of the integrand
that the row draws, its std over ε measured by itself: what infinitely fine strata and the best
density could reach with independent ε. For a trained network the second table leaves out of
everything one piece at a time.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff import weighted_elbo
from vdiff.cli.parser import Parser
from vdiff.decoder import Decoder, Gaussian
from vdiff.likelihood import GaussianError, Independent, NoiseNorm, Sobol, VarianceReduction
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.chunks import Run
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.pilot import run_pilot
from vdiff.likelihood.stages import Budget, Evaluation
from vdiff.loss import Model
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Linear, Schedule, Tabulated
from vdiff.terminal import replace_unencodable, say

POINTS, TARGET = 512, 0.01
STRATIFIED = VarianceReduction(importance=False, controls=(), antithetic=False, baseline=False)
PLANS = {
    "stratified per point": STRATIFIED,
    "+ importance density": VarianceReduction(controls=(), antithetic=False),
    "+ ‖ε‖²": VarianceReduction(controls=(NoiseNorm(),), antithetic=False),
    "+ the Gaussian": VarianceReduction(controls=(NoiseNorm(), GaussianError()), antithetic=False),
    "everything": VarianceReduction(),
}
LEFT_OUT = {  # of everything, each piece by itself, or another in its place
    "independent times": VarianceReduction(times=Independent()),
    "Sobol times": VarianceReduction(times=Sobol()),
    "no importance density": VarianceReduction(importance=False),
    "no ‖ε‖²": VarianceReduction(controls=(GaussianError(),)),
    "no Gaussian": VarianceReduction(controls=(NoiseNorm(),)),
    "no controls": VarianceReduction(controls=()),
    "no baseline": VarianceReduction(baseline=False),
    "never antithetic": VarianceReduction(antithetic=False),
    "always antithetic": VarianceReduction(antithetic=True),
    "nothing": VarianceReduction.plain(),
}


def ring() -> GaussianMixture:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture([1 / 8] * 8, means, torch.full((8, 2), 0.01, dtype=torch.float64))


def mixture(seed: int = 0) -> GaussianMixture:
    """Ten components in 16 dimensions: weights U(½, 1½), means N(0, I), covariances A Aᵀ/4 + 0.01
    I with A ~ N(0, 0.3²)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(10, generator=generator, dtype=torch.float64) + 0.5
    means = torch.randn(10, 16, generator=generator, dtype=torch.float64)
    mix = 0.3 * torch.randn(10, 16, 16, generator=generator, dtype=torch.float64)
    return GaussianMixture(
        weights / weights.sum(),
        means,
        mix @ mix.mT / 4 + 0.01 * torch.eye(16, dtype=torch.float64),
    )


def shared_grid(model: Model, x: Tensor, schedule: Schedule, repeats: int) -> float:
    """Variance times evaluations of VDM's estimator, in nats²: one pass over the points with one
    offset, many times."""
    n, means = len(x), []
    generator = torch.Generator().manual_seed(1)
    for _ in range(repeats):
        t = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(n) / n) % 1
        means.append(
            weighted_elbo(model, x, schedule=schedule, t=t, generator=generator).double().mean()
        )
    return torch.stack(means).var().item() * n


def loop(model: Model, x: Tensor, points: int) -> float:
    """The same of a loop over all steps of DDPM's table: its variance is the sum of the steps', at
    as many evaluations."""
    schedule = Tabulated.linear_betas()
    steps = schedule.steps
    rows = x[:points].repeat_interleave(steps, 0)
    t = ((torch.arange(steps, dtype=torch.float64) + 1) / steps).repeat(min(points, len(x)))
    once, again = (
        weighted_elbo(
            model,
            rows,
            schedule=schedule,
            steps=steps,
            t=t,
            generator=torch.Generator().manual_seed(s),
        )
        for s in (2, 3)
    )
    variance = 0.5 * (once - again).double().square().view(-1, steps).mean(0)  # of T K_i
    return (variance.sum() / steps**2).item() * steps


def planned(
    integrand: Integrand, plan: VarianceReduction, draws: int, finer: int
) -> tuple[float, float, int]:
    """Variance times evaluations as drawn, its limit (from a pilot `finer` times the size), and
    the pilot's evaluations."""
    run = Evaluation(integrand, plan, Budget(draws=draws), Run(batch=2048, seed=4))
    fine = run_pilot(
        integrand,
        VarianceReduction(
            plan.times, True, plan.controls, plan.antithetic, plan.baseline, finer * plan.pilot
        ),
        seed=5,
        batch=2048,
    )
    variance = run().terms.variances()[1].mean().item() * draws
    return variance, list(fine.variance.values())[-1], run.fitted.evaluations


def table(
    model: Model,
    x: Tensor,
    decoder: Decoder,
    ends: tuple[float, float],
    unit: float,
    *,
    repeats: int,
    draws: int,
    points: int,
    finer: int,
    left_out: dict[str, VarianceReduction],
) -> Iterator[str]:
    """Rows of a table; `unit` is the standard error to reach, in nats."""
    schedule = Linear(*ends)
    with evaluating(model):
        integrand = Integrand(model, x, schedule, decoder)
        grid = shared_grid(model, integrand.x, schedule, repeats)
        every = loop(model, integrand.x, points)
        yield f"{'':<24}{'evaluations':>12}{'VDM grid over it':>18}{'over limit':>12}"
        yield f"{'DDPM, loop over steps':<24}{every / unit**2:>12.3g}{grid / every:>18.2g}"
        yield f"{'VDM, shared offset':<24}{grid / unit**2:>12.3g}{1:>18}"
        for name, plan in PLANS.items():
            variance, limit, pilot = planned(integrand, plan, draws, finer)
            over = "" if plan is STRATIFIED else f"{variance / limit:>12.2f}"
            yield row(name, variance, unit, pilot * (plan is not STRATIFIED), grid) + over
        if left_out:
            yield "everything, but"
        for name, plan in left_out.items():
            yield row(
                name,
                planned(integrand, plan, draws, 1)[0],
                unit,
                0 if plan == VarianceReduction.plain() else plan.pilot,
                grid,
            )


def row(name: str, variance: float, unit: float, pilot: int, grid: float) -> str:
    """Evaluations, the pilot's among them, and how many times as many VDM's grid takes."""
    return (
        f"{name:<24}{variance / unit**2 + pilot:>12.3g}"
        f"{grid / (variance + pilot * unit**2):>18.2f}"
    )


def main() -> None:
    parser = Parser(description=__doc__)
    text = "a run folder: its network on its test set, for a standard error of 0.002 bits/dim"
    parser.add_argument("--run", help=text)
    text = "passes of VDM's estimator (default: %(default)s)"
    parser.add_argument("--repeats", type=int, default=1000, help=text)
    parser.add_argument("--draws", type=int, default=64, help="per grid (default: %(default)s)")
    parser.add_argument(
        "--out",
        help=(
            "default: benchmarks/results/evaluation_cost.txt, or evaluation_cost_digits.txt with "
            "--run"
        ),
    )
    options = parser.parse_args()
    lines = list[str]()

    def tell(line: str) -> None:
        lines.append(line)
        say(line)

    tell(
        f"python {' '.join(sys.argv)}\ntorch {torch.__version__}; evaluations include the pilot's"
    )
    setting: dict[str, Any] = {"repeats": options.repeats, "draws": options.draws}
    if options.run:
        from vdiff.data.digits import digits
        from vdiff.training import Run

        objective = Run(options.run).load()
        test = digits().test
        unit = 0.002 * test[0].numel() * math.log(2)
        ends = (objective.schedule.logsnr_max, objective.schedule.logsnr_min)
        tell(
            f"\ndigits, {len(test)} test images, λ from {ends[1]:g} to {ends[0]:g}, for 0.002 "
            f"bits/dim"
        )
        for line in table(
            objective.model,
            test,
            objective.decoder,
            ends,
            unit,
            points=8,
            finer=2,
            left_out=LEFT_OUT,
            **setting,
        ):
            tell(line)
    else:
        for name, oracle in (
            ("ring of eight, d = 2", ring()),
            ("mixture of ten, d = 16", mixture()),
        ):
            x = oracle.sample(POINTS, torch.Generator().manual_seed(0))
            for ends in ((10.0, -10.0), (13.3, -5.0)):
                tell(
                    f"\n{name}, {POINTS} points, λ from {ends[1]:g} to {ends[0]:g}, for "
                    f"{TARGET} nats"
                )
                for line in table(
                    oracle,
                    x,
                    Gaussian(),
                    ends,
                    TARGET,
                    points=64,
                    finer=16,
                    left_out={},
                    **setting,
                ):
                    tell(line)
    out = Path(
        options.out or f"benchmarks/results/evaluation_cost{'_digits' if options.run else ''}.txt"
    )
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    replace_unencodable()
    main()

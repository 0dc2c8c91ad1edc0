"""The variance of the bound's estimator by schedule, on data whose perfect denoiser and optimum
are known.

A mixture of two Gaussians on a line, λ from 13.3 to −5, ELBO weighting. The variance of one
independent draw is an integral over λ, in units of the least that any schedule has. Learned
schedules start linear, follow the perfect denoiser's loss for 3,000 steps of 512 draws (Adam at
0.02, decaying by half a cosine) and train the shape alone. Eight minutes on one idle core:

    python benchmarks/schedule_variance.py --out benchmarks/results
"""

import copy
import math
from pathlib import Path

import torch

import vdiff
from vdiff import plots
from vdiff.cli.parser import Parser
from vdiff.schedule import Schedule
from vdiff.terminal import replace_unencodable, say
from vdiff.times import generator_of, stratified

HIGH, LOW = 13.3, -5.0
ORACLE = vdiff.oracle.GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])


def profile_of(bins: int = 366) -> vdiff.profile.Profile:
    """E‖e‖² and E‖e‖⁴ of the perfect denoiser by quadrature, as a profile."""
    profile = vdiff.profile.Profile(logsnr_max=HIGH, logsnr_min=LOW, bins=bins)
    for i, level in enumerate(profile.centers.tolist()):
        x, eps, weight = ORACLE.nodes(level)
        lam = torch.full((len(x),), level, dtype=torch.float64)
        error = (
            eps
            - ORACLE(
                lam.sigmoid().sqrt()[:, None] * x + lam.neg().sigmoid().sqrt()[:, None] * eps, lam
            ).eps
        )[:, 0].square()
        profile.sums[:3, i] = torch.stack([weight.sum(), weight @ error, weight @ error.square()])
    return profile


@torch.no_grad()
def of_a_batch(schedule: Schedule, batch: int = 64, rounds: int = 4000) -> float:
    """The variance of the mean of a stratified batch, times its size."""
    generator = generator_of(0, 0)
    means = [
        vdiff.weighted_elbo(
            ORACLE,
            ORACLE.sample(batch, generator),
            schedule=schedule,
            t=stratified(batch, generator=generator),
            generator=generator,
        ).mean()
        for _ in range(rounds)
    ]
    return batch * torch.stack(means).var().item()


def learn(schedule: Schedule, steps: int, batch: int, lr: float) -> list[tuple[int, Schedule]]:
    """Train a shape or an adaptive density on the perfect denoiser's loss; its snapshots by
    step."""
    parameters, frames = list(schedule.parameters()), [(0, copy.deepcopy(schedule))]
    optimizer = torch.optim.Adam(parameters, lr=lr) if parameters else None
    for step in range(steps):
        generator = generator_of(0, step)
        loss = vdiff.weighted_elbo(
            ORACLE, ORACLE.sample(batch, generator), schedule=schedule, generator=generator
        ).mean()
        if optimizer is not None:
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.update()
        if (step + 1) % max(1, steps // 60) == 0:
            frames.append((step + 1, copy.deepcopy(schedule)))
    return frames


def main() -> None:
    parser = Parser(description=__doc__)
    text = "folder for the figure and the GIF (default: none)"
    parser.add_argument("--out", type=Path, default=None, help=text)
    text = "of the learned schedules (default: %(default)s)"
    parser.add_argument("--steps", type=int, default=3000, help=text)
    text = "draws in a step (default: %(default)s)"
    parser.add_argument("--batch", type=int, default=512, help=text)
    text = "of the shape (default: %(default)s)"
    parser.add_argument("--lr", type=float, default=0.02, help=text)
    options = parser.parse_args()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    profile = profile_of()
    best = vdiff.schedule.Histogram.optimal(profile)
    rows: dict[str, Schedule] = {
        "linear": vdiff.schedule.Linear(HIGH, LOW),
        "cosine": vdiff.schedule.Cosine(HIGH, LOW),
        "optimal transport": vdiff.schedule.OptimalTransport(HIGH, LOW),
        "EDM's normal": vdiff.schedule.Normal(2.4, 2.4, HIGH, LOW),
        "p ∝ α²": vdiff.schedule.SignalPower(HIGH, LOW),
        "fitted to the covariance": vdiff.schedule.Spectral(
            [ORACLE.weights @ (ORACLE.means**2 + ORACLE.variances)[:, 0] - 0.05**2], HIGH, LOW
        ),
        "best density": best,
    }
    learned: dict[str, Schedule] = {
        "spline, 64 knots": vdiff.schedule.Spline(HIGH, LOW, learn_ends=False),
        "spline, 16 knots": vdiff.schedule.Spline(HIGH, LOW, knots=16, learn_ends=False),
        "monotone network, 1024": vdiff.schedule.Monotone(HIGH, LOW, learn_ends=False),
        "adaptive": vdiff.schedule.Adaptive(HIGH, LOW),
        "adaptive, first moment": vdiff.schedule.Adaptive(HIGH, LOW, first_moment=True),
    }
    say(f"{'schedule':<28}{'Var / least':>12}{'draws / best':>14}{'stratified batch':>18}")

    def show(name: str, schedule: Schedule) -> vdiff.diagnosis.Diagnosis:
        one = vdiff.diagnosis.diagnose(profile, schedule)
        say(
            f"{name:<28}{one.variance / one.least:>12.3f}"
            f"{1 / one.effective:>14.3f}{of_a_batch(schedule):>18.1f}"
        )
        return one

    diagnoses = {name: show(name, schedule) for name, schedule in rows.items()}
    for name, schedule in learned.items():
        frames = learn(schedule, options.steps, options.batch, options.lr)
        diagnoses[name] = show(name, schedule)
        if options.out is not None and name == "spline, 64 knots":
            plots.moving_schedule(options.out / "schedule.gif", frames, best)
    if options.out is not None:
        shown = ("linear", "spline, 64 knots", "monotone network, 1024", "adaptive", "cosine")
        figure = plots.variance({name: diagnoses[name] for name in shown})
        plots.save(options.out / "schedule_variance.png", figure)


if __name__ == "__main__":
    replace_unencodable()
    main()

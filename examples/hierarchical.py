"""Why the bound exists: log p(x) of a chain by prior sampling, by importance weights and by the
bound, at T = 1, 4, 16.

A chain on a mixture of two Gaussians, on each of 1 or 8 independent dimensions, whose log p is
known by quadrature on a grid; at five points x, one of them far out. Every way gets the same
number of chains, 256 of T evaluations each, and is repeated 32 times:

- prior sampling: log of the mean of p(x | z₀) over chains drawn from the model, unbiased for p(x),
  carried by the few that end at x;
- importance weights: log of the mean of p(x, z)/q(z | x) over paths drawn from data to noise. In
  one dimension this is best; but the log-weights' variance grows with dimensions, and with it goes
  the effective sample size;
- the bound: the mean of log p(x, z)/q(z | x) over as many paths: below log p(x) by KL(q ‖ p), and
  the only one that is a plain mean: no few draws carry it, and each can be a step of training.

The figure has the bias and the standard error of log p in nats per dimension, and the effective
sample size out of 256. Two minutes on one core:

    python examples/hierarchical.py --out hierarchical.png
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdiff import Prediction
from vdiff.chain import path_bound
from vdiff.cli.parser import Parser
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step, alpha
from vdiff.likelihood.importance import ImportanceBound, chain_log_prob, path_importance
from vdiff.oracle import GaussianMixture
from vdiff.plots import figure, line_style, save
from vdiff.reverse import reverse_sample
from vdiff.schedule import Linear
from vdiff.terminal import replace_unencodable, say, track
from vdiff.variance import FixedLarge

STEPS = (1, 4, 16)
DIMS = (1, 8)
CHAINS, REPLICATES = 256, 32
SCHEDULE, DECODER = Linear(6.0, -5.0), Gaussian()
DATA = GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])
POINTS = torch.tensor([-1.0, -0.4, 0.5, 1.0, 1.6], dtype=torch.float64)[
    :, None
]  # the same x in every dimension


@dataclass(frozen=True)
class Way:
    """One way to log p(x), for each point: its bias against the exact value and the error of one
    run, in nats per dimension, and its effective sample size."""

    bias: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


def model(z: Tensor, logsnr: Tensor) -> Prediction:
    """The perfect denoiser, with the variance of the forward step: the posterior's is far too
    small for one step."""
    exact = DATA(z.reshape(-1, 1), logsnr.repeat_interleave(z.shape[1]))
    return Prediction(z, logsnr, exact.output.view(z.shape), exact.parameterization, FixedLarge())


def prior_sampling(steps: int, dims: int, generator: torch.Generator) -> Tensor:
    """log p(x | z₀) of chains drawn from the model: (replicates, chains, points)."""
    z = torch.randn(REPLICATES * CHAINS, dims, dtype=torch.float64, generator=generator)
    for i in range(steps, 0, -1):
        t = torch.full((len(z),), i / steps, dtype=torch.float64)
        step = Step(SCHEDULE(t), SCHEDULE.delta(t, steps))
        z = reverse_sample(
            model(z, step.logsnr_t), step, torch.randn(z.shape, dtype=z.dtype, generator=generator)
        )
    clean = torch.tensor(SCHEDULE.logsnr_max, dtype=torch.float64)
    read = [DECODER.log_prob(x.expand_as(z), z / alpha(clean), clean) for x in POINTS]
    return torch.stack(read, 1).view(REPLICATES, CHAINS, len(POINTS))


def compare(steps: int, dims: int, seed: int = 0) -> dict[str, Way]:
    """The three ways at T = `steps` in `dims` independent dimensions."""
    chain = {"schedule": SCHEDULE, "decoder": DECODER, "steps": steps}
    exact = dims * chain_log_prob(model, POINTS, **chain)
    x, generator = POINTS.expand(-1, dims), torch.Generator().manual_seed(seed)
    blind = ImportanceBound.of(
        prior_sampling(steps, dims, generator),
        dims,
        torch.full((len(x),), REPLICATES * CHAINS * steps),
    )
    paths = path_importance(model, x, samples=CHAINS, replicates=REPLICATES, seed=seed, **chain)
    single = path_bound(
        model, x.repeat(REPLICATES * CHAINS, 1), generator=generator, **chain
    ).log_ratio
    found = {
        "prior sampling": (-blind.replicates, blind.effective_sample_size),
        "importance weights": (-paths.replicates, paths.effective_sample_size),
        "bound": (
            -single.view(REPLICATES, CHAINS, -1).mean(1),
            torch.full((len(x),), float(CHAINS)),
        ),
    }
    return {
        name: Way((values.mean(0) - exact) / dims, values.std(0) / dims, size)
        for name, (values, size) in found.items()
    }


def draw(results: dict[tuple[int, int], dict[str, Way]], path: Path) -> None:
    """Bias, standard error and effective sample size by T, a row for each number of dimensions:
    lines are medians over the points x."""
    picture, panels = figure(len(DIMS), 3, height=2.9)
    titles = {
        "bias": "bias of log p(x)",
        "standard_error": "standard error of a run",
        "effective_sample_size": "effective sample size, of 256",
    }
    for i, axes in enumerate(panels):
        dims, (part, title) = DIMS[i // 3], list(titles.items())[i % 3]
        for offset, name in enumerate(("prior sampling", "importance weights", "bound")):
            values = torch.stack([getattr(results[dims, steps][name], part) for steps in STEPS])
            place = torch.arange(len(STEPS)) + 0.16 * (offset - 1)
            style = line_style(offset)
            axes.plot(place, values.median(1).values, label=name, **style)
            points = style | {"marker": "os^"[offset], "linestyle": "none"}
            axes.plot(place, values, alpha=0.6, **points)
        axes.set(
            title=f"{title}, d = {dims}",
            xlabel="steps T",
            xticks=range(len(STEPS)),
            xticklabels=[str(steps) for steps in STEPS],
        )
        if part == "bias":
            axes.set(ylabel="nats per dimension")
            axes.set_yscale("symlog", linthresh=0.01)
            axes.axhline(0.0, color="gray", linewidth=0.8)
            axes.margins(y=0.1)
        else:
            axes.set(yscale="log", ylabel="nats per dimension" if part == "standard_error" else "")
    picture.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    save(path, panels)


def main() -> None:
    parser = Parser(description=__doc__)
    text = "the figure (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("hierarchical.png"), help=text)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    settings = [(dims, steps) for dims in DIMS for steps in STEPS]
    results = {
        (dims, steps): compare(steps, dims, options.seed)
        for dims, steps in track(settings, "setting")
    }
    draw(results, options.out)
    heads = "".join(f"{f'x = {x:g}':>26}" for x in POINTS.flatten().tolist())
    say(f"{'d':>3}{'T':>4}  {'way':<20}{heads}")
    say(f"{'':<29}" + "".join(f"{'bias ± SE (ESS)':>26}" for _ in POINTS))
    for (dims, steps), ways in results.items():
        for name, way in ways.items():
            columns = way.bias, way.standard_error, way.effective_sample_size
            cells = zip(*(column.tolist() for column in columns), strict=True)
            row = "".join(f"{f'{b:.3f} ± {e:.3f} ({n:.0f})':>26}" for b, e, n in cells)
            say(f"{dims:>3}{steps:>4}  {name:<20}{row}")
    say(
        f"the figure is in {options.out}; a bias is known to ±{1 / math.sqrt(REPLICATES):.2f} "
        f"of the standard error beside it"
    )


if __name__ == "__main__":
    replace_unencodable()
    main()

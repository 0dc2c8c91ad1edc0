"""One figure of a run of `digits.py`: digits from noise, what published losses count, and the
bound with both of its errors beside simple densities.

    python examples/digits.py --out runs/digits      # or: make demo
    python examples/face.py --run runs/digits --out docs/figures/face.png

Seconds. The samples are drawn by the run's model, the numbers are those of its results.json, and
the weightings those of `vdiff.recipe`.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import vdiff
from vdiff import plots
from vdiff.objective import Objective
from vdiff.sampling import trajectory
from vdiff.schedule import Cosine
from vdiff.terminal import replace_unencodable, say
from vdiff.times import generator_of
from vdiff.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPES = {  # rectified flow's e^(−λ/2) is that of v
    "VDM: ELBO": "vdm",
    "VDM++: sigmoid(2 − λ)": "vdmpp-sigmoid",
    "v, flow matching": "v-prediction",
    "DDPM, cosine: ε": "iddpm",
    "EDM": "edm",
    "P2": "p2",
    "min-SNR": "min-snr",
}
STEPS, ROWS, COLUMNS = 99, 6, 7


@torch.no_grad()
def from_noise(objective: Objective, shape: torch.Size) -> tuple[Tensor, list[float]]:
    """z of ROWS digits at COLUMNS steps of a chain, closer together near the data, as levels
    (rows · columns, …), the last decoded; and λ of each column."""
    decoder, ends = objective.decoder, objective.schedule
    assert decoder is not None
    schedule = Cosine(ends.logsnr_max, ends.logsnr_min)
    z = torch.randn(ROWS, *shape, generator=generator_of(0, 0, "face"))
    options = {"schedule": schedule, "generator": generator_of(0, 1, "face")}
    path = list(trajectory(objective.model, z, steps=STEPS, **options))
    stops = [round(STEPS * (1 - (1 - i / (COLUMNS - 1)) ** 2)) for i in range(COLUMNS)]
    images = [decoder.decode(path[stop][0]) for stop in stops]
    times = torch.tensor([1 - stop / STEPS for stop in stops], dtype=torch.float64)
    return torch.stack(images, 1).flatten(0, 1), schedule(times).tolist()


def draw_samples(ax: "Axes", objective: Objective, shape: torch.Size) -> None:
    images, logsnr = from_noise(objective, shape)
    title = f"digits from noise (left) in {STEPS} steps, λ = {logsnr[0]:.0f} … {logsnr[-1]:.0f}"
    plots.image_grid(ax, images, title, columns=COLUMNS, levels=objective.decoder.levels)


def draw_bits(ax: "Axes", results: dict[str, Any]) -> None:
    """Baselines as points, the bound with two standard errors of each kind."""
    baselines, bound = results["baselines"], results["bound"]["total"]
    rows = sorted(baselines.items(), key=lambda item: -item[1])
    names = [name for name, _ in rows] + ["vdiff's bound"]
    values = [value for _, value in rows] + [bound["value"]]
    place, (color, other) = len(rows), plots.COLORS[:2]
    ax.plot(values[:-1], range(len(rows)), marker="s", linestyle="none", color=other)
    for error, style in (("images", {"linewidth": 1.5}), ("monte_carlo", {"linewidth": 5})):
        ax.errorbar(
            bound["value"], place, xerr=2 * bound[error], color=color, capsize=4, marker="",
            elinewidth=style["linewidth"],
        )  # fmt: skip
    for i, value in enumerate(values):
        ax.annotate(f"{value:.2f}", (value, i), (0, 7), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=8)
    ax.set(ylim=(len(rows) + 0.5, -0.8), xlim=(min(values) - 0.4, max(values) + 0.4))
    less = rows[-1][1] - bound["value"]
    errors = f"± {bound['monte_carlo']:.3f} (Monte Carlo) ± {bound['images']:.3f} (images)"
    title = f"{bound['value']:.3f} {errors}, {less:.2f} fewer bits than the best baseline"
    plots.finish(ax, title, xlabel="bits/dim, lower is better (± 2 SE)")


def draw(path: Path, run: Run) -> None:
    results = json.loads((run.folder / "results.json").read_text("utf-8"))
    picture, (left, middle, right) = plots.figure(1, 3, height=3.6)
    draw_samples(left, run.load(), torch.Size(run.config.shape))
    recipes = {name: vdiff.recipe(recipe).weighting for name, recipe in RECIPES.items()}
    plots.weighting(recipes, ax=middle).get_legend().remove()
    bounds = [name.partition(":")[0] for name, one in recipes.items() if one.monotone]
    plots.finish(middle, f"w never rises, so a bound: {', '.join(bounds)}", legend=False)
    lines = middle.get_legend_handles_labels()
    picture.legend(*lines, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    draw_bits(right, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(path, right)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", type=Path, default=Path("runs/digits"), help="of digits.py (%(default)s)")
    add("--out", type=Path, default=Path("docs/figures/face.png"), help="file (%(default)s)")
    options = parser.parse_args(arguments)
    if not (options.run / "results.json").is_file():
        parser.error(f"--run: {options.run} has no results.json; examples/digits.py makes it")
    draw(options.out, Run(options.run))
    say(f"figure in {options.out}")


if __name__ == "__main__":
    replace_unencodable()
    main()

"""The figure of `make gpu`."""

from pathlib import Path
from typing import Any

from vdiff import plots
from vdiff.plots.schedules import DENSITY


def draw(path: Path, kept: dict[str, Any], head: str) -> None:
    """Bits/dim by step, the density of the draws that came out, and the recipes' steps."""
    picture, (learning, density, times) = plots.figure(1, 3)
    for name in (name for name in kept if name != "steps"):
        points = [
            (e["step"], e["selection_bits_per_dim"], 2 * e["selection_error"])
            for e in kept[name]["log"]
        ]
        step, bits, two = zip(*points, strict=True)
        learning.errorbar(step, bits, two, marker="o", markersize=3, label=name)
        density.plot(kept[name]["logsnr"], kept[name]["density"], label=name)
    learning.set(xlabel="step", ylabel="bits/dim (± 2 SE)", title="a small VDM on patches")
    density.set(**DENSITY | {"title": "density of the draws, after training"})
    density.set_ylim(0, 1.05 * max((line.get_ydata().max() for line in density.lines), default=1))
    names, pairs = list(kept.get("steps", {})), list(kept.get("steps", {}).values())
    for i, kind in enumerate(("float32", "bf16, compiled")):
        at = [row + 0.4 * i for row in range(len(names))]
        times.barh(at, [pair[i] for pair in pairs], height=0.4, label=kind)
    times.set_yticks([row + 0.2 for row in range(len(names))], names, fontsize=7)
    times.invert_yaxis()
    times.set(xlabel="ms", title="a step of each recipe, fewer blocks")
    for axes in (learning, density, times):
        plots.finish(axes, axes.get_title())
        axes.set_title("")
    picture.suptitle(head, fontsize=9)
    plots.save(path, learning)

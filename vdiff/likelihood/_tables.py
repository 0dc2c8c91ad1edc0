"""Estimates and curves as lines of text."""

from collections.abc import Mapping
from itertools import pairwise

from vdiff.likelihood.diagnostics import Curve, Diagnostics
from vdiff.likelihood.estimate import Estimate
from vdiff.likelihood.replicated import within

OF_MEAN = ", the mean over dimensions"


def table(parts: Mapping[str, Estimate], *, head: bool = True) -> str:
    """Estimates by name, a line each."""
    width = max(16, 1 + max(map(len, parts)))
    unit = next(iter(parts.values())).unit
    over = f"SE over {unit.example}s"
    columns = f"{unit.name:<{width}}{'value':>9}{'Monte Carlo SE':>17}{over:>17}"
    rows = [columns] if head else []
    for name, e in parts.items():
        rows.append(f"{name:<{width}}{e.value:>9.4f}{e.monte_carlo:>17.4f}{images_error(e):>17}")
    return "\n".join(rows)


def images_error(e: Estimate) -> str:
    """The standard error over images as text."""
    return f"one {e.unit.example}" if e.images is None else f"{e.images:.4f}"


def spans(e: Estimate) -> str:
    """Both 95 % intervals."""
    low, high = e.interval()
    on_these = f"{low:.4f} to {high:.4f} on these {e.unit.example}s"
    if e.images is None:
        return on_these
    low, high = e.interval(over_images=True)
    return f"{on_these}, {low:.4f} to {high:.4f} over {e.unit.example}s"


def trust(diagnostics: Diagnostics | None, costs: Mapping[str, float]) -> list[str]:
    """The relative costs and the diagnostics, a line each."""
    rows = []
    listing = ", with ".join(f"{name}: {cost:.3g}×" for name, cost in [*costs.items()][:-1])
    if listing:  # the last is all techniques, 1×
        rows.append(within(f"cost for the same error with {listing}", 2))
    if diagnostics is not None:
        size = f"effective sample size {diagnostics.effective:.0f} of {diagnostics.draws} draws"
        rows.append(f"{size}; largest draw {100 * diagnostics.largest:.2g} % of the sum")
    return rows


def by_logsnr(title: str, curve: Curve, pieces: int = 8) -> list[str]:
    """A curve in a few pieces, a line each."""
    edges = [round(i * len(curve.value) / pieces) for i in range(pieces + 1)]
    lines = [title + (OF_MEAN if curve.of_mean else "")]
    for low, high in pairwise(edges):
        ends = f"{curve.logsnr_min[low]:.1f} to {curve.logsnr_max[high - 1]:.1f}"
        lines.append(f"  {ends:<16}{curve.value[low:high].sum():>9.4f}")
    return lines

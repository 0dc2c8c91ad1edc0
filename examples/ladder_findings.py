"""What ladder.py says of its runs: the table, and findings with standard errors over seeds."""

import math
import statistics
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from torch import Tensor

QUANTILES = {"median": 0.5, "99 %": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Row:
    """What the network says of the mean, the reverse variance, the loss, and how much longer than
    the rest it trains."""

    mean: str
    variance: str
    loss: str
    times: int = 1

    def __str__(self) -> str:
        longer = f" ×{self.times}" if self.times > 1 else ""
        return f"{self.mean}/{self.variance}/{self.loss}{longer}"


# a record and its tensors for each seed
Results = dict[Row, list[tuple[dict[str, Any], dict[str, Tensor]]]]
Found = tuple[float, float] | None
CLEAR = 4  # standard errors; of three seeds, chance exceeds that once in 17 times


def over_seeds(results: Results, key: str, row: Row, other: Row | None = None) -> Found:
    """The mean over seeds and its standard error, of `row` or of `row` − `other`, which share each
    seed's batches and draws."""
    runs = [record[key] for record, _ in results[row]]
    base = [0.0] * len(runs) if other is None else [record[key] for record, _ in results[other]]
    pairs = zip(runs, base, strict=True)
    known = [a - b for a, b in pairs if a is not None and b is not None]
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else math.nan
    return (statistics.fmean(known), error) if known else None


def shown(found: Found, scale: float = 1.0) -> str:
    """The error to two digits, and the mean as far as it is known."""
    if found is None:
        return "–"
    value, error = scale * found[0], scale * found[1]
    places = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{places}f} ± {error:.{places}f}"


def render(results: Results) -> str:
    head = (
        "mean/variance/loss | 10³·mean MSE | bits/dim | 10³·MMD² | gradient "
        "norm: median | 99 % | max | diverged"
    )
    lines = [f"| {head} |", "|" + "---|" * 8]
    for row, runs in results.items():
        bits, error, distance = (
            over_seeds(results, key, row) for key in ("bits", "mean_mse", "mmd")
        )
        norms = [f"{max(record['norm'][q] for record, _ in runs):.2g}" for q in QUANTILES]
        steps = ", ".join(
            f"at step {record['diverged']}" for record, _ in runs if record["diverged"] is not None
        )
        runaway = over_seeds(results, "runaway", row)
        verdict = steps or (
            f"{100 * runaway[0]:.3g} % of samples" if runaway and runaway[0] else "no"
        )
        cells = [str(row), shown(error, 1e3), shown(bits), shown(distance, 1e3), *norms, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def winners(results: Results) -> dict[str, Row]:
    """The best row by the bound and by the samples; none where nothing is known."""
    found = {
        key: {row: v[0] for row in results if (v := over_seeds(results, key, row))}
        for key in ("bits", "mmd")
    }
    return {key: min(rows, key=rows.__getitem__) for key, rows in found.items() if rows}


def findings(results: Results) -> list[str]:
    """What the run says, with standard errors over seeds; all of it computed, so that another run
    may say the opposite."""

    def differ(a: Row, b: Row) -> dict[str, Found]:
        return {key: over_seeds(results, key, a, b) for key in ("bits", "mmd", "mean_mse")}

    def clear(gap: dict[str, Found]) -> bool:
        return all(
            (found := gap[key]) is not None and abs(found[0]) > CLEAR * found[1]
            for key in ("bits", "mmd")
        )

    def sentence(what: str, a: Row, b: Row) -> str:
        gap = differ(a, b)
        return (
            f"{what}, {a} − {b}: bits/dim {shown(gap['bits'])}, 10³·MMD² {shown(gap['mmd'], 1e3)}"
            f", 10³·mean MSE {shown(gap['mean_mse'], 1e3)}."
        )

    said, short = [], {row: runs for row, runs in results.items() if row.times == 1}
    best = winners(short)
    if len(best) == 2:
        gap = differ(best["mmd"], best["bits"])
        pairs = [found for a, b in combinations(short, 2) if clear(found := differ(a, b))]
        opposed = sum(found["bits"][0] * found["mmd"][0] < 0 for found in pairs)
        said.append(
            f"Likelihood and samples "
            f"{'part ways' if clear(gap) else 'do not clearly part ways'}: {best['bits']} has "
            f"the best bound and {best['mmd']} "
            f"the best samples; second − first: bits/dim {shown(gap['bits'])}, "
            f"10³·MMD² {shown(gap['mmd'], 1e3)}. "
            f"Of {len(pairs)} pairs of rows that differ by over {CLEAR} SE in both, the two "
            f"measures order {opposed} oppositely."
        )
    for mean in ("mean", "x", "ε"):
        said.append(
            sentence(
                "Squared error instead of the bound",
                Row(mean, "small", "MSE"),
                Row(mean, "small", "VLB"),
            )
        )
    for other in (
        Row("ε", "small", "MSE"),
        Row("ε", "large", "MSE"),
        Row("ε", "log", "hybrid_loss"),
    ):
        said.append(sentence("Learning the variance", Row("ε", "range", "hybrid_loss"), other))
    spread = []
    for name in ("output", "direct", "log"):
        runs = [record["norm"] for record, _ in results[Row("mean", name, "VLB")]]
        spread.append(
            f"{name} {min(n['max'] / n['median'] for n in runs):.2g} … "
            f"{max(n['max'] / n['median'] for n in runs):.2g}"
        )
    said.append(
        f"The largest gradient over the median one, mean/·/VLB, least and most over seeds: "
        f"{', '.join(spread)}. dK/dΣ goes with 1/Σ², met in full where the "
        "output is Σ; the softplus of direct has the slope 1 − e^(−Σ), which takes one power "
        "away: for small Σ it behaves as log does."
    )
    said += [
        sentence(f"{row.times} times the steps", row, replace(row, times=1))
        for row in results
        if row.times > 1
    ]
    by_loss = [
        (row, replace(row, loss="VLB")) for row in results if row.times > 1 and row.loss == "MSE"
    ]
    said += [
        sentence("Squared error instead of the bound, trained for longer", a, b)
        for a, b in by_loss
        if b in results
    ]
    return said

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
    said = likelihood_and_samples(results)
    for mean in ("mean", "x", "ε"):
        pair = Row(mean, "small", "MSE"), Row(mean, "small", "VLB")
        said.append(gap_between(results, "Squared error instead of the bound", *pair))
    learned = Row("ε", "range", "hybrid_loss")
    for other in (
        Row("ε", "small", "MSE"),
        Row("ε", "large", "MSE"),
        Row("ε", "log", "hybrid_loss"),
    ):
        said.append(gap_between(results, "Learning the variance", learned, other))
    said.append(gradients_by_variance(results))
    longer = [row for row in results if row.times > 1]
    for row in longer:
        shorter = replace(row, times=1)
        said.append(gap_between(results, f"{row.times} times the steps", row, shorter))
    what = "Squared error instead of the bound, trained for longer"
    pairs = [(row, replace(row, loss="VLB")) for row in longer if row.loss == "MSE"]
    return said + [gap_between(results, what, a, b) for a, b in pairs if b in results]


def gaps(results: Results, a: Row, b: Row) -> dict[str, Found]:
    """By how much two rows differ in each measure."""
    return {key: over_seeds(results, key, a, b) for key in ("bits", "mmd", "mean_mse")}


def gap_between(results: Results, what: str, a: Row, b: Row) -> str:
    gap = gaps(results, a, b)
    return (
        f"{what}, {a} − {b}: bits/dim {shown(gap['bits'])}, 10³·MMD² {shown(gap['mmd'], 1e3)}"
        f", 10³·mean MSE {shown(gap['mean_mse'], 1e3)}."
    )


def clear(gap: dict[str, Found]) -> bool:
    """Whether two rows differ by more than chance in both bound and samples."""
    return all(
        (found := gap[key]) is not None and abs(found[0]) > CLEAR * found[1]
        for key in ("bits", "mmd")
    )


def likelihood_and_samples(results: Results) -> list[str]:
    """Whether the row with the best bound has the best samples; nothing where one is unknown."""
    short = {row: runs for row, runs in results.items() if row.times == 1}
    best = winners(short)
    if len(best) < 2:
        return []
    gap = gaps(results, best["mmd"], best["bits"])
    pairs = [found for a, b in combinations(short, 2) if clear(found := gaps(results, a, b))]
    opposed = sum(found["bits"][0] * found["mmd"][0] < 0 for found in pairs)
    return [
        f"Likelihood and samples "
        f"{'part ways' if clear(gap) else 'do not clearly part ways'}: {best['bits']} has "
        f"the best bound and {best['mmd']} "
        f"the best samples; second − first: bits/dim {shown(gap['bits'])}, "
        f"10³·MMD² {shown(gap['mmd'], 1e3)}. "
        f"Of {len(pairs)} pairs of rows that differ by over {CLEAR} SE in both, the two "
        f"measures order {opposed} oppositely."
    ]


def gradients_by_variance(results: Results) -> str:
    """How much larger the largest gradient is than the median one, by the unit of Σ."""
    spread = []
    for name in ("output", "direct", "log"):
        runs = [record["norm"] for record, _ in results[Row("mean", name, "VLB")]]
        spread.append(
            f"{name} {min(n['max'] / n['median'] for n in runs):.2g} … "
            f"{max(n['max'] / n['median'] for n in runs):.2g}"
        )
    return (
        f"The largest gradient over the median one, mean/·/VLB, least and most over seeds: "
        f"{', '.join(spread)}. dK/dΣ goes with 1/Σ², met in full where the "
        "output is Σ; the softplus of direct has the slope 1 − e^(−Σ), which takes one power "
        "away: for small Σ it behaves as log does."
    )

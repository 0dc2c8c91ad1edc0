"""What two_moons.py found, in numbers and in words."""

import math
from typing import TYPE_CHECKING

from torch import Tensor
from two_moons_figures import Tensors

if TYPE_CHECKING:
    from two_moons import Settings

Found = dict[str, tuple[float, float]]


def over_seeds(values: Tensor) -> tuple[float, float]:
    """Mean and standard error over seeds, the first dimension."""
    return values.double().mean(0).item(), (values.double().std(0) / len(values) ** 0.5).item()


def findings(
    settings: "Settings", runs: dict[str, Tensors], spreads: Tensors, sums: Tensors
) -> Found:
    """The numbers of the last sentences: each (mean, standard error over seeds)."""
    found: Found = {}
    for quantity in ("value", "gradient"):
        for suffix in ("", ", x fixed"):
            ratio = (spreads[f"{quantity} MC{suffix}"] / spreads[f"{quantity} RB{suffix}"])[:, -1]
            for word, q in (("least", 0), ("median", 0.5), ("most", 1)):
                found[f"{quantity} ratio{suffix}, {word}"] = over_seeds(ratio.quantile(q, 1))
        both = [spreads[f"{quantity} {name}"][:, -1].sum(1) for name in ("MC", "RB")]
        found[f"{quantity} ratio, summed over t"] = over_seeds(both[0] / both[1])
        for i in (0, -1):
            by_t, key = spreads[f"{quantity} RB"][:, i], f"{quantity} of RB, most over least"
            found[f"{key}, step {settings.at[i]}"] = over_seeds(by_t.amax(1) / by_t.amin(1))
        theory = spreads[f"{quantity} MC"][:, -1] / spreads[f"{quantity} MC, theory"][:, -1]
        found[f"{quantity} MC over theory"] = over_seeds(theory.mean(1))
    for j, chain in enumerate(settings.chains):
        one = sums["one step, MC"] / sums["one step, RB"]
        found[f"one step over T = {chain}"] = over_seeds(one[:, j])
        found[f"path over T = {chain}"] = over_seeds((sums["path, RB"] / sums["path, MC"])[:, j])
    for i in settings.compared:
        for key in ("bound", "mmd"):
            for name, run in runs.items():
                found[f"{key} {name}, step {settings.at[i]}"] = over_seeds(run[key][:, i])
            difference = runs["MC"][key][:, i] - runs["RB"][key][:, i]
            found[f"{key} MC − RB, step {settings.at[i]}"] = over_seeds(difference)
    return found


def table(settings: "Settings", paths: Tensors) -> str:
    """The variances along a path beside those of one random step."""
    rows = [
        "variance of an estimate of the bound, x fixed, nats²",
        f"{'T':>6}{'one step, RB':>16}{'one step, MC':>16}{'path, RB':>12}{'path, MC':>12}",
    ]
    for j, chain in enumerate(settings.chains):
        cells = {"one step, RB": 16, "one step, MC": 16, "path, RB": 12, "path, MC": 12}
        row = "".join(f"{paths[key][:, j].mean():>{width}.4g}" for key, width in cells.items())
        rows.append(f"{chain:>6}{row}")
    return "\n".join(rows)


def written(found: tuple[float, float]) -> str:
    """Mean ± standard error, to two digits of the error."""
    mean, error = found
    if abs(mean) >= 1e5:
        return f"({mean:.2e} ± {error:.0e})".replace("e+0", "e")
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 2
    return f"{mean:,.{digits}f} ± {error:,.{digits}f}"


def verdict(found: tuple[float, float], unit: str) -> str:
    """Whether two trainings differ, by the standard error of their paired difference, Monte Carlo
    minus Rao-Blackwell."""
    mean, error = found
    better = "Rao-Blackwell" if mean > 0 else "Monte Carlo"
    words = "are not told apart" if abs(mean) <= 2 * error else f"differ: {better} is better"
    count = f", {mean / error:+.1f} standard errors" if error > 0 else ""
    return f"{words} (MC − RB = {written(found)}{unit}{count})"


def sentences(settings: "Settings", seeds: int, found: Found) -> str:
    """The findings in words."""

    def spanned(key: str) -> str:
        words = ("least", "median", "most")
        return ", ".join(f"{word} {written(found[f'{key}, {word}'])}" for word in words)

    def by_length(key: str) -> str:
        over = {n: written(found[f"{key} over T = {n}"]) for n in settings.chains}
        return ", ".join(f"{ratio} (T = {n})" for n, ratio in over.items())

    def when(key: str, unit: str) -> str:
        parts = []
        for step in (settings.at[i] for i in settings.compared):
            each = {name: found[f"{key} {name}, step {step}"] for name in ("RB", "MC")}
            both = ", ".join(f"{name} {written(value)}" for name, value in each.items())
            found_it = verdict(found[f"{key} MC − RB, step {step}"], unit)
            parts.append(f"after {step:,} steps {both}; they {found_it}")
        return ".\n  ".join(parts)

    def total(key: str) -> str:
        return written(found[f"{key}, summed over t"])

    over_theory = written(found["value MC over theory"])
    before, after = (
        written(found[f"value of RB, most over least, step {step}"])
        for step in (0, settings.at[-1])
    )
    return f"""Findings: {seeds} seeds, ± standard error over seeds; \
variances with networks trained by RB for {settings.steps:,} steps, T = {settings.chain}.
- Variance of one draw, MC over RB, at {len(settings.chain_steps)} t: {spanned("value ratio")}; \
with x fixed: {spanned("value ratio, x fixed")}.
  It is no constant but 1 + 2 E[K]/Var[K] \
(MC's variance is {over_theory} times Var_RB + 2 E[K]). K goes like 1/T,
  so the ratio goes like T: for one random step, x fixed, {by_length("one step")}. It diverges as
  K → 0, which the best network's K does at the noisy end. RB's variance varies by a factor of
  {before} over t before the training and {after} after it.
- The same for the network's gradient: {spanned("gradient ratio")}; \
with x fixed: {spanned("gradient ratio, x fixed")}.
  Summed over t, which is what a batch with stratified t has: \
{total("gradient ratio")}, for the value {total("value ratio")}.
  The raw term differs from MC in its value alone: what sets them apart knows no weights.
- Along one whole path, variance of the sum of KLs over that of the sum of log-ratios: \
{by_length("path")}:
  where it is above 1 the order is turned, for all the KLs share one path, \
of which each has forgotten what the others know.
- Trained by RB or by MC, the held-out bound:
  {when("bound", " nats")}.
- MMD² of their samples:
  {when("mmd", "")}."""

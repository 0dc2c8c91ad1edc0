"""What an evaluation says: the bound and its parts with their errors, how it was measured, and
what to beware of."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from vdiff._validate import require, validated
from vdiff.likelihood.diagnostics import Curve, Diagnostics, examine, warnings_of
from vdiff.likelihood.estimate import Estimate, difference
from vdiff.likelihood.measurement import Evaluation, Measurement
from vdiff.likelihood.protocol import protocol_of
from vdiff.likelihood.replicated import Replicated, listed

PARTS = ("prior", "diffusion", "reconstruction", "total")


@dataclass(frozen=True)
class Beside:
    """Another number of the same model on the same images beside the bound, bits/dim; `gap` is the
    bound minus it, paired by image.

    >>> print(Beside(Estimate(1.4, 0.001, 0.02), Estimate(0.1, 0.002, 0.001), {}).gap)
    0.1000 ± 0.0020 (Monte Carlo) ± 0.0010 (images)
    """

    estimate: Estimate
    gap: Estimate
    protocol: dict[str, object]
    label: str = ""


@dataclass(frozen=True)
class Report:
    """The bound and its parts as `Estimate`s in bits/dim, and what was done to get them.

    `savings` holds, by name, how many network evaluations the same error would take relative to
    all pieces together; `warnings` what keeps the number from being trusted; `by_image` the bound
    of each image, bits/dim; `others` what `beside` added.

    >>> part = Estimate(0.5, 0.001, 0.01)
    >>> print(Report(part, part, part, Estimate(1.5, 0.002, 0.02), {"draws": 8}))
    bits/dim            value   Monte Carlo SE   SE over images
    prior              0.5000           0.0010           0.0100
    diffusion          0.5000           0.0010           0.0100
    reconstruction     0.5000           0.0010           0.0100
    total              1.5000           0.0020           0.0200
    total, 95 %: 1.4961 to 1.5039 on these images, 1.4608 to 1.5392 over images
    draws 8
    """

    prior: Estimate
    diffusion: Estimate
    reconstruction: Estimate
    total: Estimate
    protocol: dict[str, object]
    diagnostics: Diagnostics | None = None
    savings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_image: Tensor | None = field(default=None, compare=False)
    others: dict[str, Beside] = field(default_factory=dict)

    @validated
    def beside(self, name: str, found: Replicated) -> "Report":
        """This report with another estimate of −log p of the same images in the same order, and
        with the bound's gap to it.

        The gap's error over images is paired: what an image does to both cancels. Of the ODE's
        likelihood, which is another model's than the bound's, it may have either sign.

        Args:
            name: what stands in the table, for instance "ODE, uniform dequantisation".
            found: by `dequantized_ode`, `ode_likelihood`, `path_importance` or `immse`.

        Raises:
            ValueError: for another number of images or dimensions, and other data where both have
                its hash.

        >>> bits = torch.tensor([1.0, 2.0])
        >>> total = Estimate(1.5, 0.0, 0.5, count=2)
        >>> report = Report(total, total, total, total, {"shape": [1]}, by_image=bits)
        >>> report.beside("the same", Replicated(bits[None] * math.log(2), 1, bits, exact=True)).others["the same"].gap.value
        0.0
        """
        known = "no images" if self.by_image is None else str(len(self.by_image))
        images = str(len(found.nats))
        require(images == known, "found", f"be of the report's images, {known}", images)
        assert self.by_image is not None
        for word, came in (("shape", found.dims), ("data", found.protocol.get("data"))):
            own = self.protocol.get(word)
            own = math.prod(own) if isinstance(own, list) else own
            hint = "continuous x of the same images has another hash: dequantized_ode takes levels"
            same = None in (own, came) or own == came
            hint = hint if word == "data" else ""
            require(same, "found", f"be of the same {word}, {own}", came, hint)
        estimate = found.estimate
        off = self.by_image - found.bits_per_dim.to(self.by_image)
        spread = off.std().item() / math.sqrt(len(off)) if len(off) > 1 else None
        gap = difference(self.total, estimate, off.mean().item(), spread)
        other = Beside(estimate, gap, found.protocol, found.label)
        return replace(self, others=self.others | {name: other})

    def __str__(self) -> str:
        rows = [
            table({name: getattr(self, name) for name in PARTS}),
            f"total, 95 %: {spans(self.total)}",
        ]
        rows += [*trust(self.diagnostics, self.savings), *listed(self.protocol)]
        for name, other in self.others.items():
            rows += ["", table({name: other.estimate, "bound minus this": other.gap}, head=False)]
            rows += [f"95 %: {spans(other.estimate)}{other.label}", *listed(other.protocol)]
        return "\n".join([*rows, *(f"WARNING: {w}" for w in self.warnings)])

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        others = {
            name: {
                "estimate": plain(one.estimate),
                "gap": plain(one.gap),
                "label": one.label,
                "protocol": one.protocol,
            }
            for name, one in self.others.items()
        }
        return {
            "unit": "bits/dim",
            **{name: plain(getattr(self, name)) for name in PARTS},
            **_rest(self),
            "others": others,
        }


@dataclass(frozen=True)
class Comparison:
    """By how much the bound of the first model lies above that of the second, bits/dim, on the
    same images, times and noise.

    `curve` is the difference by log-SNR.

    >>> print(Comparison(Estimate(-0.02, 0.001, 0.004), {"draws": 8}))
    difference, first − second: -0.0200 ± 0.0010 (Monte Carlo) ± 0.0040 (images) bits/dim
    95 %: -0.0220 to -0.0180 on these images, -0.0278 to -0.0122 over images
    draws 8
    """

    difference: Estimate
    protocol: dict[str, object]
    diagnostics: Diagnostics | None = None
    savings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def curve(self) -> Curve | None:
        """The difference by log-SNR."""
        return None if self.diagnostics is None else self.diagnostics.curve

    def __str__(self) -> str:
        rows = [
            f"difference, first − second: {self.difference} bits/dim",
            f"95 %: {spans(self.difference)}",
        ]
        if self.curve is not None:
            rows.append("by log-SNR: " + by_logsnr(self.curve))
        return "\n".join(
            [*rows, *listed(self.protocol), *(f"WARNING: {w}" for w in self.warnings)]
        )

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {"unit": "bits/dim", "difference": plain(self.difference), **_rest(self)}


class Outcome(NamedTuple):
    """What reports are made of; the estimates are those of prior, diffusion, reconstruction and
    total."""

    estimates: list[Estimate]
    protocol: dict[str, object]
    diagnostics: Diagnostics
    savings: dict[str, float]
    warnings: list[str]
    by_image: Tensor


def outcome(run: Evaluation, found: Measurement, extra: Mapping[str, object]) -> Outcome:
    """The outcome of a finished evaluation. Warns of what it lists."""
    seen = examine(run, found)
    said = warnings_of(run, found, seen)
    for text in said:
        warnings.warn(f"{run.integrand.name}: {text}", stacklevel=4)
    parts, by_image = (
        found.terms.estimates(run.scale, found.first),
        found.terms.mean[3] * run.scale,
    )
    protocol, savings = protocol_of(run, found, extra), savings_of(run, found)
    return Outcome(parts, protocol, seen, savings, said, by_image)


def savings_of(run: Evaluation, found: Measurement) -> dict[str, float]:
    """Network evaluations for the same error with the first pieces alone, over those with all.

    What the pilot cannot foresee, the noise of few times in a grid, is what was measured beyond
    its last variance; it is the same for each.
    """
    expected = run.design.variance
    if not expected:
        return {}
    last = list(expected.values())[-1]
    rest = max(0.0, found.terms.variances()[1].mean().item() * run.draws - last)
    return (
        {name: (v + rest) / (last + rest) for name, v in expected.items()}
        if last + rest > 0
        else {}
    )


def table(parts: Mapping[str, Estimate], *, head: bool = True) -> str:
    """Estimates by name, a line each."""
    width = max(16, 1 + max(map(len, parts)))
    rows = (
        [f"{'bits/dim':<{width}}{'value':>9}{'Monte Carlo SE':>17}{'SE over images':>17}"]
        if head
        else []
    )
    for name, e in parts.items():
        images = "one image" if e.images is None else f"{e.images:.4f}"
        rows.append(f"{name:<{width}}{e.value:>9.4f}{e.monte_carlo:>17.4f}{images:>17}")
    return "\n".join(rows)


def spans(e: Estimate) -> str:
    """Both 95 % intervals."""
    low, high = e.interval()
    on_these = f"{low:.4f} to {high:.4f} on these images"
    if e.images is None:
        return on_these
    low, high = e.interval(over_images=True)
    return f"{on_these}, {low:.4f} to {high:.4f} over images"


def trust(seen: Diagnostics | None, savings: Mapping[str, float]) -> list[str]:
    """The diagnostics and the savings, a line each."""
    rows = []
    if savings:
        rows.append(
            "evaluations for the same error, with no more than: "
            + ", ".join(f"{name} {v:.2f}" for name, v in savings.items())
        )
    if seen is not None:
        rows.append(
            f"{seen.draws} draws, worth {seen.effective:.0f}; the largest is {seen.largest:.2g} of their sum"
        )
        rows.append("diffusion by log-SNR: " + by_logsnr(seen.curve))
    return rows


def by_logsnr(curve: Curve, pieces: int = 8) -> str:
    """A curve in a few pieces, as text."""
    ends = [round(i * len(curve.value) / pieces) for i in range(pieces + 1)]
    shown = []
    for low, high in pairwise(ends):
        shown.append(
            f"[{curve.logsnr_min[low]:.1f}, {curve.logsnr_max[high - 1]:.1f}] {curve.value[low:high].sum():.4f}"
        )
    return ", ".join(shown)


def _rest(report: Report | Comparison) -> dict[str, object]:
    seen = report.diagnostics
    curve = None if seen is None else {k: _plain(v.tolist()) for k, v in vars(seen.curve).items()}
    known = (
        None
        if seen is None
        else {
            "effective": seen.effective,
            "largest": seen.largest,
            "draws": seen.draws,
            "curve": curve,
        }
    )
    return {
        "diagnostics": known,
        "savings": report.savings,
        "warnings": report.warnings,
        "protocol": report.protocol,
    }


def plain(e: Estimate) -> dict[str, object]:
    """As JSON has it: no NaN."""
    return {
        word: None if isinstance(v, float) and math.isnan(v) else v
        for word, v in asdict(e).items()
    }


def _plain(values: list[float]) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if math.isnan(v) else v for v in values]


__all__ = ["Beside", "Comparison", "Report"]

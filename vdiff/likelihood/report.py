"""Results of an evaluation: the bound and its parts with their errors, how they were measured, and
warnings."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from html import escape
from itertools import pairwise

from torch import Tensor

from vdiff import _html
from vdiff._validate import require, validated
from vdiff.likelihood.diagnostics import Curve, Diagnostics, examine, warnings_of
from vdiff.likelihood.estimate import Estimate, difference
from vdiff.likelihood.protocol import evaluation_protocol
from vdiff.likelihood.replicated import Replicated, as_text, listed, within
from vdiff.likelihood.stages import Evaluation
from vdiff.likelihood.tally import Tally

PARTS = ("prior", "diffusion", "reconstruction", "total")


@dataclass(frozen=True)
class Reference:
    """Another estimate of −log p for the same model and images, bits/dim. `gap` is the bound minus
    this estimate, paired by image.

    >>> print(Reference(Estimate(1.4, 0.001, 0.02), Estimate(0.1, 0.002, 0.001), {}).gap)
    0.1000 ± 0.0020 (Monte Carlo) ± 0.0010 (images)
    """

    estimate: Estimate
    gap: Estimate
    protocol: dict[str, object]
    label: str = ""

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return vars(self) | {"estimate": plain(self.estimate), "gap": plain(self.gap)}


@dataclass(frozen=True)
class Report:
    """The bound and its parts as `Estimate`s in bits/dim, and what was done to get them.

    Attributes:
        protocol: everything from which the numbers can be computed again.
        diagnostics: how far the numbers can be trusted.
        relative_costs: network evaluations for the same error with the first techniques alone,
            by name, relative to all techniques.
        warnings: what keeps the number from being trusted.
        by_image: the bound of each image, bits/dim.
        references: other estimates, from `with_reference`.

    >>> part = Estimate(0.5, 0.001, 0.01)
    >>> print(Report(part, part, part, Estimate(1.5, 0.002, 0.02), {"draws": 8}))
    bits/dim            value   Monte Carlo SE   SE over images
    prior              0.5000           0.0010           0.0100
    diffusion          0.5000           0.0010           0.0100
    reconstruction     0.5000           0.0010           0.0100
    total              1.5000           0.0020           0.0200
    total, 95 %: 1.4961 to 1.5039 on these images, 1.4608 to 1.5392 over images
    protocol
      draws  8
    """

    prior: Estimate
    diffusion: Estimate
    reconstruction: Estimate
    total: Estimate
    protocol: dict[str, object]
    diagnostics: Diagnostics | None = None
    relative_costs: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    by_image: Tensor | None = field(default=None, compare=False)
    references: dict[str, Reference] = field(default_factory=dict)

    @validated
    def with_reference(self, name: str, estimate: Replicated) -> "Report":
        """This report with another estimate of −log p of the same images in the same order, and
        with the bound's gap to it.

        The gap's error over images is paired: what an image does to both cancels. The gap to the
        ODE's likelihood may have either sign, since the ODE is another model than the bound's.

        Args:
            name: its name in the table, for instance "ODE, uniform dequantisation".
            estimate: of `dequantized_ode`, `ode_likelihood`, `path_importance` or `immse`.

        Raises:
            ValueError: for another number of images or dimensions, and for other data where both
                have its hash.

        >>> bits = torch.tensor([1.0, 2.0])
        >>> total = Estimate(1.5, 0.0, 0.5, count=2)
        >>> report = Report(total, total, total, total, {"shape": [1]}, by_image=bits)
        >>> same = Replicated(bits[None] * math.log(2), 1, bits, exact=True)
        >>> report.with_reference("the same", same).references["the same"].gap.value
        0.0
        """
        self._check_reference(estimate)
        assert self.by_image is not None
        off = self.by_image - estimate.bits_per_dim.to(self.by_image)
        spread = off.std().item() / math.sqrt(len(off)) if len(off) > 1 else None
        gap = difference(self.total, estimate.estimate, off.mean().item(), spread)
        reference = Reference(estimate.estimate, gap, estimate.protocol, estimate.label)
        return replace(self, references=self.references | {name: reference})

    def _check_reference(self, estimate: Replicated) -> None:
        images = "no images" if self.by_image is None else str(len(self.by_image))
        count = str(len(estimate.nats))
        require(images == count, "estimate", f"be of the report's images, {images}", count)
        for word, came in (("shape", estimate.dims), ("data", estimate.protocol.get("data"))):
            own = self.protocol.get(word)
            own = math.prod(own) if isinstance(own, list) else own
            hint = "continuous x of the same images has another hash: dequantized_ode takes levels"
            hint = hint if word == "data" else ""
            same = None in (own, came) or own == came
            require(same, "estimate", f"be of the same {word}, {own}", came, hint)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in PARTS}
        rows = [table(parts), within(f"total, 95 %: {spans(self.total)}", 2)]
        rows += trust(self.diagnostics, self.relative_costs)
        if self.diagnostics is not None:
            rows += by_logsnr("diffusion by log-SNR", self.diagnostics.curve)
        rows += listed(self.protocol)
        for name, other in self.references.items():
            rows += ["", table({name: other.estimate, "bound minus this": other.gap}, head=False)]
            rows.append(within(f"95 %: {spans(other.estimate)}{other.label}", 2))
            rows += listed(other.protocol)
        return "\n".join([*rows, *(within(f"WARNING: {w}", 2) for w in self.warnings)])

    def _repr_html_(self) -> str:
        parts = {name: getattr(self, name) for name in PARTS}
        for name, other in self.references.items():
            parts |= {name: other.estimate, "bound minus this": other.gap}
        return in_html(parts, self.total, self)

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        parts = {name: plain(getattr(self, name)) for name in PARTS}
        references = {name: reference.asdict() for name, reference in self.references.items()}
        return {"unit": "bits/dim", **parts, **_common(self), "references": references}


@dataclass(frozen=True)
class Comparison:
    """The bound of the first model minus that of the second, bits/dim, on the same images, times
    and noise.

    >>> print(Comparison(Estimate(-0.02, 0.001, 0.004), {"draws": 8}))
    difference, first − second: -0.0200 ± 0.0010 (Monte Carlo) ± 0.0040 (images)
      bits/dim
    95 %: -0.0220 to -0.0180 on these images, -0.0278 to -0.0122 over images
    protocol
      draws  8
    """

    difference: Estimate
    protocol: dict[str, object]
    diagnostics: Diagnostics | None = None
    relative_costs: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def curve(self) -> Curve | None:
        """The difference by log-SNR."""
        return None if self.diagnostics is None else self.diagnostics.curve

    def __str__(self) -> str:
        rows = [within(f"difference, first − second: {self.difference} bits/dim", 2)]
        rows.append(within(f"95 %: {spans(self.difference)}", 2))
        if self.curve is not None:
            rows += by_logsnr("difference by log-SNR", self.curve)
        rows += [*listed(self.protocol), *(within(f"WARNING: {w}", 2) for w in self.warnings)]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        return in_html({"first − second": self.difference}, self.difference, self)

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {"unit": "bits/dim", "difference": plain(self.difference), **_common(self)}


def report_of(evaluation: Evaluation, tally: Tally) -> Report:
    """The report of a finished evaluation. Warns of what it lists."""
    diagnostics = examine(evaluation, tally)
    doubts = warnings_of(evaluation, tally, diagnostics)
    for text in doubts:
        warnings.warn(f"{evaluation.integrand.name}: {text}", stacklevel=4)
    prior, diffusion, reconstruction, total = tally.terms.estimates(evaluation.scale, tally.first)
    protocol, costs = evaluation_protocol(evaluation, tally), relative_costs(evaluation, tally)
    by_image = tally.terms.mean[3] * evaluation.scale
    parts = prior, diffusion, reconstruction, total
    return Report(*parts, protocol, diagnostics, costs, doubts, by_image)


def relative_costs(evaluation: Evaluation, tally: Tally) -> dict[str, float]:
    """Network evaluations for the same error with the first techniques alone, relative to all.

    The pilot does not see the noise of few times in a grid. It is what was measured beyond the
    pilot's last variance, and it is the same for each technique.
    """
    expected = evaluation.fitted.variance
    if not expected:
        return {}
    last = list(expected.values())[-1]
    rest = max(0.0, tally.terms.variances()[1].mean().item() * evaluation.draws - last)
    if last + rest == 0:
        return {}
    return {name: (v + rest) / (last + rest) for name, v in expected.items()}


def table(parts: Mapping[str, Estimate], *, head: bool = True) -> str:
    """Estimates by name, a line each."""
    width = max(16, 1 + max(map(len, parts)))
    columns = f"{'bits/dim':<{width}}{'value':>9}{'Monte Carlo SE':>17}{'SE over images':>17}"
    rows = [columns] if head else []
    for name, e in parts.items():
        rows.append(f"{name:<{width}}{e.value:>9.4f}{e.monte_carlo:>17.4f}{images_error(e):>17}")
    return "\n".join(rows)


def images_error(e: Estimate) -> str:
    """The standard error over images as text."""
    return "one image" if e.images is None else f"{e.images:.4f}"


def spans(e: Estimate) -> str:
    """Both 95 % intervals."""
    low, high = e.interval()
    on_these = f"{low:.4f} to {high:.4f} on these images"
    if e.images is None:
        return on_these
    low, high = e.interval(over_images=True)
    return f"{on_these}, {low:.4f} to {high:.4f} over images"


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
    lines = [title]
    for low, high in pairwise(edges):
        ends = f"{curve.logsnr_min[low]:.1f} to {curve.logsnr_max[high - 1]:.1f}"
        lines.append(f"  {ends:<16}{curve.value[low:high].sum():>9.4f}")
    return lines


def in_html(parts: Mapping[str, Estimate], total: Estimate, of: Report | Comparison) -> str:
    """Estimates, their curve by log-SNR, how far to trust them, and the protocol."""
    rows = [
        (name, f"{e.value:.4f}", f"{e.monte_carlo:.4f}", images_error(e))
        for name, e in parts.items()
    ]
    head = ("bits/dim", "value", "± Monte Carlo", "± images")
    lines = [f"95 %: {spans(total)}", *trust(of.diagnostics, of.relative_costs)]
    html = [_html.table(rows, head)]
    if of.diagnostics is not None:
        curve = of.diagnostics.curve
        middle = 0.5 * (curve.logsnr_min + curve.logsnr_max)
        html.append(_html.curve(middle, curve.value, "bits/dim by log-SNR, noise to data"))
    html += [f"<div>{escape(line)}</div>" for line in lines]
    html += [f"<div><b>WARNING: {escape(text)}</b></div>" for text in of.warnings]
    facts = {word: None if v is None else as_text(v) for word, v in of.protocol.items()}
    return "".join([*html, _html.details("protocol", facts)])


def _common(report: Report | Comparison) -> dict[str, object]:
    diagnostics: dict[str, object] | None = None
    if report.diagnostics is not None:
        curve = {k: _finite(v.tolist()) for k, v in vars(report.diagnostics.curve).items()}
        diagnostics = vars(report.diagnostics) | {"curve": curve}
    common = {name: getattr(report, name) for name in ("relative_costs", "warnings", "protocol")}
    return {"diagnostics": diagnostics, **common}


def plain(e: Estimate) -> dict[str, object]:
    """As plain data, with None for NaN, which JSON does not have."""
    values = asdict(e)
    return dict(zip(values, _finite(list(values.values())), strict=True))


def _finite(values: list[float | None]) -> list[float | None]:
    return [None if v is not None and math.isnan(v) else v for v in values]

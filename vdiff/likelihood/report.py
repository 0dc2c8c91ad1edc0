"""Results of an evaluation: the bound and its parts with their errors, how they were measured, and
warnings."""

import math
import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vdiff._diffusion import Unit
from vdiff._precision import to_float64
from vdiff._validate import require, validated
from vdiff.gaussian import bits_per_dim
from vdiff.likelihood._bytes import count_of, in_texts, protocol_of_bytes
from vdiff.likelihood._formats import details, in_html, plain
from vdiff.likelihood._tables import by_logsnr, spans, table, trust
from vdiff.likelihood.diagnostics import Curve, Diagnostics, examine, relative_costs, warnings_of
from vdiff.likelihood.estimate import Estimate, difference, spread_error
from vdiff.likelihood.protocol import evaluation_protocol
from vdiff.likelihood.replicated import Replicated, listed, within
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
    """The bound and its parts as `Estimate`s in bits/dim, over tokens in bits/token, and what was
    done to get them.

    Attributes:
        protocol: everything from which the numbers can be computed again.
        diagnostics: how far the numbers can be trusted.
        relative_costs: network evaluations for the same error with the first techniques alone,
            by name, relative to all techniques.
        warnings: what keeps the number from being trusted.
        by_image: the bound of each image, bits per dimension that it models; 0 where it models
            none.
        dims: the number of modelled dimensions, or that of each image where they differ. The
            estimates are then ratios of sums: the bits of all images over the dimensions of all.
        references: other estimates, from `with_reference`.
        bytes: those counted in the texts: in all, or of each text.

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
    dims: int | Tensor | None = field(default=None, compare=False)
    bytes: int | Tensor | None = field(default=None, compare=False)

    @property
    def bits_per_token(self) -> Estimate:
        """The bound in bits per token: each token is a dimension."""
        return self.total

    @property
    def nats(self) -> Estimate:
        """The mean bound of an image or text, nats."""
        _, dims = self._sums
        unit = Unit(f"nats/{self.total.unit.example}", self.total.unit.example)
        return self._per(to_float64(dims > 0), 1.0, unit)

    @property
    def bits_per_byte(self) -> Estimate:
        """The bits of all texts over the bytes counted in them. The error over texts is that of
        this ratio. Of bytes counted in all, it takes those of a text in proportion to its tokens,
        and comes out a little too large where longer words have more bits.

        Raises ValueError if the bytes were not given."""
        hint = "evaluate(model, texts, bytes=[len(text.encode()) for text in documents])"
        require(self.bytes is not None, "bytes", "be given to evaluate", None, hint)
        _, dims = self._sums
        counted = self.bytes
        if not isinstance(counted, Tensor):
            assert counted is not None
            counted = dims * (counted / dims.sum())
        return self._per(to_float64(counted), math.log(2), Unit("bits/byte", "text"))

    @property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """Nats and dimensions of each image, in float64."""
        require(self.by_image is not None, "by_image", "be known", None)
        assert self.by_image is not None
        dims = torch.as_tensor(self.dims).to(self.by_image).expand_as(self.by_image)
        return self.by_image * dims * math.log(2), dims

    def _per(self, counts: Tensor, nats: float, unit: Unit) -> Estimate:
        """The sum of the bound over that of `counts`, one for each image, in a unit of so many
        nats, with the errors of a ratio."""
        total, dims = self._sums
        scale, per = 1 / (counts.mean().item() * nats), math.log(2) * dims.mean().item()
        spread = None
        if self.total.images is not None:
            spread = spread_error(total, counts).item() * scale
        return replace(
            self.total, value=total.mean().item() * scale, images=spread, unit=unit,
            monte_carlo=self.total.monte_carlo * per * scale,
        )  # fmt: skip

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
        dims = self.dims if isinstance(self.dims, Tensor) else None
        if dims is not None:
            off = off * dims / to_float64(dims).mean()
        counted = len(off) if dims is None else int((dims > 0).sum())
        spread = spread_error(off, dims).item() if counted > 1 else None
        gap = difference(self.total, estimate.estimate, off.mean().item(), spread)
        reference = Reference(estimate.estimate, gap, estimate.protocol, estimate.label)
        return replace(self, references=self.references | {name: reference})

    def _check_reference(self, estimate: Replicated) -> None:
        images = "no images" if self.by_image is None else str(len(self.by_image))
        count = str(len(estimate.nats))
        require(images == count, "estimate", f"be of the report's images, {images}", count)
        shape = self.protocol.get("shape")
        own = math.prod(shape) if isinstance(shape, list) and self.dims is None else self.dims
        if isinstance(own, Tensor) or isinstance(estimate.dims, Tensor):
            same = own is not None and bool((torch.as_tensor(estimate.dims) == own).all())
            modelled = "be of the dimensions that each image models"
            require(same, "estimate", modelled, "others", "Replicated(…, dims=report.dims)")
        elif own is not None:
            require(
                own == estimate.dims, "estimate", f"be of the same shape, {own}", estimate.dims
            )
        data, came = self.protocol.get("data"), estimate.protocol.get("data")
        hint = "continuous x of the same images has another hash: dequantized_ode takes levels"
        same = None in (data, came) or data == came
        require(same, "estimate", f"be of the same data, {data}", came, hint)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in PARTS}
        rows = [table(parts), within(f"total, 95 %: {spans(self.total)}", 2), *self._by_bytes]
        rows += trust(self.diagnostics, self.relative_costs)
        if self.diagnostics is not None:
            rows += by_logsnr("diffusion by log-SNR", self.diagnostics.curve)
        rows += listed(self.protocol)
        for name, other in self.references.items():
            rows += ["", table({name: other.estimate, "bound minus this": other.gap}, head=False)]
            rows.append(within(f"95 %: {spans(other.estimate)}{other.label}", 2))
            rows += listed(other.protocol)
        return "\n".join([*rows, *(within(f"WARNING: {w}", 2) for w in self.warnings)])

    @property
    def _by_bytes(self) -> list[str]:
        """Bits per byte as lines of text."""
        if self.bytes is None:
            return []
        e = self.bits_per_byte
        per = f"bits/byte: {e}; {count_of(self.bytes):,} bytes counted"
        return [within(per, 2), within(f"bits/byte, 95 %: {spans(e)}", 2)]

    def _repr_html_(self) -> str:
        parts = {name: getattr(self, name) for name in PARTS}
        parts |= {} if self.bytes is None else {"total, bits/byte": self.bits_per_byte}
        for name, other in self.references.items():
            parts |= {name: other.estimate, "bound minus this": other.gap}
        return in_html(parts, self.total, self)

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        parts = {name: plain(getattr(self, name)) for name in PARTS}
        references = {name: reference.asdict() for name, reference in self.references.items()}
        if self.bytes is not None:
            per_byte = {"bits/byte": plain(self.bits_per_byte), "bytes": count_of(self.bytes)}
            parts |= per_byte  # type: ignore[arg-type]
        unit = self.total.unit.name
        return {"unit": unit, **parts, **details(self), "references": references}


@dataclass(frozen=True)
class Comparison:
    """The bound of the first model minus that of the second, bits/dim (over tokens bits/token), on
    the same images, times and noise.

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
    bits_per_byte: Estimate | None = None  # where the bytes of the texts were given

    @property
    def curve(self) -> Curve | None:
        """The difference by log-SNR."""
        return None if self.diagnostics is None else self.diagnostics.curve

    def __str__(self) -> str:
        unit = self.difference.unit.name
        rows = [within(f"difference, first − second: {self.difference} {unit}", 2)]
        rows.append(within(f"95 %: {spans(self.difference)}", 2))
        if self.bits_per_byte is not None:
            rows.append(within(f"bits/byte: {self.bits_per_byte}", 2))
            rows.append(within(f"bits/byte, 95 %: {spans(self.bits_per_byte)}", 2))
        if self.curve is not None:
            rows += by_logsnr("difference by log-SNR", self.curve)
        rows += [*listed(self.protocol), *(within(f"WARNING: {w}", 2) for w in self.warnings)]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        parts, per_byte = {"first − second": self.difference}, self.bits_per_byte
        parts |= {} if per_byte is None else {"first − second, bits/byte": per_byte}
        return in_html(parts, self.difference, self)

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        unit, difference = self.difference.unit.name, plain(self.difference)
        per_byte = self.bits_per_byte
        parts = {} if per_byte is None else {"bits/byte": plain(per_byte)}
        return {"unit": unit, "difference": difference, **parts, **details(self)}


def report_of(evaluation: Evaluation, tally: Tally, bytes: int | Tensor | None = None) -> Report:
    """The report of a finished evaluation. Warns of what it lists."""
    diagnostics = examine(evaluation, tally)
    doubts = warnings_of(evaluation, tally, diagnostics)
    for text in doubts:
        warnings.warn(f"{evaluation.integrand.name}: {text}", stacklevel=4)
    dims, nats = evaluation.dims, tally.terms.mean[3]
    own = evaluation.integrand.dims if dims is None else dims
    unit = evaluation.integrand.process.unit
    prior, diffusion, reconstruction, total = tally.terms.estimates(
        evaluation.scale, tally.first, dims, unit
    )
    protocol, costs = evaluation_protocol(evaluation, tally), relative_costs(evaluation, tally)
    bytes = in_texts(bytes, evaluation.integrand.counted)
    protocol |= protocol_of_bytes(bytes)
    by_image = nats * evaluation.scale if dims is None else bits_per_dim(nats, dims)
    parts = prior, diffusion, reconstruction, total
    return Report(*parts, protocol, diagnostics, costs, doubts, by_image, dims=own, bytes=bytes)

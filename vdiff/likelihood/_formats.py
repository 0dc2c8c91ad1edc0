"""A result as HTML and as plain data for JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from typing import Protocol, runtime_checkable

from torch import Tensor

from vdiff import _html
from vdiff.likelihood._tables import OF_MEAN, images_error, spans, trust
from vdiff.likelihood.diagnostics import Diagnostics
from vdiff.likelihood.estimate import Estimate
from vdiff.likelihood.replicated import as_text


@runtime_checkable
class Result(Protocol):
    """What a `Report` and a `Comparison` have in common."""

    @property
    def protocol(self) -> dict[str, object]: ...
    @property
    def diagnostics(self) -> Diagnostics | None: ...
    @property
    def relative_costs(self) -> dict[str, float]: ...
    @property
    def warnings(self) -> list[str]: ...


def in_html(parts: Mapping[str, Estimate], total: Estimate, of: Result) -> str:
    """Estimates, their curve by log-SNR, how far to trust them, and the protocol."""
    rows = [
        (name, f"{e.value:.4f}", f"{e.monte_carlo:.4f}", images_error(e))
        for name, e in parts.items()
    ]
    unit, example = total.unit
    head = (unit, "value", "± Monte Carlo", f"± {example}s")
    lines = [f"95 %: {spans(total)}", *trust(of.diagnostics, of.relative_costs)]
    html = [_html.table(rows, head)]
    if of.diagnostics is not None:
        curve = of.diagnostics.curve
        mean = OF_MEAN if curve.of_mean else ""
        middle = 0.5 * (curve.logsnr_min + curve.logsnr_max)
        html.append(_html.curve(middle, curve.value, f"{unit} by log-SNR{mean}, noise to data"))
    html += [f"<div>{escape(line)}</div>" for line in lines]
    html += [f"<div><b>WARNING: {escape(text)}</b></div>" for text in of.warnings]
    facts = {word: None if v is None else as_text(v) for word, v in of.protocol.items()}
    return "".join([*html, _html.details("protocol", facts)])


def plain(e: Estimate) -> dict[str, object]:
    """As plain data, with None for NaN, which JSON does not have."""
    values = asdict(e)
    del values["unit"]
    words = (f"{e.unit.example}s" if word == "images" else word for word in values)
    return dict(zip(words, _finite(list(values.values())), strict=True))


def details(of: Result) -> dict[str, object]:
    """How a result was measured and how far to trust it, as plain data."""
    diagnostics: dict[str, object] | None = None
    if of.diagnostics is not None:
        own = vars(of.diagnostics.curve).items()
        curve = {k: _finite(v.tolist()) for k, v in own if isinstance(v, Tensor)}
        diagnostics = vars(of.diagnostics) | {"curve": curve}
    others = {name: getattr(of, name) for name in ("relative_costs", "warnings", "protocol")}
    return {"diagnostics": diagnostics, **others}


def _finite(values: list[float | None]) -> list[float | None]:
    return [None if v is not None and math.isnan(v) else v for v in values]

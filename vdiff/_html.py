"""How results show themselves in a notebook: tables, and curves as inline SVG."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import torch
from torch import Tensor

WIDTH, HEIGHT, POINTS = 280, 56, 120  # of a curve, in pixels, and the most points it has


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """Rows of text or HTML from this module; the first column is a name.

    >>> table([("a < b", 1.5)])
    '<table><tr><th style="text-align:left">a &lt; b</th><td>1.5</td></tr></table>'
    """
    first = f"<tr>{''.join(f'<th>{_cell(name)}</th>' for name in head)}</tr>" if head else ""
    lines = [
        f'<tr><th style="text-align:left">{_cell(name)}</th>'
        + "".join(f"<td>{_cell(value)}</td>" for value in values)
        + "</tr>"
        for name, *values in rows
    ]
    return f"<table>{first}{''.join(lines)}</table>"


class Html(str):
    """Text that is HTML already."""


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def details(name: str, values: Mapping[str, object]) -> str:
    """A table behind its name, opened by a click."""
    rows = ((word, value) for word, value in values.items() if value is not None)
    return f"<details><summary>{escape(name)}</summary>{table(rows)}</details>"


def curve(x: Tensor, y: Tensor, label: str) -> Html:
    """y by x as a line over the axis y = 0, in the color of the text, with both ends of x.

    >>> curve(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]), "p(λ)").startswith("<svg")
    True
    """
    keep = torch.isfinite(x) & torch.isfinite(y)
    x, y = x[keep].double().cpu(), y[keep].double().cpu()
    if len(x) < 2:
        return Html(escape(f"{label}: nothing to draw"))
    every = max(1, len(x) // POINTS)
    low, high = min(0.0, y.min().item()), max(0.0, y.max().item())
    across = (x - x[0]) / (x[-1] - x[0]) * WIDTH
    down = (high - y) / (high - low or 1.0) * HEIGHT
    zero = high / (high - low or 1.0) * HEIGHT
    pairs = zip(across[::every].tolist(), down[::every].tolist(), strict=True)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)
    ends = f'<text x="0" y="{HEIGHT + 14}">{x[0]:.3g}</text>'
    ends += f'<text x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{x[-1]:.3g}</text>'
    middle = f'<text x="{WIDTH / 2}" y="{HEIGHT + 14}" text-anchor="middle">{escape(label)}</text>'
    return Html(
        f'<svg width="{WIDTH + 4}" height="{HEIGHT + 20}" viewBox="-2 -2 {WIDTH + 4} '
        f'{HEIGHT + 20}" font-size="11" fill="currentColor" role="img" '
        f'aria-label="{escape(label)}"><polyline points="{points}" fill="none" '
        f'stroke="currentColor" stroke-width="1.5"/><line x1="0" x2="{WIDTH}" y1="{zero:.1f}" '
        f'y2="{zero:.1f}" stroke="currentColor" stroke-width="0.5"/>{ends}{middle}</svg>'
    )

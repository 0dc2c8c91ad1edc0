"""Formulas become MathML when the site is built: a browser shows it without a script or a font."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

NAMED = re.compile(r"(<mi>(?:log|det)</mi>)(?!<mo[^>]*>(?:\(|&#x00028;))")  # log p, but log(p)
UNKNOWN = re.compile(r"\\\w+|(?<=>)&(?=<)")  # as it came, such as an environment


def mathml(node: nodes.Element, display: str) -> str:
    """A formula as <math>. One that is not TeX, or has a command that is not known, ends the
    build."""
    tex = node.astext()
    try:
        text = convert(tex.replace("{aligned}", "{align*}"), display=display)
    except Exception as failure:
        raise SphinxError(f"{node.source}: {tex!r} is not TeX: {failure!r}") from failure
    if unknown := UNKNOWN.search(text):
        raise SphinxError(f"{node.source}: {tex!r} has {unknown[0]!r}, which has no MathML")
    return NAMED.sub(r'\1<mspace width="0.17em" />', text)


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula by itself: it scrolls where it is wider than the page."""
    self.body.append(f'<div class="math" tabindex="0">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """The only renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}

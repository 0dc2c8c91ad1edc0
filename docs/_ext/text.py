"""What a page gets in addition to its text: x_t with a subscript, and `Cosine()` with a link."""

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

import vdiff

# a letter with its marks, or a bracket, then _t, _max, _{t−1}, ^d, ^{−λ/2} or ^(−λ/2)
BASE = r"(?:(?<=[^\W\d_][\u0300-\u036f])|(?<=\b[^\W_])|(?<=[A-Z]{2})|(?<=[α-ω)\]‖²]))"
NAME = r"[^\W_⁰¹²³⁴-⁹]+|∞"
SCRIPT = re.compile(
    rf"{BASE}(?:_({NAME})|_{{([^{{}}]+)}}|\^(?:({NAME})|{{([^{{}}]+)}}|\(([^()]+)\)))"
)
CALL = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?")
PLAIN = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)


def scripts(app: Sphinx, doctree: nodes.document) -> None:
    """Subscripts and superscripts of plain text."""
    for node in list(doctree.findall(nodes.Text)):
        if SCRIPT.search(node.astext()) and not inside(node, PLAIN):
            node.parent.replace(node, list(split(node.astext())))


def split(text: str) -> Iterator[nodes.Node]:
    """The pieces of a text."""
    start = 0
    for found in SCRIPT.finditer(text):
        yield nodes.Text(text[start : found.start()])
        kind = nodes.subscript if found[0][0] == "_" else nodes.superscript
        yield kind("", "", *split(next(filter(None, found.groups()))))
        start = found.end()
    yield nodes.Text(text[start:])


def inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    """Whether a node is within one of some kinds."""
    while (node := node.parent) is not None:
        if isinstance(node, kinds):
            return True
    return False


def link_code(app: Sphinx, doctree: nodes.document, here: str) -> None:
    """Code that is a public name, with arguments or without, leads to its description."""
    names = public(app)
    for node in list(doctree.findall(nodes.literal)):
        found = CALL.fullmatch(node.astext())
        target = names.get(found[1]) if found else None
        if target is None or inside(node, (nodes.reference, nodes.title)):
            continue
        if found[1] in vdiff.__all__ or found[2] or re.search(r"[A-Z_.]", found[1]):
            page, anchor = target
            uri = app.builder.get_relative_uri(here, page)
            link = nodes.reference("", "", refuri=f"{uri}#{anchor}", internal=True)
            node.replace_self(link)
            link += node


def public(app: Sphinx) -> dict[str, tuple[str, str]]:
    """Where each class, function and module is described, by its full name and, if no other has
    it, its last part; the door's names come first."""
    places: dict[str, tuple[str, str]] = {}
    twice = set()
    for name, _, kind, page, anchor, _ in app.env.domains.python_domain.get_objects():
        if kind not in ("class", "function", "module", "exception"):
            continue
        short = name.rpartition(".")[2]
        for key in {name, name.removeprefix("vdiff."), short}:
            if places.setdefault(key, (page, anchor)) != (page, anchor):
                twice.add(key)
    door = {name: places[f"vdiff.{name}"] for name in vdiff.__all__}
    return {name: place for name, place in places.items() if name not in twice} | door


def setup(app: Sphinx) -> ExtensionMetadata:
    """Scripts when a page is read, links when all are."""
    app.connect("doctree-read", scripts)
    app.connect("doctree-resolved", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

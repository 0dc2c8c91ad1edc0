"""A link from a page to a file of the repository leads to the file's text, highlighted: pages link
to code as in a repository browser, `[tiny.py](../examples/tiny.py)`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

ROOT = Path(__file__).parents[2]
LANGUAGE = {".py": "python", ".md": "markdown"}
linked: set[Path] = set()


def page(path: Path) -> str:
    """The name of the page that shows a file."""
    return f"code/{path}"


def relink(app: Sphinx, doctree: nodes.document) -> None:
    """Replace what would be a download."""
    here = app.env.docname
    for node in list(doctree.findall(addnodes.download_reference)):
        path = (app.srcdir / here).parent.joinpath(node["reftarget"]).resolve()
        path = path.relative_to(ROOT)
        linked.add(path)
        uri = app.builder.get_relative_uri(here, page(path))
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def collect(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages of the files that are linked."""
    for path in sorted(linked):
        language = LANGUAGE.get(path.suffix, "text")
        text = (ROOT / path).read_text(encoding="utf-8")
        body = app.builder.highlighter.highlight_block(text, language)  # type: ignore[attr-defined]
        yield page(path), {"title": path.name, "body": f"<h1>{path}</h1>{body}"}, "page.html"


def setup(app: Sphinx) -> ExtensionMetadata:
    """Reading in one process: the links are collected here."""
    app.connect("doctree-read", relink)
    app.connect("html-collect-pages", collect)
    return {"parallel_read_safe": False, "parallel_write_safe": True}

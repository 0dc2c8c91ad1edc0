"""Check the built site: every internal link and anchor leads somewhere, no page needs the network,
headings go down by one level, and pictures have a text. `python check_site.py docs/_build/html`"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

SOURCE = {"img": "src", "script": "src", "link": "href", "iframe": "src"}


class Page(HTMLParser):
    """What a page has: anchors, links, files that it loads, headings, pictures without a text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.headings: list[int] = []
        self.silent: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in SOURCE and SOURCE[tag] in values:
            self.loads.append(values[SOURCE[tag]])
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append(int(tag[1]))
        if tag == "img" and not values.get("alt"):
            self.silent.append(values.get("src", ""))


def faults(root: Path) -> Iterator[str]:
    """One line for each."""
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    if not pages:
        yield f"{root} has no pages"
    for path, page in pages.items():
        name = path.relative_to(root)
        for link in page.loads:
            if urlsplit(link).netloc:
                yield f"{name} loads {link}"
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            if not target.is_file():
                yield f"{name} links to {link}, which is not there"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors | {""}:
                yield f"{name} links to {link}, which has no such anchor"
        below = pairwise(page.headings)
        if page.headings[:1] not in ([], [1]) or any(b > a + 1 for a, b in below):
            yield f"{name} has headings of the levels {page.headings}"
        for picture in page.silent:
            yield f"{name} shows {picture} without a text"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or "the links of the site lead somewhere")
    sys.exit(bool(found))

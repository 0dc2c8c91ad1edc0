"""Docstrings as reStructuredText: they are plain text, with code in single backticks, formulas as
indented lines, and Google's sections, which napoleon reads."""

import ast
import functools
import inspect
import operator
import re
import types
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Union, get_args, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import ExtensionMetadata, stringify_annotation

import vdiff

SECTION = re.compile(r"(Args|Attributes|Returns|Raises):$")
GOOGLE = Config(napoleon_custom_sections=[("Attributes", "params_style")])
FORMULA = ["..  code-block:: text", "    :class: formula", ""]


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring."""
    out: list[str] = []
    for kind, group in groupby(zip(lines, kinds(lines), strict=True), key=operator.itemgetter(1)):
        block = [line for line, _ in group]
        if kind == "text":
            block = to_rst("\n".join(block)).split("\n")
        out += [*FORMULA, *block] if kind == "formula" else block
    return out


def kinds(lines: list[str]) -> list[str]:
    """What each line is: text, a section's title, an example, or a formula, which is indented
    after an empty line outside of the sections."""
    found: list[str] = []
    section, before = False, ""
    for line in lines:
        kind = found[-1] if found and before else "text"
        if SECTION.match(line):
            kind, section = "title", True
        elif line.startswith(">>>"):
            kind, section = "example", False
        elif line and not line.startswith(" ") and kind != "example":
            kind, section = "text", False
        elif line and not before and not section:
            kind = "formula"
        elif kind == "title" or not line:
            kind = found[-1] if kind == "formula" else "text"
        found.append(kind)
        before = line
    return found


def to_rst(text: str) -> str:
    """Backticks become code, and every other mark of reStructuredText is a character."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{part}``\\ " for part in parts[1::2]]  # `Estimate`s are two words to it
    names = r"^(    [\w, \\]+),\n +([\w, \\]+:)"  # of arguments, over two lines
    return re.sub(names, r"\1, \2", "".join(parts), flags=re.MULTILINE)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A property's first colon is a colon: napoleon takes what stands before it for a type."""
    lines[:] = GoogleDocstring(convert(lines), GOOGLE, what="function").lines()


def signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    given: str | None,
    returns: str | None,
) -> tuple[str, str] | None:
    """A signature says types; what else `@validated` asks for is in the text."""
    if given is None or not callable(obj):
        return None
    signed = inspect.signature(obj)
    arguments = [
        p.replace(annotation=plain(p.annotation), default=Shown.of(p.default))
        for p in signed.parameters.values()
    ]
    if what == "method" and arguments and arguments[0].name == "self":
        del arguments[0]
    signed = signed.replace(
        parameters=arguments, return_annotation=plain(signed.return_annotation)
    )
    text = stringify_signature(signed, unqualified_typehints=True, show_return_annotation=False)
    if what == "class" or signed.return_annotation is signed.empty:
        return text, ""
    return text, stringify_annotation(signed.return_annotation, "smart")


@dataclass
class Shown:
    """A default value that is no Python as it is printed, such as a function."""

    name: str

    @classmethod
    def of(cls, value: Any) -> Any:
        """The value, or its name."""
        try:
            ast.parse(repr(value), mode="eval")
        except SyntaxError:
            empty = value is inspect.Parameter.empty
            return value if empty else cls(getattr(value, "__name__", "..."))
        return value

    def __repr__(self) -> str:
        return self.name


def plain(annotation: Any) -> Any:
    """The type without constraints."""
    if isinstance(annotation, list):
        return [plain(each) for each in annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain(arguments[0])
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(plain, arguments))
    if isinstance(annotation, types.GenericAlias):
        return origin[tuple(plain(each) for each in arguments)]
    return annotation


def bases(app: Sphinx, name: str, obj: Any, options: Any, found: list[type]) -> None:
    """Bases that no page documents are left out."""
    found[:] = [base for base in found if "._" not in base.__module__] or [object]


def skip(app: Sphinx, what: str, name: str, obj: Any, found: bool, options: Any) -> bool | None:
    """What the door has is described there alone."""
    door = {id(getattr(vdiff, name)) for name in vdiff.__all__}
    return True if id(obj) in door and app.env.docname != "api/vdiff" else None


def name_twice(app: Sphinx, doctree: nodes.document) -> None:
    """What the door has is found by the name of its module too: viewcode links to that."""
    for line in doctree.findall(addnodes.desc_signature):
        if line.get("module") == "vdiff":
            module = getattr(vdiff, line["fullname"].partition(".")[0]).__module__
            line["ids"].append(f"{module}.{line['fullname']}")


def setup(app: Sphinx) -> ExtensionMetadata:
    """What autodoc asks."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-bases", bases)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", name_twice)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

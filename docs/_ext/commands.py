"""```{command-help} train``` is what `vdiff train --help` prints."""

import argparse

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from vdiff.cli import COMMANDS
from vdiff.cli.parser import parser_of


class CommandHelp(SphinxDirective):
    """A block with the help of one command."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text, as it is."""
        parser = parser_of(COMMANDS)
        found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        text = found[0].choices[self.arguments[0]].format_help()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> ExtensionMetadata:
    """One directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The parser of the command line: errors of one line with the nearest word, help of 80 columns."""

import argparse
import platform
import re
import sys
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch

from vdiff._version import __version__
from vdiff.errors import did_you_mean, printable
from vdiff.extras import extra
from vdiff.terminal import COLUMNS, say

CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations. Errors have one line, with the nearest known word; help
    prints in any encoding."""

    def __init__(self, **options: Any) -> None:
        self.settings: Callable[[str], str] = lambda option: ""  # the hint for an unknown option
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an unknown option before anything else: what is missing may be its value."""
        args = sys.argv[1:] if args is None else args
        for word in args if self._subparsers is None else args[:1]:
            if word == "--":
                break
            option = word.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                self.error(f"unknown option {option}{self._hint(option)}")
        return super().parse_known_args(args, namespace)

    def _hint(self, option: str) -> str:
        if hint := self.settings(option):
            return hint
        near = did_you_mean(option, self._option_string_actions)
        return f"; {near}" if near else ""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line on stderr."""
        if unknown := CHOICE.search(message):
            word, names = unknown.groups()
            near = did_you_mean(word, re.split(", ", names.replace("'", "")))
            message += f"; {near}" if near else ""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")

    def print_help(self, file: object = None) -> None:
        """Print the help to stdout, with ? for what its encoding lacks."""
        say(self.format_help().rstrip())


class _Help(argparse.HelpFormatter):
    """Paragraphs filled to the width, and indented lines as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._width = min(self._width, COLUMNS - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip().split("\n\n")
        return "\n\n".join(b if b.startswith(" ") else textwrap.fill(b, width) for b in blocks)


class _Completion(argparse.Action):
    """Print a shell's completion and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: object, shell: Any, *__: object
    ) -> None:
        with extra("completion"):
            import shtab
        print(shtab.complete(parser, shell))
        parser.exit()


def parser_of(commands: dict[str, ModuleType]) -> Parser:
    """The parser of `vdiff` with a sub-parser for each command."""
    parser = Parser(
        prog="vdiff", description="Diffusion models as weighted evidence lower bounds."
    )
    text = f"vdiff {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    parser.add_argument("--version", action="version", version=text)
    text = 'print the completion script of a shell: eval "$(vdiff --completion bash)"'
    shells = ("bash", "zsh", "tcsh")
    parser.add_argument("--completion", choices=shells, action=_Completion, help=text)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in commands.items():
        summary = " ".join((module.__doc__ or "").partition("\n\n")[0].split())
        module.add(parsers.add_parser(name, help=summary, description=module.__doc__))
    return parser


def one_line(text: str) -> str:
    """A text of several lines as one, with control characters escaped."""
    return printable("; ".join(line.strip() for line in text.split("\n") if line.strip()))


def positive(text: str) -> int:
    """The type of a count. Raises unless the text is a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number

"""A command as a shell sees it."""

from vdiff.cli import main


def code_of(words: list[str]) -> int | str | None:
    try:
        return main(words)
    except SystemExit as ended:
        return ended.code

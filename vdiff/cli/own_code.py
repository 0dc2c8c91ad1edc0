"""Errors that come from the user's own code: with the lines of that code, and what a network was
given."""

import argparse
import os
import sysconfig
import traceback
from pathlib import Path
from types import FrameType, TracebackType

import torch

from vdiff.cli.parser import one_line
from vdiff.errors import InvalidArgument, printable

INSTALLED = {"site-packages", "dist-packages"}
ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (ROOT, Path(torch.__file__).resolve().parent, Path(sysconfig.get_path("stdlib")))
HIDDEN = ("torch/nn/modules/module.py", "vdiff/_validate.py")  # what calls a layer, or a verb
CALL, BUILD = "Denoiser._call_network", "Builder.make"  # where the user's code is called
Frames = list[tuple[FrameType, int]]


def explain(error: BaseException, options: argparse.Namespace) -> str | None:
    """An error of the user's code in words: FILE.py:NAME, the error, what the network was given,
    and a line for each of its frames. None for an error of the library.

    An error is the user's where a frame of it is in no library, and where it was raised in her
    network or builder and is no check of ours.
    """
    sources = _sources(options)
    for cause in (error, error.__cause__) if sources else ():
        frames = _frames(None if cause is None else cause.__traceback__)
        own = [i for i, (frame, _) in enumerate(frames) if _is_own(frame)]
        called = [i for i, (frame, _) in enumerate(frames) if _function(frame) in (CALL, BUILD)]
        of_ours = isinstance(cause, InvalidArgument)
        entered = [i + 1 for i in called if i + 1 < len(frames) and not of_ours]
        if cause is not None and (own or entered):
            named = _named(sources, frames[own[0]][0]) if own else sources[0]
            last = own[-1] + 1 if of_ours else None
            shown = _shown(frames[min(own[:1] + entered) : last])
            # what was raised from it says where it was found: in a file that does not run
            words = [str(error)] if cause is not error else _words(cause, named)
            return "\n".join([*map(one_line, words), *shown])
    return None


def _words(error: BaseException, named: str) -> list[str]:
    notes = getattr(error, "__notes__", [])  # what the network was given, and in which step
    return [f"{named}: {type(error).__name__}: {error}", *notes]


def _frames(trace: TracebackType | None) -> Frames:
    """The frames below `main`."""
    return list(traceback.walk_tb(trace))[1:]


def _path(frame: FrameType) -> Path:
    return Path(frame.f_code.co_filename).resolve()


def _function(frame: FrameType) -> str:
    return frame.f_code.co_qualname if _path(frame).is_relative_to(ROOT) else ""


def _is_own(frame: FrameType) -> bool:
    """Whether a frame is in no library: neither in vdiff, nor installed, nor made of text."""
    path = _path(frame)
    of_others = any(path.is_relative_to(home) for home in LIBRARIES)
    return path.is_file() and not of_others and not INSTALLED & set(path.parts)


def _sources(options: argparse.Namespace) -> list[str]:
    """Every FILE.py:NAME of the command."""
    given = [text for text in vars(options).values() if isinstance(text, str) and ":" in text]
    return [text for text in given if os.path.isfile(text.rpartition(":")[0])]


def _named(sources: list[str], frame: FrameType) -> str:
    """The FILE.py:NAME in the file of a frame; else that file."""
    file = _path(frame)
    here = [text for text in sources if Path(text.rpartition(":")[0]).resolve() == file]
    return next(iter(here), str(file))


def _shown(frames: Frames) -> list[str]:
    """A file, a line and its source for each frame."""
    inner = [(f, line) for f, line in frames if not _path(f).as_posix().endswith(HIDDEN)]
    summary = traceback.StackSummary.extract(iter(inner))
    rows = [row for frame in summary.format() for row in frame.splitlines()]
    return [printable(row) for row in rows if row.strip(" ^~")]

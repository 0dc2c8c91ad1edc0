"""The states of an interrupted evaluation: where they are kept, and how it resumes from them."""

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vdiff.disk import atomic_write, no_room
from vdiff.extras import extra
from vdiff.likelihood import Share
from vdiff.likelihood.chunks import StateMismatch
from vdiff.likelihood.protocol import versions, warn_if_versions_differ

PAUSE = 60.0  # seconds between checkpoints
Result = TypeVar("Result")


def share_of_rank() -> Share:
    """The part of the images that this process evaluates."""
    from vdiff.training import share

    return share.share_of_rank()


class Keeper:
    """The states of an interrupted command, a file for each of its parts beside its output:
    `through` continues from what is there.

    As a context it locks these files: of two commands with one output, the second keeps no state.

    >>> from vdiff.likelihood import Share
    >>> Keeper(Path("no-such-folder/evaluation.json")).through("bound", lambda resume, checkpoint, share: resume, share=Share()) is None
    True
    """

    def __init__(self, out: Path) -> None:
        self.out, self.files, self.keeps = out, dict[str, Path](), True
        self._lock: ExitStack = ExitStack()

    def __enter__(self) -> "Keeper":
        from vdiff.training.lock import locked

        path = self.out.with_name(f".{self.out.stem}.{share_of_rank().index}.lock")
        why: object = f"another command evaluates to {self.out}"
        try:
            self.keeps = self._lock.enter_context(locked(path))
        except (OSError, NotImplementedError) as error:
            self.keeps, why = False, error
        if not self.keeps:
            warnings.warn(f"no state of this evaluation is kept: {why}", stacklevel=2)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._lock.close()
        if isinstance(error, KeyboardInterrupt):
            files = [str(path) for path in self.files.values() if self.keeps and path.is_file()]
            kept = f"kept in {', '.join(files)}: the same command continues from there"
            error.add_note(f"what was evaluated is {kept}" if files else "nothing is kept yet")

    def through(
        self, part: str, estimate: Callable[..., Result], *given: Any, **settings: Any
    ) -> Result:
        """What an estimate returns, kept on the way, at its end and where it is interrupted.

        A state that is damaged or of another evaluation is set aside with a warning.
        """
        suffix = f".{part}.{settings['share'].index}.safetensors"
        path = self.files[part] = self.out.with_suffix(suffix)
        kept = Kept(path, keeps=self.keeps)
        try:
            state = kept.state()
            try:
                result = estimate(*given, resume=state, checkpoint=kept, **settings)
            except StateMismatch:
                kept.set_aside("is of another evaluation")
                result = estimate(*given, resume=None, checkpoint=kept, **settings)
        except ValueError:  # it cannot be evaluated like this
            raise
        except BaseException:
            kept.write()
            raise
        kept.write()
        return result

    def clear(self) -> None:
        """Remove the files: all is done."""
        for path in self.files.values():
            if self.keeps:
                path.unlink(missing_ok=True)


class Kept:
    """A checkpoint on disk with a checksum, written at most once a minute; nowhere unless
    `keeps`.

    >>> Kept(Path("no-such-file")).state() is None
    True
    """

    def __init__(self, path: Path, *, keeps: bool = True) -> None:
        self.path, self.last, self.latest = path, time.monotonic(), dict[str, Tensor]()
        self.keeps = keeps

    def __call__(self, state: dict[str, Tensor]) -> None:
        """Take a state, and write it if it is time to."""
        self.latest = state if self.keeps else {}
        if time.monotonic() - self.last > PAUSE:
            self.write()

    def write(self) -> None:
        """Write the latest state, if there is one."""
        with extra("train"):
            from safetensors import SafetensorError
            from safetensors.torch import save_file

        from vdiff.training.weights import sealed

        if self.latest:
            try:
                whole, header = sealed(self.latest, versions())
                with atomic_write(self.path) as aside:
                    save_file(whole, aside, header)
            except (OSError, SafetensorError) as error:
                needed = sum(value.nbytes for value in self.latest.values())
                why = no_room(error, self.path, needed)
                what = "the state of the evaluation is not kept, which continues"
                warnings.warn(f"{what}: {why}", stacklevel=2)
            self.last, self.latest = time.monotonic(), {}

    def state(self) -> dict[str, Tensor] | None:
        """What an interrupted command left; a damaged one is set aside."""
        from vdiff.training.weights import read_weights

        if not self.keeps or not self.path.is_file():
            return None
        try:
            found = read_weights(self.path, seal=True)
        except ValueError:
            self.set_aside("is damaged")
            return None
        warn_if_versions_differ("the evaluation", found.facts)
        return found.tensors

    def set_aside(self, why: str) -> None:
        """Give the file another name, with a warning."""
        from vdiff.training.checkpoint import unused

        other = unused(self.path.with_name(f"old-{self.path.name}"))
        what = f"{self.path} {why}; it is kept as {other.name}, and the evaluation starts again"
        try:
            self.path.replace(other)
        except OSError as error:
            cannot = f"{self.path} {why} and cannot be renamed ({error})"
            what = f"{cannot}; the evaluation starts again"
        warnings.warn(what, stacklevel=2)


__all__ = ["Keeper", "Kept", "share_of_rank"]

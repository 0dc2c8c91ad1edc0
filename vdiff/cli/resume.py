"""Evaluations that can be interrupted: their states on disk, and how they resume."""

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from vdiff.disk import acquire_lock, atomic_write, write_error
from vdiff.errors import out_of_memory
from vdiff.extras import extra
from vdiff.likelihood.chunks import StateMismatch
from vdiff.likelihood.protocol import versions, warn_if_versions_differ

if TYPE_CHECKING:
    from filelock import BaseFileLock

PAUSE = 60.0  # seconds between two writes of a state
MAX_STATE = 1 << 32  # bytes of a state
EVALUATED = "what was evaluated is"
Result = TypeVar("Result")


class Resumable:
    """The states of a command, one file for each of its parts, beside its output. `call` resumes
    from them.

    As a context it locks these files: of two commands with one output, the second keeps no state.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.files, self.enabled = out, dict[str, Path](), True
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> "Resumable":
        from vdiff.training.ranks import rank

        path = self.out.with_name(f".{self.out.stem}.{rank().index}.lock")
        try:
            self._lock = acquire_lock(path)
        except (OSError, NotImplementedError) as error:
            busy = isinstance(error, TimeoutError)
            why = f"another command evaluates to {self.out}" if busy else error
            self.enabled = False
            warnings.warn(f"no state of this evaluation is kept: {why}", stacklevel=2)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._lock is not None:
            with suppress(OSError):  # some systems do not delete an open file
                Path(self._lock.lock_file).unlink()
            self._lock.release()
        if error is not None and (isinstance(error, KeyboardInterrupt) or out_of_memory(error)):
            files = [str(path) for path in self.files.values() if self.enabled and path.is_file()]
            kept = f"kept in {', '.join(files)}: the same command continues from there"
            error.add_note(f"{EVALUATED} {kept}" if files else "nothing is kept yet")

    def call(
        self, part: str, estimate: Callable[..., Result], *args: Any, **settings: Any
    ) -> Result:
        """Call an estimate, which resumes from its state and writes it: regularly, at the end, and
        when it is interrupted.

        A state that is damaged or of another evaluation is renamed, with a warning.
        """
        suffix = f".{part}.{settings['share'].index}.safetensors"
        path = self.files[part] = self.out.with_suffix(suffix)
        file = StateFile(path, enabled=self.enabled)
        try:
            state = file.read()
            try:
                result = estimate(*args, resume=state, checkpoint=file, **settings)
            except StateMismatch:
                file.set_aside("is of another evaluation")
                result = estimate(*args, resume=None, checkpoint=file, **settings)
        except ValueError:  # an invalid argument: there is no state to keep
            raise
        except BaseException:
            file.write()
            raise
        file.write()
        return result

    def clear(self) -> None:
        """Delete the states at the end of the command."""
        for path in self.files.values():
            if self.enabled:
                path.unlink(missing_ok=True)


class StateFile:
    """A state on disk with a checksum, written at most once a minute. Does nothing unless
    `enabled`."""

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        self.written, self.latest = time.monotonic(), dict[str, Tensor]()

    def __call__(self, state: dict[str, Tensor]) -> None:
        """Take a state, and write it if a minute has passed."""
        self.latest = state if self.enabled else {}
        if time.monotonic() - self.written > PAUSE:
            self.write()

    def write(self) -> None:
        """Write the latest state, if there is one."""
        with extra("train"):
            from safetensors import SafetensorError
            from safetensors.torch import save_file

        from vdiff.training.weights import sealed

        if self.latest:
            try:
                tensors, header = sealed(self.latest, versions())
                with atomic_write(self.path) as aside:
                    save_file(tensors, aside, header)
            except (OSError, SafetensorError) as error:
                needed = sum(value.nbytes for value in self.latest.values())
                why = write_error(error, self.path, needed)
                what = "the state of the evaluation is not kept, which continues"
                warnings.warn(f"{what}: {why}", stacklevel=2)
            self.written, self.latest = time.monotonic(), {}

    def read(self) -> dict[str, Tensor] | None:
        """The state of an interrupted command, if there is one. A damaged one is renamed."""
        from vdiff.training.weights import read_weights

        if not self.enabled or not self.path.is_file():
            return None
        try:
            weights = read_weights(self.path, seal=True, limit=MAX_STATE)
        except ValueError:
            self.set_aside("is damaged")
            return None
        warn_if_versions_differ("the evaluation", weights.facts)
        return weights.tensors

    def set_aside(self, why: str) -> None:
        """Rename the file, with a warning."""
        from vdiff.training.checkpoint import unused_path

        other = unused_path(self.path.with_name(f"old-{self.path.name}"))
        what = f"{self.path} {why}; it is kept as {other.name}, and the evaluation starts again"
        try:
            self.path.replace(other)
        except OSError as error:
            cannot = f"{self.path} {why} and cannot be renamed ({error})"
            what = f"{cannot}; the evaluation starts again"
        warnings.warn(what, stacklevel=2)

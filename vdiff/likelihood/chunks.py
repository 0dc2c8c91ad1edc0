"""Chunked, sharded, resumable estimates."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff.errors import InvalidValue
from vdiff.likelihood.conditions import condition_digest
from vdiff.likelihood.digest import data_hash, state_key, weights_digest

State = dict[str, Tensor]
Progress = Callable[[int, int], None]


class StateMismatch(InvalidValue):
    """A state to resume from belongs to another evaluation."""


def check_resume(resume: State | None, key: Tensor) -> None:
    """Raise `StateMismatch` unless a state to resume from has this key."""
    if resume is not None and not ("key" in resume and torch.equal(resume["key"], key)):
        hint = "another model, data, seed, setting or version of vdiff: start anew"
        raise StateMismatch("resume", "be the state of this evaluation", "that of another", hint)


def _identity(v: Tensor) -> Tensor:
    """The sum over a single process."""
    return v


@dataclass(frozen=True)
class Share:
    """The images of this process, which is number `index` of `count`: i, i + count, …

    `sum` adds a tensor over all processes.

    >>> Share().sum(torch.ones(1))
    tensor([1.])
    """

    index: int = 0
    count: int = 1
    sum: Callable[[Tensor], Tensor] = _identity


class OtherProcessFailed(RuntimeError):
    """Another process failed. Its message says why."""


@contextmanager
def fail_together(share: Share) -> Iterator[None]:
    """Where one process fails in this block, all processes raise at its end: the process that
    failed its own error, the others `OtherProcessFailed`. Otherwise they would wait at a sum."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = failure is not None
    if share.count > 1:
        failed = share.sum(torch.tensor([float(failed)], dtype=torch.float32)).item() > 0
    if failed:
        raise failure or OtherProcessFailed("another process failed; its message says why")


@dataclass(frozen=True)
class Run:
    """How an estimate is run.

    Attributes:
        batch: how many examples the model sees at once.
        seed: of everything that is drawn.
        share: the examples of this process.
        progress: called as progress(done, total).
        checkpoint: called with the state after each batch.
        resume: a state to continue from.
        differentiable: whether results keep their graph; then nothing is shared, saved or resumed.
    """

    batch: int = 4096
    seed: int = 0
    share: Share = Share()
    progress: Progress | None = None
    checkpoint: Callable[[State], None] | None = None
    resume: State | None = None
    differentiable: bool = False

    def key(
        self,
        data: Tensor,
        condition: Mapping[str, object],
        record: Mapping[str, object],
        models: object,
        *settings: object,
    ) -> Tensor:
        """The key of the states of this run: of its data, settings, record and model(s)."""
        known = sorted(record.items())
        every = models if isinstance(models, list) else [models]
        return state_key(
            data_hash(data), condition_digest(condition), *settings,
            self.share.index, self.share.count, repr(known), weights_digest(*every),
        )  # fmt: skip

    def report(self, done: int, total: int) -> None:
        """Call `progress`."""
        if self.progress is not None:
            self.progress(done, total)

    def save(self, state: State) -> None:
        """Call `checkpoint` with a copy."""
        if self.checkpoint is not None:
            self.checkpoint({word: v.clone() for word, v in state.items()})


def run_in_chunks(
    work: Callable[[int, Tensor], State],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    repetitions: int,
    rows: int,
    key: Tensor,
    run: Run,
) -> State:
    """The results of `work(repetition, rows)` by name: (repetitions, rows, …) in float64 on the
    CPU, of all processes.

    `shapes` are those of one example's results. Progress counts examples times repetitions of this
    process.

    >>> double = lambda repetition, rows: {"value": 2.0 * rows + repetition}
    >>> setting = {"shapes": {"value": ()}, "repetitions": 2, "rows": 3, "key": state_key()}
    >>> run_in_chunks(double, run=Run(batch=2), **setting)["value"]
    tensor([[0., 2., 4.],
            [1., 3., 5.]], dtype=torch.float64)
    """
    check_resume(run.resume, key)
    if run.resume is None:
        sizes = {word: (repetitions, rows, *shape) for word, shape in shapes.items()}
        state = {word: torch.zeros(size, dtype=torch.float64) for word, size in sizes.items()}
        state |= {"done": torch.zeros(repetitions, rows, dtype=torch.float32), "key": key}
    else:
        state = {word: v.clone() for word, v in run.resume.items()}
    own = torch.arange(run.share.index, rows, run.share.count)
    with fail_together(run.share):
        for repetition in range(repetitions):
            left = own[state["done"][repetition, own] == 0]
            for part in torch.split(left, run.batch) if len(left) else ():
                for word, result in work(repetition, part).items():
                    result = result if run.differentiable else result.detach()
                    state[word][repetition, part] = result.to(state[word])
                state["done"][repetition, part] = 1
                run.report(int(state["done"].sum()), repetitions * len(own))
                run.save(state)
    return {word: run.share.sum(state[word]) for word in shapes}

"""Long estimates in pieces: an example at a time in each repetition, shared over processes, with
progress, checkpoints and resumption."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vdiff._arguments import original
from vdiff.errors import InvalidValue
from vdiff.likelihood.conditions import Shared
from vdiff.oracle import GaussianMixture

State = dict[str, Tensor]
Progress = Callable[[int, int], None]
FEW = 8  # so many entries of a list stand in a protocol as they are


def data_hash(data: Tensor) -> str:
    """The first 16 hexadecimal digits of SHA-256 over dtype, shape and values.

    Whole numbers have the same hash in every dtype: that of uint8 if all fit into a byte, else
    that of int64.

    >>> data_hash(torch.tensor([[0, 1]])) == data_hash(torch.tensor([[0, 1]], dtype=torch.uint8))
    True
    """
    plain = data.detach().cpu()
    if not (plain.is_floating_point() or plain.is_complex() or plain.dtype == torch.uint8):
        whole = plain.to(torch.int64)
        fits = plain.numel() == 0 or (whole.min() >= 0 and whole.max() <= 255)
        plain = whole.to(torch.uint8) if fits else whole
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    digest.update(plain.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def key_of(*known: object) -> Tensor:
    """A hash of what a computation depends on, by which its checkpoint is known.

    >>> bool(key_of("data", 0) == key_of("data", 1))
    False
    """
    digest = hashlib.blake2b(f"{known}".encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(digest, "little") >> 1)


def law_of(mixture: GaussianMixture) -> str:
    """A law by its class and a hash of its numbers.

    >>> from vdiff.oracle import Gaussian
    >>> law_of(Gaussian([0.0], [1.0])) == law_of(Gaussian([0.0], [2.0]))
    False
    """
    numbers = torch.cat([v.flatten().cpu() for v in mixture.buffers()])
    return f"{type(mixture).__name__} {data_hash(numbers)}"


def condition_digest(condition: Mapping[str, object]) -> dict[str, object]:
    """Conditions as plain data. Tensors, arrays and long lists are known by a hash.

    >>> condition_digest({"scale": 2.0, "text": "a word"})
    {'scale': 2.0, 'text': 'a word'}
    """
    return {str(word): _told(value) for word, value in condition.items()}


def _told(value: object) -> object:
    if isinstance(value, Tensor):
        return data_hash(value)
    if isinstance(value, Mapping):
        return condition_digest(value)
    if isinstance(value, Shared):
        return {"shared": _told(value.value)}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        entries = [_told(entry) for entry in value]
        return entries if len(entries) <= FEW else _digest(f"{entries}".encode())
    if hasattr(value, "__array__") and np.ndim(value):
        array = np.asarray(value)
        return _digest(f"{array.dtype} {array.tolist()}".encode())
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def _digest(known: bytes) -> str:
    return hashlib.sha256(known).hexdigest()[:16]


def weights_of(*models: object) -> list[str]:
    """A hash of all parameters and buffers of each model that has any.

    >>> from vdiff.oracle import Gaussian
    >>> weights_of(Gaussian([0.0], [1.0])) == weights_of(Gaussian([0.0], [2.0])), weights_of(abs)
    (False, [])
    """
    found = []
    for model in map(original, models):
        if isinstance(model, nn.Module):
            tensors = [*model.named_parameters(), *model.named_buffers()]
            text = "".join(f"{name} {data_hash(value)} " for name, value in tensors)
            found.append(_digest(text.encode()))
    return found


def mark_of(record: Mapping[str, object]) -> str:
    """A record as one string, by which a state knows its model.

    >>> mark_of({"ema": 0.999, "data": "digits"})
    "[('data', 'digits'), ('ema', 0.999)]"
    """
    return repr(sorted(record.items()))


class OtherState(InvalidValue):
    """A state to resume from is that of another evaluation.

    >>> issubclass(OtherState, ValueError)
    True
    """


def check_resume(resume: State | None, key: Tensor) -> None:
    """Raise OtherState unless a state to resume from is that of the computation of this key."""
    if resume is not None and not ("key" in resume and torch.equal(resume["key"], key)):
        hint = "another model, data, seed or setting: start anew"
        raise OtherState("resume", "be the state of this evaluation", "that of another", hint)


def _as_it_is(v: Tensor) -> Tensor:
    """The sum over a single process."""
    return v


@dataclass(frozen=True)
class Share:
    """Which images are this process's, `index` of `count`, and how tensors are summed over all of
    them.

    >>> Share().sum(torch.ones(1))
    tensor([1.])
    """

    index: int = 0
    count: int = 1
    sum: Callable[[Tensor], Tensor] = _as_it_is


class FailedElsewhere(RuntimeError):
    """Another process failed, and its message says why.

    >>> issubclass(FailedElsewhere, RuntimeError)
    True
    """


def fail_together(share: Share, failure: Exception | None) -> None:
    """Raise this process's failure; where it has none, but another has, say so: all leave at the
    same place.

    >>> fail_together(Share(), None)
    """
    failed = failure is not None
    if share.count > 1:
        failed = share.sum(torch.tensor([float(failed)], dtype=torch.float32)).item() > 0
    if failed:
        raise failure or FailedElsewhere("another process failed; its message says why")


@dataclass(frozen=True)
class Run:
    """How a long estimate is run: the size of a batch, the seed, this process's share, who hears
    of progress, who keeps the state, and from which state it resumes.

    With `differentiable` the results keep their graph, so that nothing can be shared, kept or
    resumed.

    >>> Run().share.count
    1
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
        said: Mapping[str, object],
        model: object,
        *more: object,
    ) -> Tensor:
        """The hash by which the state of this run of an estimate is known."""
        share = self.share.index, self.share.count
        return key_of(
            data_hash(data),
            condition_digest(condition),
            *more,
            *share,
            mark_of(said),
            weights_of(model),
        )


def in_pieces(
    work: Callable[[int, Tensor], State],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    repetitions: int,
    rows: int,
    key: Tensor,
    run: Run,
) -> State:
    """What `work(repetition, rows)` finds of each example in each repetition: (repetitions, rows,
    …) by name, in float64 on the CPU.

    `shapes` are those of one example's tensors. Progress counts examples times repetitions of this
    process. Where one of several processes fails, all fail.

    >>> double = lambda repetition, rows: {"value": 2.0 * rows + repetition}
    >>> setting = dict(shapes={"value": ()}, repetitions=2, rows=3, key=key_of(), run=Run(batch=2))
    >>> in_pieces(double, **setting)["value"]
    tensor([[0., 2., 4.],
            [1., 3., 5.]], dtype=torch.float64)
    """
    check_resume(run.resume, key)
    share, failure = run.share, None
    if run.resume is None:
        sizes = {word: (repetitions, rows, *shape) for word, shape in shapes.items()}
        state = {word: torch.zeros(size, dtype=torch.float64) for word, size in sizes.items()}
        state |= {"done": torch.zeros(repetitions, rows, dtype=torch.float32), "key": key}
    else:
        state = {word: v.clone() for word, v in run.resume.items()}
    own = torch.arange(share.index, rows, share.count)
    try:
        for repetition in range(repetitions):
            left = own[state["done"][repetition, own] == 0]
            for part in torch.split(left, run.batch) if len(left) else ():
                for word, found in work(repetition, part).items():
                    found = found if run.differentiable else found.detach()
                    state[word][repetition, part] = found.to(state[word])
                state["done"][repetition, part] = 1
                if run.progress is not None:
                    run.progress(int(state["done"].sum()), repetitions * len(own))
                if run.checkpoint is not None:
                    run.checkpoint({word: v.clone() for word, v in state.items()})
    except Exception as error:
        failure = error  # the others wait at the sum
    fail_together(share, failure)
    return {word: share.sum(state[word]) for word in shapes}


__all__ = [
    "FailedElsewhere",
    "OtherState",
    "Run",
    "Share",
    "condition_digest",
    "data_hash",
    "fail_together",
    "in_pieces",
    "key_of",
    "law_of",
    "mark_of",
    "weights_of",
]

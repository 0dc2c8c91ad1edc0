"""Numbers of a step, read from the device without stopping it."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What a step said: its loss, the norm of its gradient, whether both are finite, and whether a
    process was asked to stop.

    >>> Reading(0, 1.5, 0.1, False, False).loss
    1.5
    """

    step: int
    loss: float
    norm: float
    bad: bool
    stop: bool


class Readings:
    """Readings in the order of their steps, `late` by so many: by one on a GPU, when the next step
    is under way already, so that neither waits for the other; at once on a CPU.

    >>> readings = Readings(late=0)
    >>> [reading.loss for reading in readings.push(0, torch.tensor([1.5, 0.1, 0.0, 0.0]))]
    [1.5]
    """

    def __init__(self, late: int) -> None:
        self.late = late
        self._under_way: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, step: int, numbers: Tensor) -> Iterator[Reading]:
        """Those that are there once this step has been started; `numbers` are the loss, the norm,
        and two flags."""
        event = None
        if numbers.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            numbers = numbers.to("cpu", non_blocking=True)
            event.record()
        self._under_way.append((step, numbers, event))
        yield from self._until(self.late)

    def rest(self) -> Iterator[Reading]:
        """All that are still under way."""
        yield from self._until(0)

    def _until(self, left: int) -> Iterator[Reading]:
        while len(self._under_way) > left:
            step, numbers, event = self._under_way.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, bad, stop = numbers.tolist()
            yield Reading(step, loss, norm, bad > 0, stop > 0)


__all__ = ["Reading", "Readings"]

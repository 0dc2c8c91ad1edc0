"""The training loop: AdamW, warm-up and decay, clipping, averages, on one process or many."""

import math
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vdiff._known_range import widen_trained
from vdiff._precision import device_of, to_float64
from vdiff._validate import Count, validated
from vdiff.errors import InvalidType, InvalidValue
from vdiff.likelihood.estimate import Estimate
from vdiff.objective import Objective
from vdiff.terminal import say
from vdiff.training.batches import Batches, seed_everything
from vdiff.training.config import Config
from vdiff.training.described import check_described
from vdiff.training.guard import autocast, memory_hint, not_finite
from vdiff.training.ranks import all_reduce, from_first, here, on_first
from vdiff.training.record import Reading, Readings, Record, tensorboard
from vdiff.training.run import Run
from vdiff.training.signals import stopping
from vdiff.training.state import State
from vdiff.training.trained import fingerprint

Log = Callable[[dict[str, Any]], None]
Validate = Callable[[Objective], float | Estimate]
Policy = Literal["skip", "raise"]
PATIENCE = 10  # steps in a row without a finite loss
LATE = {"cuda": 1}  # by how many steps numbers are read


@validated
def train(
    objective: Objective,
    data: Tensor,
    config: Config,
    *,
    labels: Tensor | None = None,
    run: Run | None = None,
    log: Log | None = None,
    validate: Validate | None = None,
    every: Count = 500,
    store_every: Count | None = None,
    on_nonfinite: Policy = "skip",
    quiet: bool = False,
) -> Objective:
    """Train an objective on data as its decoder takes it; returns the exponential moving average
    of its weights.

    Images, times, noise and the seeds of dropout are pure functions of (seed, step, slot): the
    same on any number of processes and of micro-batches, but for rounding and dropout. With a
    `run` the training resumes from the newest checkpoint to the last bit, and writes one every
    `store_every` steps and at the end. When a signal (SIGTERM, Ctrl-C, SIGUSR1) asks it to stop,
    it finishes its step, writes a checkpoint and leaves with the signal's exit code; a second
    signal ends it at once.

    In a process group, such as that of `vdiff.training.processes` under torchrun, the objective is
    wrapped in DDP, and all ranks start from the first one's weights.

    Args:
        labels: (n,) classes, for a config that is `conditional`.
        log: receives a dictionary every `every` steps.
        validate: a bound of the averaged weights in bits/dim for the log, such as
            `Validation(images)`; every process calls it.
        store_every: `every` by default.
        on_nonfinite: "skip" leaves a step out whose loss or gradient is not finite, counts it, and
            raises after ten in a row; "raise" raises at the first. Neither weights nor averages
            ever see one.

    Raises:
        ValueError: for such losses, with the images of that step in nonfinite-….json of the run;
            for a batch that cannot be shared evenly; for data that does not fit.
        SystemExit: if a signal asked to stop.

    >>> network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
    >>> config, history = Config(network, steps=2, batch=4), []
    >>> data = torch.randint(0, 17, (8, 1, 8, 8))
    >>> averaged = train(config.objective(), data, config, log=history.append, quiet=True)
    >>> history[-1]["step"], averaged.training
    (2, False)
    """
    if run is not None:
        run.check(config)
    trainer = Trainer(objective, data, config, labels=labels, run=run, on_nonfinite=on_nonfinite)
    state = trainer.state
    listeners = [] if log is None else [log]
    if run is not None and here().first:
        listeners += [run.log, *tensorboard(run.folder / "tensorboard", state.step)]
    with ExitStack() as stack:
        stack.callback(trainer.release)
        asked: Callable[[], int] = stack.enter_context(stopping()) if run is not None else int
        options: dict[str, Any] = {"first": state.step, "quiet": quiet or not here().first}
        record = Record(config.steps, trainer.unit, listeners=listeners, **options)
        stack.enter_context(record)
        trainer.fit(record, validate, every, store_every or every, asked)
    averaged = state.averaged
    widen_trained(averaged.model, *objective.schedule.ends())
    widen_trained(averaged.model, *averaged.schedule.ends())
    for mean, p in zip(averaged.parameters(), objective.parameters(), strict=True):
        mean.requires_grad_(p.requires_grad)  # so that one can train it further
    averaged.trained_on = tuple(state.about["data"])
    if run is not None:
        on_first(lambda: run.finish(state))  # no rank returns before the file is there
    return averaged


class Trainer:
    """One training: what a step needs, and what is done between steps."""

    def __init__(
        self,
        objective: Objective,
        data: Tensor,
        config: Config,
        *,
        labels: Tensor | None = None,
        run: Run | None = None,
        on_nonfinite: Policy = "skip",
    ) -> None:
        self.config, self.run, self.on_nonfinite, self.place = config, run, on_nonfinite, here()
        self.device = device_of(objective)
        if any(p.is_meta for p in objective.parameters()):
            hint = "objective.to_empty(device=…), then load or initialise its weights"
            raise InvalidValue("objective", "have weights", "the meta device", hint)
        self.batches = Batches(data, config, labels=labels, place=self.place, device=self.device)
        self.objective = objective.train()
        network = getattr(objective.model, "network", objective.model)
        if not isinstance(network, nn.Module):
            what, hint = "hold a network that is an nn.Module", "nothing else has weights"
            raise InvalidType("objective", what, repr(network), hint)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = State(objective, config)
        given = labels if config.conditional else None
        self.state.about = {"data": [on_first(lambda: fingerprint(data, given))]}
        if run is not None:
            self.state.about["unlike"] = check_described(objective, config)
            run.restore(self.state)
        else:
            from_first(self.state.tensors())
        if config.compile:
            network.compile()
        self.wrapped: nn.Module = objective
        if self.place.count > 1:
            self.wrapped = DistributedDataParallel(objective, static_graph=True)
            # they are equal already; as an argument it is deprecated in some versions of torch
            self.wrapped.broadcast_buffers = False
            self.warm_up_ddp()
        groups = {group["name"]: group["params"] for group in self.state.optimizer.param_groups}
        self.network_parameters = groups.get("model", [])
        self.schedule_parameters = groups.get("schedule", [])
        self.dims = math.prod(config.shape) * math.log(2)
        self.unit = "bits_per_dim" if objective.loss.is_bound else "loss"
        self.last: Reading | None = None

    def warm_up_ddp(self) -> None:
        """One backward pass that changes nothing: with a static graph, DDP finds parameters
        without a gradient in the first one, and can leave micro-batches unsynchronized only after
        it."""
        learned = {name for name, _ in self.objective.named_parameters()}
        state = self.objective.state_dict()
        buffers = [value for name, value in state.items() if name not in learned]
        before = [buffer.clone() for buffer in buffers]
        self.losses(self.state.step, 0).sum().backward()  # type: ignore[no-untyped-call]
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        self.state.optimizer.zero_grad()

    def losses(self, step: int, part: int) -> Tensor:
        """The loss of each example of this process in a micro-batch, nats."""
        seed_everything(self.config.seed, step, self.place, part)
        batch = self.batches(step, part)
        with autocast(self.config, self.device):
            losses: Tensor = self.wrapped(
                batch.data, u=batch.u, eps=batch.eps, condition=batch.condition
            )
        return losses

    def release(self) -> None:
        """Drop the DDP wrapper: over gloo, it must not outlive its group."""
        self.wrapped = self.objective

    def fit(
        self,
        record: Record,
        validate: Validate | None,
        every: int,
        store_every: int,
        asked: Callable[[], int],
    ) -> None:
        """All steps that are left."""
        state, stored, stop = self.state, self.state.step, False
        readings = Readings(late=LATE.get(self.device.type, 0))
        for step in range(state.step, self.config.steps):
            for reading in readings.push(step, self.step(step, asked)):
                stop = self.note(reading, record) or stop
            state.step = step + 1
            last = state.step == self.config.steps
            write, store = last or state.step % every == 0, last or state.step % store_every == 0
            if write or store or stop:
                for reading in readings.rest():
                    stop = self.note(reading, record) or stop
            if write:
                try:
                    record.write(self.entry(validate))
                except Exception:  # of the validation: what was trained is kept
                    if self.run is not None and store:
                        self.run.store(state)
                    raise
            if self.run is not None and (store or stop):
                stored = state.step if self.run.store(state) else stored
            if stop:
                self.leave(asked(), stored)

    def step(self, step: int, asked: Callable[[], int]) -> Tensor:
        """One step; the loss in bits/dim, the norm of its gradient, whether they are not finite,
        and whether to stop, over all ranks."""
        config, optimizer = self.config, self.state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * pace(step, config.warmup, config.steps, config.decay)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in range(config.accumulate):
            last = part == config.accumulate - 1
            with memory_hint(config, self.place), self._synchronized(last):
                loss = self.losses(step, part).mean() / (self.dims * config.accumulate)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        for p in self.network_parameters:
            if p.grad is not None and p.grad.layout is not torch.strided:
                p.grad = p.grad.to_dense()  # AdamW takes no sparse gradients
        gradients = [p.grad for p in self.network_parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.network_parameters, config.clip, norm)
        total = to_float64(torch.stack(losses).sum())
        finite = total.isfinite() & norm.isfinite()
        for p in self.schedule_parameters:
            finite &= p.grad is None or p.grad.isfinite().all()
        flags = [(~finite).to(total), torch.full_like(total, asked() > 0)]
        numbers = torch.stack([total, norm.to(total.dtype), *flags])
        numbers = all_reduce(numbers) / self.place.count
        self.state.advance(numbers[2] > 0)
        self.objective.update(all_reduce)
        self.state.averages.update(step)
        return numbers

    def note(self, reading: Reading, record: Record) -> bool:
        """Add a reading to the state; returns whether to stop. Raises if its loss is not finite
        and the policy says so."""
        state, self.last = self.state, reading
        if not reading.bad:
            state.in_a_row = 0
            state.window = [state.window[0] + reading.loss, state.window[1] + 1]
        else:
            state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
            if self.on_nonfinite == "raise" or state.in_a_row >= PATIENCE:
                folder = self.run.folder if self.run is not None and self.place.first else None
                raise not_finite(
                    self.objective, self.batches, reading.step, state.in_a_row, folder
                )
        record.advance(reading.loss)
        return reading.stop

    def entry(self, validate: Validate | None) -> dict[str, Any]:
        """The entry of the log for the steps since the last one."""
        state, last = self.state, self.last
        total, count = state.window
        entry: dict[str, Any] = {"step": state.step}
        if count:
            entry[f"train_{self.unit}"] = total / count
        if last is not None:
            entry["gradient_norm"] = last.norm if math.isfinite(last.norm) else None
        entry |= {"lr": self.state.optimizer.param_groups[0]["lr"], "skipped": state.skipped}
        if validate is not None:
            entry |= self.validated(validate(state.averaged))
        state.window = [0.0, 0]
        return entry

    def validated(self, found: float | Tensor | Estimate) -> dict[str, float | None]:
        """The numbers of a validation for the log, and the best so far; one that is not finite is
        None in the log, and warned of."""
        state, numbers = self.state, dict[str, float | None]()
        if isinstance(found, Estimate):
            numbers["selection_error"] = found.monte_carlo
            numbers["selection_error_over_images"] = found.images
        value = found.value if isinstance(found, Estimate) else float(found)
        numbers["selection_bits_per_dim"] = value
        if not math.isfinite(value):
            if self.place.first:
                what = f"the validation at step {state.step} is {value}"
                warnings.warn(
                    f"{what}: it is logged as none, and training continues", stacklevel=2
                )
        elif state.best is None or value < state.best["bits_per_dim"]:
            state.best = {"step": state.step, "bits_per_dim": value}
        return {k: v if v is not None and math.isfinite(v) else None for k, v in numbers.items()}

    def leave(self, number: int, stored: int) -> None:
        """End the process with the signal's exit code; 0 stands for a signal of another rank."""
        if self.place.first:
            done = f"\nasked to stop after step {self.state.step}"
            say(f"{done}; the checkpoint of step {stored} continues from there", file=sys.stderr)
        raise SystemExit(128 + (number or 15))

    def _synchronized(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()


def pace(step: int, warmup: int, steps: int, decay: str = "cosine") -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to zero, or "constant".

    >>> pace(0, 100, 1000), pace(550, 100, 1000), pace(550, 100, 1000, "constant")
    (0.01, 0.5, 1.0)
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


__all__ = ["Trainer", "pace", "train"]

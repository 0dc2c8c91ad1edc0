"""What one training step does, and what happens between steps."""

import math
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vdiff._diffusion import diffusion_of
from vdiff._precision import device_of, to_float64
from vdiff.errors import InvalidValue
from vdiff.likelihood.estimate import Estimate
from vdiff.masks import MaskSampler, name_of
from vdiff.objective import Objective
from vdiff.terminal import say
from vdiff.training.batches import Batches, seed_everything
from vdiff.training.config import Config
from vdiff.training.failures import autocast, memory_hint, not_finite
from vdiff.training.logger import AsyncMetrics, Logger, StepMetrics
from vdiff.training.mistakes import check_trainable, network_to_train, warn_of_pixels
from vdiff.training.ranks import all_reduce, broadcast, on_rank_zero, rank
from vdiff.training.run import Run
from vdiff.training.sources import Examples
from vdiff.training.state import State
from vdiff.training.structure import check_structure
from vdiff.training.trained_on import remember
from vdiff.training.validation import LossEstimate

Validate = Callable[[Objective], float | Estimate]
Policy = Literal["skip", "raise"]
PATIENCE = 10  # non-finite steps in a row
DELAY = {"cuda": 1}  # steps until metrics are read


class Trainer:
    """One training: its parts, a step, and what happens between steps."""

    def __init__(
        self,
        objective: Objective,
        data: Examples,
        config: Config,
        *,
        labels: Tensor | None = None,
        run: Run | None = None,
        workers: int = 0,
        on_nonfinite: Policy = "skip",
        mask: MaskSampler | None = None,
    ) -> None:
        self.config, self.run, self.on_nonfinite, self.rank = config, run, on_nonfinite, rank()
        self.device = device_of(objective)
        if any(p.is_meta for p in objective.parameters()):
            hint = "objective.to_empty(device=…), then load or initialise its weights"
            raise InvalidValue("objective", "have weights", "the meta device", hint)
        options: dict[str, Any] = {"labels": labels, "rank": self.rank, "device": self.device}
        options |= {"mask": mask, "independent": objective.loss.independent}
        process = options["process"] = diffusion_of(objective.model)
        self.batches = Batches(data, config, workers=workers, **options)
        self.objective, self.looked = objective.train(), not self.rank.is_zero
        check_trainable(objective)
        network = network_to_train(objective)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = State(objective, config)
        self._restore(data, mask)
        if config.compile:
            network.compile()
        self._distribute()
        groups = {group["name"]: group["params"] for group in self.state.optimizer.param_groups}
        self.network_parameters = groups.get("model", [])
        self.schedule_parameters = groups.get("schedule", [])
        self.dims = math.prod(config.shape) * math.log(2)
        whole = objective.loss.is_bound and mask is None
        self.unit = "bits_per_dim" if whole else "loss"
        self.bits = "bits_per_dim" if process.continuous else "bits_per_token"
        self.last: StepMetrics | None = None

    def _restore(self, data: Examples, mask: MaskSampler | None) -> None:
        """Record what is trained on, and resume from the run, if there is one."""
        source, state, run = self.batches.source, self.state, self.run
        hashed = on_rank_zero(lambda: source.fingerprint(self.config.conditional))
        state.provenance = {"data": [hashed], "split": source.record}
        state.provenance["mask"] = None if mask is None else name_of(mask)
        if run is None:
            broadcast(state.tensors())
            return
        state.provenance["unlike"] = check_structure(self.objective, self.config)
        state.stream = self._stream_state()
        run.restore(state)
        on_rank_zero(lambda: remember(run.folder, data, hashed, finite=mask is None))
        if self.batches.stream is not None:
            self.batches.stream.load(state.stream)

    def _distribute(self) -> None:
        """Wrap the objective in DDP where there are several processes."""
        self.wrapped: nn.Module = self.objective
        if self.rank.world_size > 1:
            self.wrapped = DistributedDataParallel(self.objective, static_graph=True)
            # they are equal already; some versions of torch deprecate the argument
            self.wrapped.broadcast_buffers = False
            self.warm_up_ddp()

    def warm_up_ddp(self) -> None:
        """Run one backward pass that changes nothing. With a static graph, DDP finds parameters
        without a gradient in the first one, and `no_sync` works only after it."""
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
        batch = self.batches(step, part)  # before the seed: a data set may draw from it
        if not self.looked:
            warn_of_pixels(batch.data, self.objective)
            self.looked = True
        seed_everything(self.config.seed, step, self.rank, part)
        with autocast(self.config, self.device):
            losses: Tensor = self.wrapped(batch.data, condition=batch.condition, **batch.draws)
        return losses

    def _stream_state(self) -> Any:
        """The state of a stream of data. Warns if it has none."""
        stream = self.batches.stream
        if stream is not None and not stream.resumes and self.rank.is_zero:
            what = "the data have no state_dict and load_state_dict: a run that is resumed"
            warnings.warn(f"{what} reads them from their start, not bit for bit", stacklevel=2)
        return None if stream is None else stream.state()

    def _store(self) -> bool:
        """Write a checkpoint of the run; returns whether it was written."""
        assert self.run is not None
        if self.batches.stream is not None:
            self.state.stream = self.batches.stream.state()
        return self.run.store(self.state)

    def release(self) -> None:
        """Drop the DDP wrapper: over gloo it must not outlive its group."""
        self.wrapped = self.objective

    def fit(
        self,
        logger: Logger,
        validate: Validate | None,
        every: int,
        store_every: int,
        caught: Callable[[], int],
    ) -> None:
        """Train for the remaining steps."""
        state, stored, stop = self.state, self.state.step, False
        metrics = AsyncMetrics(delay=DELAY.get(self.device.type, 0))
        for step in range(state.step, self.config.steps):
            for due in metrics.push(step, self.step(step, caught)):
                stop = self.count(due, logger) or stop
            state.step = step + 1
            last = state.step == self.config.steps
            write, store = last or state.step % every == 0, last or state.step % store_every == 0
            if write or store or stop:
                for due in metrics.rest():
                    stop = self.count(due, logger) or stop
            if write:
                try:
                    logger.write(self.log_entry(validate))
                except Exception:  # of the validation: keep what was trained
                    if self.run is not None and store:
                        self._store()
                    raise
            if self.run is not None and (store or stop):
                stored = state.step if self._store() else stored
            if stop:
                self.exit(caught(), stored)

    def step(self, step: int, caught: Callable[[], int]) -> Tensor:
        """One step. Returns the loss in bits/dim, the norm of its gradient, whether they are not
        finite, and whether to stop, over all ranks."""
        config, optimizer = self.config, self.state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * lr_lambda(
                step, config.warmup, config.steps, config.decay
            )
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in range(config.accumulate):
            last = part == config.accumulate - 1
            with memory_hint(config, self.rank), self._synchronized(last):
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
        flags = [(~finite).to(total), torch.full_like(total, caught() > 0)]
        numbers = torch.stack([total, norm.to(total.dtype), *flags])
        numbers = all_reduce(numbers) / self.rank.world_size
        self.state.advance(numbers[2] > 0)
        self.objective.update(all_reduce)
        self.state.ema.update(step)
        return numbers

    def count(self, metrics: StepMetrics, logger: Logger) -> bool:
        """Add the metrics of a step to the state; returns whether to stop. Raises for a non-finite
        step if the policy says so."""
        state, self.last = self.state, metrics
        if not metrics.bad:
            state.in_a_row = 0
            state.window = [state.window[0] + metrics.loss, state.window[1] + 1]
        else:
            state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
            if self.on_nonfinite == "raise" or state.in_a_row >= PATIENCE:
                folder = self.run.folder if self.run is not None and self.rank.is_zero else None
                raise not_finite(
                    self.objective, self.batches, metrics.step, state.in_a_row, folder
                )
        logger.advance(metrics.loss)
        return metrics.stop

    def log_entry(self, validate: Validate | None) -> dict[str, Any]:
        """The log entry for the steps since the last one."""
        state, last = self.state, self.last
        total, count = state.window
        entry: dict[str, Any] = {"step": state.step}
        if count:
            entry[f"train_{self.unit}"] = total / count
        if last is not None:
            entry["gradient_norm"] = last.norm if math.isfinite(last.norm) else None
        entry |= {"lr": self.state.optimizer.param_groups[0]["lr"], "skipped": state.skipped}
        if validate is not None:
            entry |= self.validation_entry(validate(state.averaged))
        state.window = [0.0, 0]
        return entry

    def validation_entry(self, bound: float | Tensor | Estimate) -> dict[str, Any]:
        """A validation for the log. Updates the best one. A non-finite number is logged as None,
        with a warning."""
        state, numbers = self.state, dict[str, float | None]()
        unit = "loss" if isinstance(bound, LossEstimate) else self.bits
        if isinstance(bound, Estimate):
            numbers["selection_error"] = bound.monte_carlo
            numbers["selection_error_over_images"] = bound.images
        value = bound.value if isinstance(bound, Estimate) else float(bound)
        numbers[f"selection_{unit}"] = value
        if not math.isfinite(value):
            if self.rank.is_zero:
                what = f"the validation at step {state.step} is {value}"
                warnings.warn(
                    f"{what}: it is logged as none, and training continues", stacklevel=2
                )
        elif state.best is None or value < state.best["bits_per_dim"]:
            state.best = {"step": state.step, "bits_per_dim": value}
        entry: dict[str, Any] = {name: _finite(number) for name, number in numbers.items()}
        if isinstance(bound, LossEstimate):
            rows = [
                (b.logsnr_max, b.logsnr_min, b.loss.value, b.loss.monte_carlo) for b in bound.bands
            ]
            entry["selection_loss_by_logsnr"] = [[_finite(v) for v in row] for row in rows]
        return entry

    def exit(self, number: int, stored: int) -> None:
        """End the process with the signal's exit code; `number` is 0 for another rank's signal."""
        if self.rank.is_zero:
            done = f"\nasked to stop after step {self.state.step}"
            say(f"{done}; the checkpoint of step {stored} continues from there", file=sys.stderr)
        raise SystemExit(128 + (number or 15))

    def _synchronized(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def lr_lambda(step: int, warmup: int, steps: int, decay: str = "cosine") -> float:
    """The factor of the learning rate: linear warm-up, then a cosine down to 0, or "constant".

    >>> lr_lambda(0, 100, 1000), lr_lambda(550, 100, 1000), lr_lambda(550, 100, 1000, "constant")
    (0.01, 0.5, 1.0)
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

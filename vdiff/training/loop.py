"""The training loop: AdamW, warm-up and decay, clipping, averages, on one process or many."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any

from torch import Tensor

from vdiff._known_range import widen_trained
from vdiff._validate import Count, Whole, validated
from vdiff.masks import MaskSampler
from vdiff.objective import Objective
from vdiff.terminal import say
from vdiff.training.config import Config
from vdiff.training.logger import Logger, tensorboard
from vdiff.training.ranks import on_rank_zero, rank
from vdiff.training.run import Run
from vdiff.training.signals import catch_signals
from vdiff.training.sources import Examples
from vdiff.training.trainer import Policy, Trainer, Validate
from vdiff.training.validation import Validation

Log = Callable[[dict[str, Any]], None]


@validated
def train(
    objective: Objective,
    data: Examples,
    config: Config,
    *,
    labels: Tensor | None = None,
    run: Run | None = None,
    log: Log | None = None,
    validate: Validate | None = None,
    every: Count = 500,
    store_every: Count | None = None,
    workers: Annotated[int, Whole(0)] = 0,
    on_nonfinite: Policy = "skip",
    mask: MaskSampler | None = None,
    quiet: bool = False,
) -> Objective:
    """Train an objective on data, which its decoder encodes; returns the exponential moving
    average of its weights.

    Images, times, noise, masks and the seeds of dropout are functions of (seed, step, slot). The
    number of processes and of micro-batches changes only rounding, dropout, and what a loss draws
    beside them, such as the latent of `MuLAN`. With a `run`, training resumes bit for bit from the
    newest checkpoint, and writes one every `store_every` steps and at the end. After a signal
    (SIGTERM, Ctrl-C, SIGUSR1) it finishes its step, writes a checkpoint and exits with the
    signal's code; a second signal ends it at once.

    In a process group, such as that of `vdiff.training.distributed` under torchrun, the objective
    is wrapped in DDP, and all ranks start from the weights of rank 0.

    Args:
        data: a tensor (n, …); `Images` of `vdiff.data.load`, which have labels and, if they lie in
            a file, are read step by step; a map-style `torch.utils.data.Dataset`; or an iterable
            of examples. Items are tensors, or (tensor, label) for a `conditional` config.
        labels: (n,) classes, for a tensor and a config that is `conditional`.
        log: receives a dictionary every `every` steps.
        validate: returns a number of the averaged weights for the log, such as
            `Validation(images)`: a bound in bits/dim, or without a decoder the loss; every process
            calls it.
        store_every: `every` by default.
        workers: processes that load the items of a map-style data set, on each rank. An item is
            drawn with generators that are functions of (seed, step, slot).
        on_nonfinite: "skip" skips and counts steps with a non-finite loss or gradient, and raises
            after ten in a row; "raise" raises at the first. Neither weights nor averages change.
        mask: which dimensions of an example are modelled, and which given: a function of (x,
            generator) for one example, such as those of `vdiff.masks`. The loss is the sum over
            the modelled dimensions, of −log p(x_modelled | x_given), over the number of all
            dimensions; the log calls it `train_loss`. Whole examples are trained where a mask
            models all (`NothingGiven`).

    An iterable is drawn by every process, which uses its own slots; it must not be divided over
    processes itself. It starts again at its end. If it has `state_dict` (plain data) and
    `load_state_dict`, checkpoints hold its state, and training resumes bit for bit.

    Warns:
        UserWarning: if a run's data is an iterable without `state_dict`: it resumes inexactly.

    Raises:
        ValueError: for non-finite losses, with the images of that step in nonfinite-….json of the
            run; if the batch cannot be shared evenly; for data that does not fit the config.
        SystemExit: after a signal.

    >>> network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
    >>> config, history = Config(network, steps=2, batch=4), []
    >>> data = torch.randint(0, 17, (8, 1, 8, 8))
    >>> averaged = train(config.objective(), data, config, log=history.append, quiet=True)
    >>> history[-1]["step"], averaged.training
    (2, False)
    """
    if run is not None:
        run.check(config)
    options: dict[str, Any] = {"labels": labels, "run": run, "workers": workers}
    options |= {"on_nonfinite": on_nonfinite, "mask": mask}
    trainer = Trainer(objective, data, config, **options)
    if isinstance(validate, Validation):
        validate.check(objective)
    state = trainer.state
    listeners = [] if log is None else [log]
    if run is not None and rank().is_zero:
        listeners += [run.log, *tensorboard(run.folder / "tensorboard", state.step)]
    with ExitStack() as stack:
        stack.callback(trainer.release)
        caught: Callable[[], int] = stack.enter_context(catch_signals()) if run else int
        shown: dict[str, Any] = {"first": state.step, "quiet": quiet or not rank().is_zero}
        if 0 < state.step < config.steps and not shown["quiet"]:
            say(f"resumes from step {state.step:,} of {config.steps:,}", file=sys.stderr)
        logger = Logger(config.steps, trainer.unit, listeners=listeners, **shown)
        stack.enter_context(logger)
        trainer.fit(logger, validate, every, store_every or every, caught)
    averaged = state.averaged
    widen_trained(averaged.model, *objective.schedule.ends())
    widen_trained(averaged.model, *averaged.schedule.ends())
    for mean, p in zip(averaged.parameters(), objective.parameters(), strict=True):
        mean.requires_grad_(p.requires_grad)  # so that it can be trained further
    averaged.trained_on = tuple(state.provenance["data"])
    if run is not None:
        on_rank_zero(lambda: run.finish(state))  # no rank returns before the file exists
    return averaged

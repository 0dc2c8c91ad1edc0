"""What has a density under the probability flow."""

from typing import Any

import torch
from torch import Tensor

from vdiff._inputs import finite_values
from vdiff._partial import Partial
from vdiff._validate import require
from vdiff.likelihood.chunks import Share, State
from vdiff.likelihood.protocol import model_protocol
from vdiff.sampling.grid import of_a_batch
from vdiff.schedule import Schedule


def unclipped(model: Any) -> None:
    """Rule: the model's x̂ is not clipped."""
    hint = "clipping changes the flow whose density this is"
    for word, value in model_protocol(model).items():
        clipped = word.startswith("x̂ clipped")
        require(not clipped, "model", "leave x̂ as it is", f"{word} {value}", hint)


def in_one_process(
    differentiable: bool, share: Share, resume: State | None, checkpoint: object
) -> None:
    """Rule: an estimate with a graph is not shared, saved or resumed."""
    stored = share.count > 1 or resume is not None or checkpoint is not None
    fits = not (stored and differentiable and torch.is_grad_enabled())
    what = "be False where an estimate is shared, kept or resumed"
    got, hint = "share, resume or checkpoint", "a state on disk has no graph"
    require(fits, "differentiable", what, got, hint)


def finite_but_for_absent(x: Tensor, absent: Tensor | None) -> None:
    """Rule: data are finite, except what is absent."""
    finite_values(Partial.of(x, None, absent).clean(x), "x", {})


def one_flow(
    schedule: Schedule, prior: object, mask: Tensor | None, absent: Tensor | None
) -> None:
    """Rule: all examples have one path, and the prior is N(0, I) where the path or a mask is of
    dimensions."""
    hint = "a loop over examples, each with its own schedule"
    one = "be one for all examples"
    require(not of_a_batch(schedule), "schedule", one, type(schedule).__name__, hint)
    whole = mask is None and absent is None and not schedule.over_dims
    hint = "the noisy density of a part given the rest is another"
    without = "be left out with a mask or a schedule over dimensions"
    require(prior is None or whole, "prior", without, type(prior).__name__, hint)

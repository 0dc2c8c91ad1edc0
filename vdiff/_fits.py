"""Rules over the parts of an objective."""

import warnings
from typing import Any

from torch import Tensor, nn

from vdiff._arguments import (
    decoder_factorises,
    decoder_fits,
    decoder_with_network,
    finite_end,
    fixed_ends,
    fixed_for_draws,
    fixed_shape,
    learned_variance,
    noise_on_chain,
    of_no_batch,
    original,
    same_noise_for_all,
    variance_trained,
    weight_of_noise,
)
from vdiff._diffusion import diffusion_of
from vdiff._inputs import Ends, data, is_integer
from vdiff._network import check_no_data_parallel
from vdiff._precision import device_of
from vdiff._validate import require
from vdiff.errors import InvalidType
from vdiff.losses import VLB, Hybrid, Loss, Weighted
from vdiff.schedule import Schedule
from vdiff.weighting import Weighting
from vdiff.weighting._check import check_values, divides_table, lowest, same_chain


def holds_no_replicas(model: Any) -> None:
    """Rule: no nn.DataParallel."""
    check_no_data_parallel("model", original(model))


def loss_fits(schedule: Schedule, loss: Loss | None) -> None:
    """Rule: the parts of the loss fit the schedule."""
    loss = Weighted() if loss is None else loss
    if isinstance(loss, Weighted):
        noise_on_chain(schedule, loss.steps)
    else:
        finite_end(schedule)
    of_no_batch(schedule)
    if not isinstance(loss, VLB) or loss.includes_zero:
        same_noise_for_all(schedule)
    divides_table(schedule, loss.steps)
    if loss.decoder is not None:
        decoder_fits(loss.decoder, schedule)
    weighting = getattr(loss, "weighting", None)
    if weighting is not None:
        same_chain(weighting, loss.steps)
        if device_of(schedule).type != "meta":  # learned ends have no values there
            ends = schedule.logsnr_max, lowest(schedule)
            high, low = weighting.support() if isinstance(weighting, Weighting) else ends
            check_values(weighting, min(high, ends[0]), max(low, ends[1]))


def dims_fit_parts(self: Any, x: Tensor, mask: Tensor | None, absent: Tensor | None) -> None:
    """Rule: the decoder of the loss takes masks, and the schedule the dimensions of x."""
    decoder_factorises(self.decoder, mask, absent)
    self.schedule.check_shape(x)


def no_replica(self: nn.Module) -> None:
    """Rule: nn.DataParallel has not copied the module; the attribute is torch's own mark."""
    if getattr(self, "_is_replica", False):
        hint = "its replicas draw their times apart: use DistributedDataParallel"
        raise InvalidType("self", "not be wrapped in nn.DataParallel", "a replica", hint)


def trains_what_is_learned(self: Any) -> None:
    """Rule: the loss trains the variance and the schedule that are learned."""
    loss, schedule = self.loss, self.schedule
    if loss.includes_zero:
        fixed_shape(schedule)
    if isinstance(loss, Hybrid):
        decoder_with_network(schedule, loss.decoder if loss.bound_weight else None)
        learned_variance(self.model, loss.bound_weight)
    elif loss.includes_zero:
        fixed_ends(schedule)
    elif isinstance(loss, Weighted) or loss.steps is None:
        variance_trained(self.model)


def times_of_the_loss(self: Any, x: Tensor, t: Tensor | None, u: Tensor | None) -> None:
    """Rule: the given times are times of this loss, and its weight there is finite."""
    loss, field = self.loss, isinstance(self.loss, Weighted)
    if t is not None:
        Ends(zero=loss.includes_zero, field=field)(t, "t", {"x": x, "steps": loss.steps})
    if u is not None and not field:
        Ends(zero=True)(u, "u", {"x": x})
    if isinstance(loss, Weighted):
        weight_of_noise(self.model, loss.weighting, self.schedule, loss.steps, t)


def drawn_once(u: Tensor | None, t: Tensor | None) -> None:
    """Rule: `u` or `t`, not both."""
    require(u is None or t is None, "u", "be left out where t is given", "both")


def floating_without_decoder(self: Any, x: Tensor, absent: Tensor | None) -> None:
    """Rule: without a decoder, data is floating, or tokens where the model's process is over
    tokens."""
    process = diffusion_of(self.model)
    if not process.continuous:
        process.check(x, "x", {"absent": absent})
        process.check_decoder(self.decoder)
        fixed_for_draws(self.model, self.schedule, self.steps)
    elif self.decoder is None:
        if isinstance(x, Tensor) and is_integer(x):
            hint = (
                "a decoder encodes levels: Objective(…, loss=VLB(Categorical(256))) trains the "
                "bound, loss=Weighted(…, decoder=Categorical(256)) a weighted loss"
            )
            raise InvalidType(
                "x", "be real and floating where the loss has no decoder", x.dtype, hint
            )
        data(x, "x", {})


def warn_of_first_level(loss: Loss, schedule: Schedule) -> None:
    """Warn if no draw trains t = 0 of a chain, where `sample` and some decoders call the
    network."""
    weighted = isinstance(loss, Weighted) and loss.decoder is not None
    alone = isinstance(loss, Hybrid) and loss.bound_weight > 0 and loss.decoder is None
    if loss.steps is None or not (weighted or alone):
        return
    steps, decoder = loss.steps, " and the decoder call" if loss.decoder_uses_network else " calls"
    hint = "give a decoder that uses the network, DiscretizedGaussian(…, uses_network=True)"
    if weighted:
        hint = f"Hybrid({steps}, bound_weight=0) is DDPM's loss at all {steps + 1} times"
        if schedule.reaches_noise:  # where that loss is refused
            hint = "a sampler with levels=trailing(schedule, …) does not call it there"
    warnings.warn(
        f"Objective: on a chain of {steps} steps this loss trains t = 1/{steps} … 1 and not "
        f"t = 0, where the last step of a sampler{decoder} the network ({hint})",
        stacklevel=4,
    )

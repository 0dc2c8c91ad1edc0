"""Model, schedule and loss as one module: what is wrapped, compiled and saved."""

from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import (
    Condition,
    Model,
    asked,
    original,
    synchronised,
)
from vdiff._fits import (
    drawn_once,
    floating_without_decoder,
    holds_no_replicas,
    loss_fits,
    no_replica,
    times_of_the_loss,
    trains_what_is_learned,
    warn_of_first_level,
)
from vdiff._known_range import warn_beyond
from vdiff._validate import Ends, Noise, Random, validated
from vdiff.bound import Bound
from vdiff.decoder import Decoder
from vdiff.errors import InvalidValue, validation_enabled
from vdiff.loss import elbo
from vdiff.losses import VLB, Hybrid, Loss, Weighted
from vdiff.schedule import Schedule
from vdiff.schedule.base import AllReduce
from vdiff.times import stratified


class Objective(nn.Module):
    """Model, schedule and loss as one module whose forward is the loss, nats per example.

    This is what DDP, `torch.compile`, Lightning or accelerate wrap and what a checkpoint saves.
    `loss` is `Weighted(…)`, `VLB(decoder)` or `Hybrid(steps)`. With a decoder, data is taken as it
    is and encoded by it. A weighted or a simple loss has no reconstruction and is no bound.

    Warns:
        UserWarning: where the loss leaves out the first level of a chain, t = 0, at which a
            sampler asks the network: a weighting, or a `bound_weight` above 0 without a decoder.

    >>> from vdiff import Denoiser
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> from vdiff.schedule import LearnedLinear
    >>> model = Denoiser(lambda z, logsnr: 0 * z, X())
    >>> objective = Objective(model, schedule=LearnedLinear(), loss=VLB(Categorical(levels=17)))
    >>> objective(torch.randint(0, 17, (8, 1, 8, 8))).mean().backward()
    """

    trained_on: tuple[str, ...] = ()  # hashes of the data, of what `vdiff.training.train` returns

    @validated(rules=[synchronised, holds_no_replicas, loss_fits])
    def __init__(self, model: Model, *, schedule: Schedule, loss: Loss | None = None) -> None:
        super().__init__()
        self.model, self.schedule = original(model), schedule
        self.loss = Weighted() if loss is None else loss
        warn_beyond(self.model, schedule, self.steps)
        warn_of_first_level(self.loss, schedule)

    @property
    def decoder(self) -> Decoder | None:
        """The decoder of the loss."""
        return self.loss.decoder

    @property
    def steps(self) -> int | None:
        """T of the loss; None in continuous time."""
        return self.loss.steps

    def parts(self) -> tuple[Any, Schedule]:
        """The model, whose answers are checked but in a compiled graph, and the schedule."""
        return asked(self.model) if validation_enabled() else self.model, self.schedule

    @validated(
        rules=[
            no_replica, trains_what_is_learned, drawn_once, floating_without_decoder,
            times_of_the_loss,
        ]
    )  # fmt: skip
    def forward(
        self,
        x: Tensor,
        *,
        u: Annotated[Tensor, Ends(zero=True)] | None = None,
        t: Annotated[Tensor, Ends(zero=True)] | None = None,
        eps: Noise | None = None,
        generator: Random | None = None,
        condition: Condition = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of each example, nats. `u` are uniform numbers from which the times are taken
        as this loss draws them, such as a share of `stratified` times; `t` are the times
        themselves. `condition` goes to the model, as in `weighted_elbo`."""
        options: dict[str, Any] = {"eps": eps, "generator": generator, "condition": condition}
        weight: Tensor | None = None
        if u is None and t is None and getattr(self.loss, "resampling", None) is not None:
            u = stratified(len(x), generator=generator, device=x.device)
        if u is not None:
            t, weight = self.loss.place(u)
        if weight is not None:
            options["weight"] = weight
        loss: Tensor = self.loss(self, x, t=t, **options)
        return loss

    @validated
    def bound(self, data: Tensor, **options: Any) -> Bound:
        """The bound in its parts, whatever is trained; raises where there is no decoder."""
        hint = "a weighted loss has no reconstruction term"
        if self.decoder is None:
            raise InvalidValue("decoder", "be given to the loss", None, hint)
        options |= {"schedule": self.schedule, "steps": self.steps, "decoder": self.decoder}
        return elbo(self.model, data, **options)

    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Learn from the losses since the last call: the schedule's `update`, and which terms are
        drawn. Call it once after each optimizer step; `merge` sums a tensor over ranks."""
        self.schedule.update(all_reduce)
        self.loss.update(all_reduce)

    @validated
    def times(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The times of this loss into which uniform numbers fall."""
        return self.loss.place(u)[0]


__all__ = ["VLB", "Hybrid", "Loss", "Objective", "Weighted"]

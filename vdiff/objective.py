"""Model, schedule and loss as one module: what is wrapped, compiled and saved."""

import abc
import warnings
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import (
    Condition,
    Model,
    asked,
    decoder_fits,
    finite_end,
    learned_variance,
    looking_decoder,
    noise_on_chain,
    original,
    synchronised,
    variance_trained,
    weight_of_noise,
)
from vdiff._known_range import warn_beyond
from vdiff._validate import Ends, Noise, Random, Steps, data, require, unchecked, validated
from vdiff.bound import Bound
from vdiff.chain import BoundWeight, fixed_ends, fixed_shape, hybrid_loss, vlb, with_decoder
from vdiff.decoder import Decoder
from vdiff.denoiser import check_no_data_parallel
from vdiff.errors import InvalidType, InvalidValue, under_functorch, validation_enabled
from vdiff.gaussian import device_of
from vdiff.loss import elbo, weighted_elbo
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Schedule
from vdiff.schedule.base import AllReduce
from vdiff.times import on_chain, stratified
from vdiff.weighting import ELBO, WeightFunction, Weighting
from vdiff.weighting.base import check_values, divides_table, lowest, same_chain

_ELBO = ELBO()


class Loss(nn.Module, abc.ABC):
    """What an `Objective` trains: `Weighted`, `VLB` or `Hybrid`. A decoder encodes the data.

    >>> Hybrid(steps=999, bound_weight=0.0)  # DDPM's simple loss
    Hybrid(steps=999, bound_weight=0.0)
    """

    is_bound = False  # whether the loss is the whole bound
    one_level = False  # whether it is one level of a chain, t = 0 among them

    def __init__(self, steps: int | None, decoder: Decoder | None) -> None:
        super().__init__()
        self.steps, self.decoder = steps, decoder

    @property
    def looks(self) -> bool:
        """Whether the decoder looks at the network, so that its level is one of the chain's."""
        return self.decoder is not None and self.decoder.uses_network

    def place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The times into which uniform numbers fall, and what the terms there are multiplied
        by."""
        return u if self.steps is None else on_chain(u, self.steps), None

    @abc.abstractmethod
    def forward(self, objective: "Objective", x: Tensor, **options: Any) -> Tensor:
        """The loss of each example, nats."""

    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Learn from the losses since the last call."""

    def extra_repr(self) -> str:
        parts = {"steps": self.steps, "decoder": self.decoder}
        return ", ".join(f"{name}={part!r}" for name, part in parts.items() if part is not None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Weighted(Loss):
    """`weighted_elbo`. A decoder encodes the data, and measures (`Objective.bound`).

    >>> from vdiff.weighting import Sigmoid
    >>> Weighted(Sigmoid(2.0))
    Weighted(Sigmoid(bias=2.0))
    """

    @validated
    def __init__(
        self,
        weighting: WeightFunction = _ELBO,
        *,
        steps: Steps | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(steps, decoder)
        self.weighting = weighting

    def forward(self, objective: "Objective", x: Tensor, **options: Any) -> Tensor:
        model, schedule = objective.parts()
        x = x if self.decoder is None else self.decoder.encode(x)
        options |= {"weighting": self.weighting, "steps": self.steps}
        return unchecked(weighted_elbo)(model, x, schedule=schedule, **options)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (repr(self.weighting), super().extra_repr())))


class VLB(Loss):
    """The whole bound, `elbo`. With `resampling`, one term of a chain per example, drawn by its
    size: `resampling` has a step for each of the `steps`, and one more for a decoder that looks at
    the network.

    >>> from vdiff.decoder import Categorical
    >>> VLB(Categorical(17)).is_bound
    True
    """

    is_bound = True

    @validated
    def __init__(
        self,
        decoder: Decoder,
        *,
        steps: Steps | None = None,
        resampling: LossSecondMoment | None = None,
    ) -> None:
        super().__init__(steps, decoder)
        self.resampling = resampling
        self.one_level = resampling is not None and self.looks
        if resampling is not None:
            require(steps is not None, "resampling", "come with steps", resampling)
            which = "terms, the decoder's among them" if self.looks else "steps"
            terms = (steps or 0) + int(self.looks)
            what = f"have as many steps as the bound has {which}, {terms}"
            require(resampling.steps == terms, "resampling", what, resampling.steps)

    def place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.resampling is None or self.steps is None:
            return super().place(u)
        share, weight = self.resampling.at(u)
        return ((share * self.resampling.steps).round() - int(self.looks)) / self.steps, weight

    def forward(
        self,
        objective: "Objective",
        x: Tensor,
        *,
        weight: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        model, schedule = objective.parts()
        options |= {"schedule": schedule, "steps": self.steps, "decoder": self.decoder}
        if self.resampling is None:
            return unchecked(elbo)(model, x, **options).total
        if self.looks:
            bound = unchecked(vlb)(model, x, **options)
            term, rest = bound.diffusion + bound.reconstruction, bound.prior
        else:
            bound = unchecked(elbo)(model, x, **options)
            term, rest = bound.diffusion, bound.prior + bound.reconstruction
        if self.training and not under_functorch(term):
            place = options["t"] * (self.steps or 1) + int(self.looks)
            self.resampling.note(place / self.resampling.steps, term.detach())
        # the term that was drawn is divided by n times its probability
        return rest + (term if weight is None else weight.to(term.dtype) * term)

    def update(self, all_reduce: AllReduce | None = None) -> None:
        if self.resampling is not None:
            self.resampling.remember(all_reduce)


class Hybrid(Loss):
    """`hybrid_loss`, of an example and not of a dimension. `bound_weight=0` is DDPM's simple loss
    on all T + 1 levels.

    >>> Hybrid(steps=999).bound_weight
    0.001
    """

    one_level = True

    @validated
    def __init__(
        self,
        steps: Steps,
        *,
        bound_weight: BoundWeight = 0.001,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(steps, decoder)
        self.bound_weight = bound_weight

    def place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        from_first = self.bound_weight == 0 or self.looks
        return (with_decoder if from_first else on_chain)(u, self.steps or 1), None

    def forward(self, objective: "Objective", x: Tensor, **options: Any) -> Tensor:
        model, schedule = objective.parts()
        options |= {"steps": self.steps, "bound_weight": self.bound_weight}
        if self.bound_weight:
            options["decoder"] = self.decoder  # it has a term
        elif self.decoder is not None:
            x = self.decoder.encode(x)
        return unchecked(hybrid_loss)(model, x, schedule=schedule, **options) * x[0].numel()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bound_weight={self.bound_weight}"


def holds_no_replicas(model: Any) -> None:
    """A rule: no nn.DataParallel."""
    check_no_data_parallel("model", original(model))


def loss_fits(schedule: Schedule, loss: Loss | None) -> None:
    """A rule: the parts of the loss fit the schedule."""
    loss = Weighted() if loss is None else loss
    if isinstance(loss, Weighted):
        noise_on_chain(schedule, loss.steps)
    else:
        finite_end(schedule)
    divides_table(schedule, loss.steps)
    if loss.decoder is not None:
        decoder_fits(loss.decoder, schedule)
    weighting = getattr(loss, "weighting", None)
    if weighting is not None:
        same_chain(weighting, loss.steps)
        if device_of(schedule).type != "meta":  # there, learned ends have no values yet
            least, most = lowest(schedule), schedule.logsnr_max
            low, high = weighting.support() if isinstance(weighting, Weighting) else (least, most)
            check_values(weighting, max(low, least), min(high, most))


def no_replica(self: nn.Module) -> None:
    """A rule: nn.DataParallel has not copied the module; the attribute is torch's own mark."""
    if getattr(self, "_is_replica", False):
        hint = "its replicas draw their times apart: use DistributedDataParallel"
        raise InvalidType("self", "not be wrapped in nn.DataParallel", "a replica", hint)


def trains_what_is_learned(self: "Objective") -> None:
    """A rule: the loss trains the variance and the schedule that are learned."""
    loss, schedule = self.loss, self.schedule
    if loss.one_level:
        fixed_shape(schedule)
    if isinstance(loss, Hybrid):
        looking_decoder(schedule, loss.decoder if loss.bound_weight else None)
        learned_variance(self.model, loss.bound_weight)
    elif loss.one_level:
        fixed_ends(schedule)
    elif isinstance(loss, Weighted) or loss.steps is None:
        variance_trained(self.model)


def times_of_the_loss(self: "Objective", x: Tensor, t: Tensor | None) -> None:
    """A rule: the loss is finite, and has a term, at the times that are given."""
    loss = self.loss
    if t is not None and loss.steps is not None:
        Ends(zero=loss.one_level)(t, "t", {"x": x, "steps": loss.steps})
    if isinstance(loss, Weighted):
        weight_of_noise(self.model, loss.weighting, self.schedule, loss.steps, t)


def drawn_once(u: Tensor | None, t: Tensor | None) -> None:
    """A rule: times are given in one way."""
    require(u is None or t is None, "u", "be left out where t is given", "both")


def floating_without_decoder(self: "Objective", x: Tensor) -> None:
    """A rule: data that no decoder encodes is floating."""
    if self.decoder is None:
        data(x, "x", {})


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
        _warn_of_first_level(self.loss, schedule)

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


def _warn_of_first_level(loss: Loss, schedule: Schedule) -> None:
    """Warn where no draw trains the level t = 0 of a chain, at which `sample` and a decoder that
    looks ask the network."""
    weighted = isinstance(loss, Weighted) and loss.decoder is not None
    alone = isinstance(loss, Hybrid) and loss.bound_weight > 0 and loss.decoder is None
    if loss.steps is None or not (weighted or alone):
        return
    steps, decoder = loss.steps, " and the decoder ask" if loss.looks else " asks"
    hint = "give a decoder that looks at the network, DiscretizedGaussian(…, uses_network=True)"
    if weighted:
        hint = f"Hybrid({steps}, bound_weight=0) is DDPM's loss on all {steps + 1} levels"
        if schedule.reaches_noise:  # where that loss is refused
            hint = "a sampler with few levels=trailing(schedule, …) does not ask there"
    warnings.warn(
        f"Objective: on a chain of {steps} steps this loss trains the levels t = 1/{steps} … 1 "
        f"and not t = 0, at which the last step of a sampler{decoder} the network ({hint})",
        stacklevel=4,
    )


__all__ = ["VLB", "Hybrid", "Loss", "Objective", "Weighted"]

"""What an objective trains: a weighted loss, the whole bound, or iDDPM's hybrid."""

import abc
from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor, nn

from vdiff._inputs import Steps
from vdiff._partial import Partial
from vdiff._validate import Given, Whole, require, unchecked, validated
from vdiff.chain import BoundWeight, hybrid_loss, vlb, with_decoder
from vdiff.decoder import Decoder
from vdiff.errors import InvalidType, shown, under_functorch
from vdiff.loss import elbo, weighted_elbo
from vdiff.resampling import LossSecondMoment
from vdiff.schedule.noise_levels import AllReduce
from vdiff.times import on_chain
from vdiff.weighting import ELBO, WeightFunction

_ELBO = ELBO()


class Loss(nn.Module, abc.ABC):
    """What an `Objective` trains: `Weighted`, `VLB` or `Hybrid`. Its decoder encodes the data."""

    is_bound = False  # whether the loss is the whole bound
    includes_zero = False  # whether it is one term of a chain at a given time, which may be t = 0
    independent: tuple[int, ...] = ()  # dimensions of x whose indices have times of their own

    def __init__(self, steps: int | None, decoder: Decoder | None) -> None:
        super().__init__()
        self.steps, self.decoder = steps, decoder

    @property
    def decoder_uses_network(self) -> bool:
        """Whether the network is called at t = 0 too, by the decoder."""
        return self.decoder is not None and self.decoder.uses_network

    def times(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The times of this loss from uniform numbers, and the factors of the terms there."""
        return u if self.steps is None else on_chain(u, self.steps), None

    @abc.abstractmethod
    def forward(self, objective: Any, x: Tensor, **options: Any) -> Tensor:
        """The loss of each example, nats."""

    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Adapt to the losses since the last call."""

    def extra_repr(self) -> str:
        parts = {"steps": self.steps, "decoder": self.decoder}
        return ", ".join(f"{name}={part!r}" for name, part in parts.items() if part is not None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _dims(value: Any, argument: str, given: Given) -> tuple[int, ...]:
    """Dimensions of x behind the batch, as a tuple."""
    if not isinstance(value, list | tuple):
        hint = "(1,) gives each token of (batch, tokens, width) a time of its own"
        raise InvalidType(argument, "be a tuple of dimensions of x", shown(value), hint)
    dims = tuple(Whole(at_least=-99)(dim, argument, given) for dim in value)
    require(0 not in dims, argument, "be dimensions behind the batch", value, "0 is the batch")
    return dims


def _encoded(decoder: Decoder | None, x: Tensor, options: dict[str, Any]) -> Tensor:
    """x as the network sees it. What is absent is not read."""
    if decoder is None:
        return x
    return decoder.encode(Partial.of(x, None, options.get("absent")).clean(x))


class Weighted(Loss):
    """`weighted_elbo`. A decoder encodes the data, and is used by `Objective.bound`.

    With `independent=(1,)`, each index along dimension 1 of x, such as a token, gets a time of its
    own, independent of the others (Diffusion Forcing, arXiv:2407.01392). That is a loss to train
    with and no bound, with any weighting: independent times lie on no one path from noise to data.
    A model that is trained so knows every path, and `elbo`, `evaluate` and `Objective.bound`
    measure it along one.

    >>> from vdiff.weighting import Sigmoid
    >>> Weighted(Sigmoid(2.0))
    Weighted(Sigmoid(bias=2.0))
    >>> Weighted(independent=(1,))
    Weighted(ELBO(), independent=(1,): no bound)
    """

    @validated
    def __init__(
        self,
        weighting: WeightFunction = _ELBO,
        *,
        steps: Steps | None = None,
        decoder: Decoder | None = None,
        independent: Annotated[Sequence[int], _dims] = (),
    ) -> None:
        super().__init__(steps, decoder)
        self.weighting, self.independent = weighting, tuple(independent)

    def forward(self, objective: Any, x: Tensor, **options: Any) -> Tensor:
        model, schedule = objective.parts()
        x = _encoded(self.decoder, x, options)
        options |= {"weighting": self.weighting, "steps": self.steps}
        return unchecked(weighted_elbo)(model, x, schedule=schedule, **options)

    def extra_repr(self) -> str:
        times = f"independent={self.independent}: no bound" if self.independent else ""
        return ", ".join(filter(None, (repr(self.weighting), super().extra_repr(), times)))


class VLB(Loss):
    """The whole bound, `elbo`. With `resampling`, one term of a chain per example, drawn in
    proportion to its size: `resampling` has one step for each of the `steps`, and one more for a
    decoder that uses the network.

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
        self.includes_zero = resampling is not None and self.decoder_uses_network
        self.first = int(self.decoder_uses_network)  # the index of the term at t = 1/T
        if resampling is not None:
            require(steps is not None, "resampling", "come with steps", resampling)
            which = "terms, with the decoder's" if self.decoder_uses_network else "steps"
            terms = (steps or 0) + self.first
            what = f"have as many steps as the bound has {which}, {terms}"
            require(resampling.steps == terms, "resampling", what, resampling.steps)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.resampling is None or self.steps is None:
            return super().times(u)
        share, weight = self.resampling.at(u)
        return ((share * self.resampling.steps).round() - self.first) / self.steps, weight

    def forward(
        self, objective: Any, x: Tensor, *, weight: Tensor | None = None, **options: Any
    ) -> Tensor:
        model, schedule = objective.parts()
        options |= {"schedule": schedule, "steps": self.steps, "decoder": self.decoder}
        if self.resampling is None:
            return unchecked(elbo)(model, x, **options).total
        if self.decoder_uses_network:
            bound = unchecked(vlb)(model, x, **options)
            term, rest = bound.diffusion + bound.reconstruction, bound.prior
        else:
            bound = unchecked(elbo)(model, x, **options)
            term, rest = bound.diffusion, bound.prior + bound.reconstruction
        if self.training and not under_functorch(term):
            index = options["t"] * (self.steps or 1) + self.first
            self.resampling.note(index / self.resampling.steps, term.detach())
        # `weight` is 1 over n times the probability of the drawn term
        return rest + (term if weight is None else weight.to(term.dtype) * term)

    def update(self, all_reduce: AllReduce | None = None) -> None:
        if self.resampling is not None:
            self.resampling.remember(all_reduce)


class Hybrid(Loss):
    """`hybrid_loss` per example, not per dimension. `bound_weight=0` is DDPM's simple loss at all
    T + 1 times.

    >>> Hybrid(steps=999).bound_weight
    0.001
    """

    includes_zero = True

    @validated
    def __init__(
        self, steps: Steps, *, bound_weight: BoundWeight = 0.001, decoder: Decoder | None = None
    ) -> None:
        super().__init__(steps, decoder)
        self.bound_weight = bound_weight

    def times(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        from_zero = self.bound_weight == 0 or self.decoder_uses_network
        return (with_decoder if from_zero else on_chain)(u, self.steps or 1), None

    def forward(self, objective: Any, x: Tensor, **options: Any) -> Tensor:
        model, schedule = objective.parts()
        options |= {"steps": self.steps, "bound_weight": self.bound_weight}
        if self.bound_weight:
            options["decoder"] = self.decoder  # it has a term of its own
        else:
            x = _encoded(self.decoder, x, options)
        dims = Partial.of(x, options.get("mask"), options.get("absent")).dims(x)
        return unchecked(hybrid_loss)(model, x, schedule=schedule, **options) * dims

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bound_weight={self.bound_weight}"


__all__ = ["VLB", "Hybrid", "Loss", "Weighted"]

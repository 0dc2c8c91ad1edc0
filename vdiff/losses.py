"""What an objective trains: a weighted loss, the whole bound, or iDDPM's hybrid."""

import abc
from typing import Any

from torch import Tensor, nn

from vdiff._inputs import Steps
from vdiff._validate import require, unchecked, validated
from vdiff.chain import BoundWeight, hybrid_loss, vlb, with_decoder
from vdiff.decoder import Decoder
from vdiff.errors import under_functorch
from vdiff.loss import elbo, weighted_elbo
from vdiff.resampling import LossSecondMoment
from vdiff.schedule.base import AllReduce
from vdiff.times import on_chain
from vdiff.weighting import ELBO, WeightFunction

_ELBO = ELBO()


class Loss(nn.Module, abc.ABC):
    """What an `Objective` trains: `Weighted`, `VLB` or `Hybrid`. Its decoder encodes the data."""

    is_bound = False  # whether the loss is the whole bound
    includes_zero = False  # whether it is one term of a chain at a given time, which may be t = 0

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


class Weighted(Loss):
    """`weighted_elbo`. A decoder encodes the data, and is used by `Objective.bound`.

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

    def forward(self, objective: Any, x: Tensor, **options: Any) -> Tensor:
        model, schedule = objective.parts()
        x = x if self.decoder is None else self.decoder.encode(x)
        options |= {"weighting": self.weighting, "steps": self.steps}
        return unchecked(weighted_elbo)(model, x, schedule=schedule, **options)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (repr(self.weighting), super().extra_repr())))


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
        elif self.decoder is not None:
            x = self.decoder.encode(x)
        return unchecked(hybrid_loss)(model, x, schedule=schedule, **options) * x[0].numel()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bound_weight={self.bound_weight}"


__all__ = ["VLB", "Hybrid", "Loss", "Weighted"]

"""Model, schedule and loss as one module: what is wrapped, compiled and saved."""

import warnings
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import (
    Condition,
    Model,
    WeightFunction,
    asked,
    chain_of_weighting,
    decoder_fits,
    finite_end,
    noise_on_chain,
    original,
    synchronised,
)
from vdiff._known_range import note_training, warn_beyond
from vdiff._validate import Count, Ends, Noise, Random, data, require, unchecked, validated
from vdiff.bound import Bound
from vdiff.chain import BoundWeight, hybrid, vlb, with_decoder
from vdiff.decoder import Decoder
from vdiff.denoiser import check_no_data_parallel
from vdiff.errors import InvalidType, checking, under_functorch
from vdiff.loss import elbo, weighted_elbo
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Schedule
from vdiff.schedule.base import Merge, home
from vdiff.times import on_chain, stratified
from vdiff.weighting import (
    ELBO,
    Weighting,
    check_weighting,
    lowest,
)

_ELBO = ELBO()


def no_replicas(model: Any) -> None:
    """A rule: no nn.DataParallel."""
    check_no_data_parallel("model", original(model))


def no_replica(self: nn.Module) -> None:
    """A rule: nn.DataParallel has not copied the module; the attribute is torch's own mark."""
    hint = "its replicas draw their times apart: use DistributedDataParallel"
    if getattr(self, "_is_replica", False):
        raise InvalidType("self", "not be wrapped in nn.DataParallel", "a replica", hint)


def drawn_once(u: Tensor | None, t: Tensor | None) -> None:
    """A rule: times are given in one way."""
    require(u is None or t is None, "u", "be left out where t is given", "both")


def floating_without_decoder(self: Any, x: Tensor) -> None:
    """A rule: data that no decoder encodes is floating."""
    if self.decoder is None:
        data(x, "x", {})


def is_bound(weighting: Any, decoder: Decoder | None, bound_weight: float | None) -> bool:
    """Whether these are the parts of a whole bound."""
    return decoder is not None and bound_weight is None and isinstance(weighting or _ELBO, ELBO)


def finite_end_of_bound(
    weighting: Any, decoder: Decoder | None, bound_weight: float | None, schedule: Schedule
) -> None:
    """A rule: a bound and a hybrid loss have a finite last level."""
    if bound_weight is not None or is_bound(weighting, decoder, bound_weight):
        finite_end(schedule)


def discrete_decoder(decoder: Decoder | None, schedule: Schedule) -> None:
    """A rule: `decoder_fits`."""
    if decoder is not None:
        decoder_fits(decoder, schedule)


def values_between(weighting: Any, schedule: Schedule) -> None:
    """A rule: the weighting is one between the ends; on the meta device nothing has values."""
    if weighting is not None and home(schedule).type != "meta":
        least, most = lowest(schedule), schedule.logsnr_max
        low, high = weighting.range() if isinstance(weighting, Weighting) else (least, most)
        check_weighting(weighting, max(low, least), min(high, most), "")


def hybrid_on_chain(bound_weight: float | None, steps: int | None, weighting: Any) -> None:
    """A rule: the hybrid loss is a chain's, with the plain squared error of ε."""
    if bound_weight is not None:
        hint = "in continuous time a reverse variance trains nothing"
        require(steps is not None, "bound_weight", "come with steps", bound_weight, hint)
        plain = isinstance(weighting or _ELBO, ELBO)
        what = "be left out where bound_weight is given"
        hint = "the hybrid loss has the plain squared error of ε"
        require(plain, "weighting", what, repr(weighting), hint)


def resampling_of_bound(
    resampling: LossSecondMoment | None,
    steps: int | None,
    decoder: Decoder | None,
    bound_weight: float | None,
    weighting: Any,
) -> None:
    """A rule: terms are drawn from the whole bound of a chain, and there is a step for each."""
    if resampling is None:
        return
    hint = "Objective(…, steps=T, decoder=…), without weighting and bound_weight"
    fits = steps is not None and is_bound(weighting, decoder, bound_weight)
    require(fits, "resampling", "come with the bound of a chain", repr(resampling), hint)
    assert steps is not None
    assert decoder is not None
    which = "terms, the decoder's among them" if decoder.denoise else "steps"
    terms = steps + int(decoder.denoise)
    what = f"have as many steps as the bound has {which}, {terms}"
    require(resampling.steps == terms, "resampling", what, resampling.steps)


class Objective(nn.Module):
    """Model, schedule and loss as one module whose forward is the loss, nats per example.

    This is what DDP, `torch.compile`, Lightning or accelerate wrap and what a checkpoint saves.
    The loss is

        `elbo`             the whole bound, where there is a decoder and no weighting but ELBO()
        `weighted_elbo`    with a weighting, or without a decoder
        `hybrid`           with a `bound_weight`; 0 is DDPM's simple loss, on all T + 1 levels

    and with a decoder data is taken as it is, and encoded by it. A weighted loss, or a simple one,
    has no reconstruction and is no bound: its decoder encodes, and measures (`bound`). The
    schedule and the weighting are checked here, once.

    Args: model, schedule, weighting, steps: as in `weighted_elbo`. decoder: as in `elbo`.
        bound_weight: of `hybrid`, whose loss is here that of an example, not of a dimension.
        resampling: for the bound of a chain: which of its terms are drawn. It has a step for each,
        `steps` of them and one more
            for a decoder that looks at the network. After each optimizer step call `update`.

    Warns:
        UserWarning: where the loss leaves out the first level of a chain, t = 0, at which a
            sampler asks the network: a weighting, or a `bound_weight` above 0 without a decoder.

    >>> from vdiff import Categorical, Denoiser, LearnedLinear, X
    >>> model = Denoiser(lambda z, logsnr: 0 * z, X())
    >>> objective = Objective(model, schedule=LearnedLinear(), decoder=Categorical(levels=17))
    >>> objective(torch.randint(0, 17, (8, 1, 8, 8))).mean().backward()
    """

    trained_on: tuple[str, ...] = ()  # hashes of the data, of what `vdiff.training.train` returns

    @validated(
        rules=[
            synchronised, no_replicas, noise_on_chain, chain_of_weighting, finite_end_of_bound,
            discrete_decoder, values_between, hybrid_on_chain, resampling_of_bound,
        ]
    )  # fmt: skip
    def __init__(
        self,
        model: Model,
        *,
        schedule: Schedule,
        weighting: WeightFunction | None = None,
        decoder: Decoder | None = None,
        steps: Count | None = None,
        bound_weight: BoundWeight | None = None,
        resampling: LossSecondMoment | None = None,
    ) -> None:
        super().__init__()
        warn_beyond(original(model), schedule, steps)
        self.model, self.schedule = original(model), schedule
        self.decoder, self.steps = decoder, steps
        self.weighting = _ELBO if weighting is None else weighting
        self.bound_weight, self.resampling = bound_weight, resampling
        self._warn_of_first_level()

    @validated(rules=[no_replica, drawn_once, floating_without_decoder])
    def forward(
        self,
        x: Tensor,
        *,
        u: Tensor | None = None,
        t: Annotated[Tensor, Ends(zero=True)] | None = None,
        eps: Noise | None = None,
        generator: Random | None = None,
        condition: Condition = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of each example, nats. `u` are uniform numbers from which the times are taken
        as this loss draws them, such as a share of `stratified` times; `t` are the times
        themselves. `condition` goes to the model, as in `weighted_elbo`."""
        model = self.model
        if checking():
            note_training(model, self.schedule)
            model = asked(model)
        weight: Tensor | None = None
        if t is None and (u is not None or self.resampling is not None):
            t, weight = self._place(
                stratified(len(x), generator=generator, device=x.device) if u is None else u
            )
        options: dict[str, Any] = {
            "t": t,
            "eps": eps,
            "generator": generator,
            "condition": condition,
        }
        if self.resampling is not None:
            return self._resampled(x, weight, options)
        if self.trains_bound:
            return self.bound(x, **options).total
        decoder = self.decoder if self.bound_weight else None  # it has a term, or it encodes
        if self.decoder is not None and decoder is None:
            x = self.decoder.encode(x)
        if self.bound_weight is not None and self.steps is not None:
            options |= {"steps": self.steps, "decoder": decoder, "bound_weight": self.bound_weight}
            loss = unchecked(hybrid)(model, x, schedule=self.schedule, **options)
            return loss * x[0].numel()
        return unchecked(weighted_elbo)(
            model,
            x,
            schedule=self.schedule,
            weighting=self.weighting,
            steps=self.steps,
            **options,
        )

    @property
    def trains_bound(self) -> bool:
        """Whether the loss is the whole bound.

        >>> from vdiff import Categorical, Cosine, Denoiser, Sigmoid, V
        >>> Objective(Denoiser(lambda z, t: z, V()), schedule=Cosine(), weighting=Sigmoid(), decoder=Categorical(17)).trains_bound
        False
        """
        return is_bound(self.weighting, self.decoder, self.bound_weight)

    @validated
    def bound(self, data: Tensor, **options: Any) -> Bound:
        """The bound in its parts, whatever is trained; raises where there is no decoder."""
        hint = "a weighted loss has no reconstruction term"
        given = self.decoder is not None
        require(given, "decoder", "be given to the Objective", None, hint)
        assert self.decoder is not None
        return elbo(
            self.model,
            data,
            schedule=self.schedule,
            decoder=self.decoder,
            steps=self.steps,
            **options,
        )

    def update(self, merge: Merge | None = None) -> None:
        """Take in what the losses since the last call have shown: the schedule's `update`, and
        which terms are drawn. To be called once after each optimizer step; `merge` sums a tensor
        of statistics over ranks."""
        self.schedule.update(merge)
        if self.resampling is not None:
            self.resampling.remember(merge)

    @validated
    def times(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The times of this loss into which uniform numbers fall."""
        return self._place(u)[0]

    @property
    def _first(self) -> int:
        """1 where the decoder looks at the network, so that its level is one more of the
        chain's."""
        return int(self.decoder is not None and self.decoder.denoise)

    def _place(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The times of this loss into which uniform numbers fall, and what its terms there are
        multiplied by."""
        if self.steps is None:
            return u, None
        if self.resampling is not None:
            share, weight = self.resampling.at(u)
            return ((share * self.resampling.steps).round() - self._first) / self.steps, weight
        from_first = self.bound_weight == 0 or (self.bound_weight is not None and self._first)
        return (with_decoder if from_first else on_chain)(u, self.steps), None

    def _resampled(self, data: Tensor, weight: Tensor | None, options: dict[str, Any]) -> Tensor:
        """The bound of a chain, the term that was drawn divided by n times its probability."""
        if self.resampling is None or self.decoder is None or self.steps is None:
            raise RuntimeError("checked when it was made")
        if self._first:
            bound = unchecked(vlb)(
                asked(self.model),
                data,
                schedule=self.schedule,
                steps=self.steps,
                decoder=self.decoder,
                **options,
            )
            term, rest = bound.diffusion + bound.reconstruction, bound.prior
        else:
            bound = self.bound(data, **options)
            term, rest = bound.diffusion, bound.prior + bound.reconstruction
        if self.training and not under_functorch(term):
            self.resampling.note(
                (options["t"] * self.steps + self._first) / self.resampling.steps, term.detach()
            )
        return rest + (term if weight is None else weight.to(term.dtype) * term)

    def _warn_of_first_level(self) -> None:
        """Warn where no draw trains the level t = 0 of a chain, at which `sample` and a decoder
        that looks ask the network."""
        weighted = self.bound_weight is None and self.decoder is not None and not self.trains_bound
        alone = bool(self.bound_weight) and self.decoder is None
        if self.steps is None or not (weighted or alone):
            return
        steps, decoder = self.steps, " and the decoder ask" if self._first else " asks"
        hint = "give a decoder that looks at the network, DiscretizedGaussian(…, denoise=True)"
        if weighted:
            loss = "bound_weight=0 in place of the weighting is DDPM's loss"
            hint = f"{loss} on all {steps + 1} levels"
        what = f"on a chain of {steps} steps this loss trains the levels t = 1/{steps} … 1"
        asked = f"not t = 0, at which the last step of a sampler{decoder} the network"
        warnings.warn(f"Objective: {what} and {asked} ({hint})", stacklevel=3)


__all__ = ["Objective"]

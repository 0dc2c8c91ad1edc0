"""Model, schedule and loss as one module: what is wrapped, compiled and saved."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.bound import Bound
from vdiff.chain import hybrid, vlb, with_decoder
from vdiff.condition import Condition
from vdiff.decoder import Decoder
from vdiff.denoiser import check_no_data_parallel
from vdiff.errors import finite, must, names_arrays, transformed
from vdiff.loss import (
    Model,
    WeightFunction,
    check_call,
    check_decoder,
    check_steps_to_noise,
    elbo,
    weighted_elbo,
)
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Schedule
from vdiff.schedule.base import Merge, home
from vdiff.times import on_chain, stratified
from vdiff.weighting import (
    ELBO,
    Weighting,
    check_chain,
    check_weight_function,
    check_weighting,
    lowest,
)

_ELBO = ELBO()


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

    Args:
        model, schedule, weighting, steps: as in `weighted_elbo`.
        decoder: as in `elbo`.
        bound_weight: of `hybrid`, whose loss is here that of an example, not of a dimension.
        resampling: for the bound of a chain: which of its terms are drawn. It has a step for each,
            `steps` of them and one more for a decoder that looks at the network. After each
            optimizer step call `update`.

    Warns:
        UserWarning: where the loss leaves out the first level of a chain, t = 0, at which a
            sampler asks the network: a weighting, or a `bound_weight` above 0 without a decoder.

    >>> from vdiff import Categorical, Denoiser, LearnedLinear, X
    >>> model = Denoiser(lambda z, logsnr: 0 * z, X())
    >>> objective = Objective(model, schedule=LearnedLinear(), decoder=Categorical(levels=17))
    >>> objective(torch.randint(0, 17, (8, 1, 8, 8))).mean().backward()
    """

    trained_on: tuple[str, ...] = ()  # hashes of the data, of what `vdiff.training.train` returns

    def __init__(
        self,
        model: Model,
        *,
        schedule: Schedule,
        weighting: WeightFunction | None = None,
        decoder: Decoder | None = None,
        steps: int | None = None,
        bound_weight: float | None = None,
        resampling: LossSecondMoment | None = None,
    ) -> None:
        super().__init__()
        is_bound = decoder is not None and isinstance(weighting or _ELBO, ELBO)
        plain = bound_weight is None and not is_bound
        check_call("Objective", model, schedule, steps, to_noise=plain)
        check_steps_to_noise("Objective", schedule, steps)
        check_no_data_parallel("Objective", "model", model)
        check_chain("Objective", weighting, schedule, steps)
        if decoder is not None:
            check_decoder("Objective", decoder, schedule)
        if weighting is not None:
            check_weight_function("Objective", weighting)
        if (
            weighting is not None and home(schedule).type != "meta"
        ):  # there, learned ends have no values yet
            least, most = lowest(schedule), schedule.logsnr_max
            low, high = weighting.range() if isinstance(weighting, Weighting) else (least, most)
            check_weighting(weighting, max(low, least), min(high, most), "Objective")
        self.model, self.schedule, self.decoder, self.steps = model, schedule, decoder, steps
        self.weighting = _ELBO if weighting is None else weighting
        self.bound_weight, self.resampling = bound_weight, resampling
        self._check_combination()
        self._warn_of_first_level()

    @names_arrays
    def forward(
        self,
        x: Tensor,
        *,
        u: Tensor | None = None,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        condition: Condition = None,
        **keywords: Any,
    ) -> Float[Tensor, " batch"]:
        """The loss of each example, nats. `u` are uniform numbers from which the times are taken
        as this loss draws them, such as a share of `stratified` times; `t` are the times
        themselves. `condition` and further keywords go to the model, as in `weighted_elbo`."""
        if getattr(
            self, "_is_replica", False
        ):  # torch's own mark on the copies that nn.DataParallel makes
            raise TypeError(
                must(
                    "Objective",
                    "self",
                    "not be wrapped in nn.DataParallel",
                    "a replica",
                    "its replicas draw their times apart: use DistributedDataParallel",
                )
            )
        if u is not None and t is not None:
            raise ValueError(must("Objective", "u", "be left out where t is given", "both"))
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
            **keywords,
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
            return hybrid(self.model, x, schedule=self.schedule, **options) * x[0].numel()
        return weighted_elbo(
            self.model,
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
        return (
            self.decoder is not None
            and self.bound_weight is None
            and isinstance(self.weighting, ELBO)
        )

    def bound(self, data: Tensor, **options: Any) -> Bound:
        """The bound in its parts, whatever is trained; raises where there is no decoder."""
        if self.decoder is None:
            raise ValueError(
                must(
                    "Objective.bound",
                    "decoder",
                    "be given to the Objective",
                    None,
                    "a weighted loss has no reconstruction term",
                )
            )
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

    @names_arrays
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
            bound = vlb(
                self.model,
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
        if self.training and not transformed(term):
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
            if self.schedule.reaches_noise:  # where that loss is refused
                hint = "a sampler with few levels=trailing(schedule, …) does not ask there"
        what = f"on a chain of {steps} steps this loss trains the levels t = 1/{steps} … 1"
        asked = f"not t = 0, at which the last step of a sampler{decoder} the network"
        warnings.warn(f"Objective: {what} and {asked} ({hint})", stacklevel=3)

    def _check_combination(self) -> None:
        """Raise where the parts of a chain's losses do not go together."""
        if self.bound_weight is not None:
            finite(
                "Objective",
                "bound_weight",
                self.bound_weight,
                at_least=0.0,
                hint="less than 0 would maximise the bound",
            )
            if self.steps is None:
                hint = "in continuous time a reverse variance trains nothing"
                raise ValueError(
                    must("Objective", "bound_weight", "come with steps", self.bound_weight, hint)
                )
            if not isinstance(self.weighting, ELBO):
                hint = "the hybrid loss has the plain squared error of ε"
                raise ValueError(
                    must(
                        "Objective",
                        "weighting",
                        "be left out where bound_weight is given",
                        repr(self.weighting),
                        hint,
                    )
                )
        if self.resampling is not None:
            if (
                self.steps is None
                or self.decoder is None
                or self.bound_weight is not None
                or not isinstance(self.weighting, ELBO)
            ):
                hint = "Objective(…, steps=T, decoder=…), without weighting and bound_weight"
                raise ValueError(
                    must(
                        "Objective",
                        "resampling",
                        "come with the bound of a chain",
                        repr(self.resampling),
                        hint,
                    )
                )
            if self.resampling.steps != self.steps + self._first:
                which = "terms, the decoder's among them" if self._first else "steps"
                raise ValueError(
                    must(
                        "Objective",
                        "resampling",
                        f"have as many steps as the bound has {which}, {self.steps + self._first}",
                        self.resampling.steps,
                    )
                )


__all__ = ["Objective"]

"""Model, schedule and weighting (or decoder) as one module: what is wrapped, compiled and saved."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.bound import Bound
from vdiff.decoder import Decoder
from vdiff.denoiser import check_no_data_parallel
from vdiff.errors import must
from vdiff.loss import Model, WeightFunction, check_call, check_decoder, elbo, weighted_elbo
from vdiff.schedule import Schedule
from vdiff.schedule.base import home
from vdiff.weighting import ELBO, Weighting, check_chain, check_weighting

_ELBO = ELBO()


class Objective(nn.Module):
    """Model, schedule and weighting (or decoder) as one module whose forward is the loss, nats per example.

    This is what DDP, `torch.compile`, Lightning or accelerate wrap and what a checkpoint saves. With a decoder the loss
    is the whole bound of `elbo`, on data as it is; without, `weighted_elbo` on encoded x. The schedule and the weighting
    are checked here, once.

    >>> from vdiff import Categorical, Denoiser, LearnedLinear, X
    >>> model = Denoiser(lambda z, logsnr: 0 * z, X())
    >>> objective = Objective(model, schedule=LearnedLinear(), decoder=Categorical(levels=17))
    >>> objective(torch.randint(0, 17, (8, 1, 8, 8))).mean().backward()
    """

    def __init__(
        self,
        model: Model,
        *,
        schedule: Schedule,
        weighting: WeightFunction | None = None,
        decoder: Decoder | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        check_call("Objective", model, schedule, steps, {})
        check_no_data_parallel("Objective", "model", model)
        check_chain("Objective", weighting, schedule, steps)
        if decoder is not None:
            check_decoder("Objective", decoder, schedule)
        if decoder is not None and weighting is not None and not isinstance(weighting, ELBO):
            raise ValueError(
                must(
                    "Objective",
                    "weighting",
                    "be left out, or ELBO(), where a decoder is given",
                    repr(weighting),
                    "with another weighting the sum is no bound",
                )
            )
        if weighting is not None and home(schedule).type != "meta":  # there, learned ends have no values yet
            low, high = weighting.range() if isinstance(weighting, Weighting) else (schedule.logsnr_min, schedule.logsnr_max)
            check_weighting(weighting, max(low, schedule.logsnr_min), min(high, schedule.logsnr_max), "Objective")
        self.model, self.schedule, self.decoder, self.steps = model, schedule, decoder, steps
        self.weighting = _ELBO if weighting is None else weighting

    def forward(
        self, x: Tensor, *, t: Tensor | None = None, eps: Tensor | None = None, generator: torch.Generator | None = None, **condition: Any
    ) -> Float[Tensor, " batch"]:
        """The loss of each example, nats: `weighted_elbo`, or `elbo(...).total` where there is a decoder."""
        if getattr(self, "_is_replica", False):  # torch's own mark on the copies that nn.DataParallel makes
            raise TypeError(
                must(
                    "Objective",
                    "self",
                    "not be wrapped in nn.DataParallel",
                    "a replica",
                    "its replicas draw their times apart: use DistributedDataParallel",
                )
            )
        if self.decoder is not None:
            return self.bound(x, t=t, eps=eps, generator=generator, **condition).total
        return weighted_elbo(
            self.model,
            x,
            schedule=self.schedule,
            weighting=self.weighting,
            steps=self.steps,
            t=t,
            eps=eps,
            generator=generator,
            **condition,
        )

    def bound(self, data: Tensor, **options: Any) -> Bound:
        """The bound in its parts; raises where there is no decoder."""
        if self.decoder is None:
            raise ValueError(
                must("Objective.bound", "decoder", "be given to the Objective", None, "a weighted loss has no reconstruction term")
            )
        return elbo(self.model, data, schedule=self.schedule, decoder=self.decoder, steps=self.steps, **options)


__all__ = ["Objective"]

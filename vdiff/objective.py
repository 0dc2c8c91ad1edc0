"""Model, schedule and loss as one module: what is wrapped, compiled and saved."""

import importlib
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn

from vdiff._arguments import Condition, Model, checked_model, original, synchronised
from vdiff._diffusion import diffusion_of
from vdiff._fits import (
    dims_fit_parts,
    drawn_once,
    floating_without_decoder,
    holds_no_replicas,
    loss_fits,
    no_replica,
    times_of_the_loss,
    trains_what_is_learned,
    warn_of_first_level,
)
from vdiff._inputs import Ends, Mask, Noise, Random
from vdiff._known_range import warn_beyond
from vdiff._validate import validated
from vdiff.bound import Bound
from vdiff.decoder import Decoder
from vdiff.errors import InvalidValue, validation_enabled
from vdiff.loss import elbo
from vdiff.losses import VLB, Hybrid, Loss, Weighted
from vdiff.schedule import Schedule
from vdiff.schedule.noise_levels import AllReduce
from vdiff.times import independent, stratified


class Objective(nn.Module):
    """Model, schedule and loss as one module. Its forward is the loss, in nats per example.

    Wrap this module in DDP, `torch.compile`, Lightning or accelerate, and save it in checkpoints.
    `loss` is `Weighted(…)`, `VLB(decoder)` or `Hybrid(steps)`. A decoder takes data as it is and
    encodes it. A weighted or a simple loss has no reconstruction and is not a bound.

    Warns:
        UserWarning: if the loss of a chain leaves out t = 0, where a sampler calls the network:
            with a weighting, or with `bound_weight > 0` and no decoder.

    >>> from vdiff import Denoiser
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> from vdiff.schedule import LearnedLinear
    >>> model = Denoiser(lambda z, logsnr: 0 * z, X())
    >>> objective = Objective(model, schedule=LearnedLinear(), loss=VLB(Categorical(levels=17)))
    >>> objective(torch.randint(0, 17, (8, 1, 8, 8))).mean().backward()
    """

    trained_on: tuple[str, ...] = ()  # hashes of the data, set by `vdiff.training.train`

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
        """The model, with its output checked outside of compiled graphs, and the schedule."""
        return checked_model(self.model) if validation_enabled() else self.model, self.schedule

    @validated(
        rules=[
            no_replica, trains_what_is_learned, drawn_once, floating_without_decoder,
            times_of_the_loss, dims_fit_parts,
        ]
    )  # fmt: skip
    def forward(
        self,
        x: Tensor,
        *,
        u: Annotated[Tensor, Ends(zero=True, field=True)] | None = None,
        t: Annotated[Tensor, Ends(zero=True, field=True)] | None = None,
        mask: Mask | None = None,
        absent: Mask | None = None,
        eps: Noise | None = None,
        generator: Random | None = None,
        condition: Condition = None,
    ) -> Float[Tensor, " batch"]:
        """The loss of each example, nats. `t` are the times. Or give `u`, uniform numbers such as
        a share of `stratified` times, and the loss makes its times of them. `mask`, `absent` and
        `condition` are as in `weighted_elbo`."""
        options: dict[str, Any] = {"eps": eps, "generator": generator, "condition": condition}
        options |= {"mask": mask} if mask is not None else {}
        options |= {"absent": absent} if absent is not None else {}
        weight: Tensor | None = None
        if u is None and t is None and getattr(self.loss, "resampling", None) is not None:
            u = stratified(len(x), generator=generator, device=x.device)
        elif u is None and t is None and self.loss.independent:
            u = independent(x, self.loss.independent, generator=generator)
        if u is not None:
            t, weight = self.loss.times(u)
        if weight is not None:
            options["weight"] = weight
        loss: Tensor = self.loss(self, x, t=t, **options)
        return loss

    @validated
    def bound(self, data: Tensor, **options: Any) -> Bound:
        """The bound in its parts, whatever loss is trained. Raises if there is no decoder."""
        hint = "a weighted loss has no reconstruction term"
        if self.decoder is None and diffusion_of(self.model).continuous:
            raise InvalidValue("decoder", "be given to the loss", None, hint)
        options |= {"schedule": self.schedule, "steps": self.steps, "decoder": self.decoder}
        return elbo(self.model, data, **options)

    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Adapt the schedule and the resampling to the losses since the last call. Call this once
        after each optimizer step. `all_reduce` sums a tensor over ranks."""
        self.schedule.update(all_reduce)
        self.loss.update(all_reduce)

    @validated
    def save_pretrained(self, folder: Any, *, report: Any = None) -> None:
        """Write config.json, model.safetensors and README.md, a model card, into a folder, which
        is created. Replaces files of these names.

        The config describes the parts as plain data. A part that plain data cannot say, such as
        your own network or a function as `time`, is named there, and given again at loading.
        `report` is that of `evaluate` for these weights, for the card's bits/dim. Needs the extra
        `train`.

        Raises ValueError for a report of other weights, and for a part that was changed after it
        was made; OSError if a file cannot be written.

        >>> import tempfile
        >>> from vdiff import nn as networks
        >>> from vdiff import Denoiser
        >>> from vdiff.parameterization import V
        >>> from vdiff.schedule import Cosine
        >>> objective = Objective(Denoiser(networks.MLP(2), V()), schedule=Cosine())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     objective.save_pretrained(folder)
        ...     Objective.from_pretrained(folder).schedule
        Cosine(logsnr_max=15.0, logsnr_min=-15.0)
        """
        importlib.import_module("vdiff.training.pretrained").save(self, folder, report)

    @classmethod
    @validated
    def from_pretrained(
        cls, folder: Any, *, network: nn.Module | None = None, **parts: Any
    ) -> "Objective":
        """The objective that `save_pretrained` wrote, in evaluation mode.

        Networks of `vdiff.nn` are built; give any other as `network`. Give the other parts that
        the config only names, too: `time`, `call`, `output`, `parameterization`, `variance`,
        `schedule`, `weighting`, `decoder`, or whole a `model` or `loss`. A part that is given
        replaces the one in the config. No code is run but the library's, and nothing unpickled.

        Raises ValueError for a part that has to be given, for a config that is damaged or not of
        these weights, and for weights whose names or shapes are not those of the network.
        """
        given = parts if network is None else {"network": network, **parts}
        loaded: Objective = importlib.import_module("vdiff.training.pretrained").load(
            folder, given
        )
        return loaded

    @validated
    def times(self, u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The times of this loss from uniform numbers."""
        return self.loss.times(u)[0]


__all__ = ["VLB", "Hybrid", "Loss", "Objective", "Weighted"]

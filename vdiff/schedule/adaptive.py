"""VDM++'s adaptive schedule: more time where the loss is large."""

from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Count, Fraction, Number, validated
from vdiff.errors import under_functorch
from vdiff.profile import Profile
from vdiff.schedule._check import check_one_time
from vdiff.schedule.histogram import Histogram, filled
from vdiff.schedule.noise_levels import AllReduce, NoiseLevels


class Adaptive(Histogram):
    """p(λ) in proportion to the size of the loss at λ, from a moving average over training (Kingma
    & Gao, arXiv:2303.00848, appendix on the adaptive noise schedule).

        p* ∝ w √E‖e‖⁴     the density of least variance, the default
        p  ∝ w E‖e‖²      VDM++, with `first_moment`

    Any p gives the same expected loss: the loss divides by it, and no gradient passes through it.
    Losses in continuous time record their size; `update()` after each optimizer step turns the
    records into the next p, which is then the same on all ranks and in all micro-batches of a step
    (`vdiff.training.train` calls it). A loop with its own loss records with `observe`. On a chain
    (`steps=T`) nothing is recorded: its bound depends on p.

    Args:
        logsnr_max, logsnr_min: the ends, which are fixed.
        bins: their number; they have equal width.
        decay: the factor of older records at each update.
        floor: the share of the time that is spread evenly over the bins.
        warmup: records per bin, on average, before p leaves the uniform density.

    >>> schedule = Adaptive(logsnr_max=15.0, logsnr_min=-15.0, bins=2, warmup=1)
    >>> schedule.observe(torch.tensor([-5.0, 5.0]), torch.tensor([1.0, 3.0]))
    >>> schedule.update()
    >>> schedule.mass
    tensor([0.2502, 0.7497], dtype=torch.float64)
    """

    learns_shape = True

    @validated
    def __init__(
        self,
        logsnr_max: float = 15.0,
        logsnr_min: float = -15.0,
        *,
        bins: Count = 100,
        decay: Fraction = 0.999,
        floor: Annotated[float, Number(above=0.0, at_most=1.0)] = 1e-3,
        warmup: Count = 20,
        first_moment: bool = False,
    ) -> None:
        super().__init__([1.0] * bins, logsnr_max, logsnr_min)
        self.decay, self.floor = decay, floor
        self.warmup, self.first_moment = warmup, first_moment
        ends = {"logsnr_max": self.logsnr_max, "logsnr_min": self.logsnr_min}
        self.profile = _Merged(**ends, bins=bins)  # of w‖e‖², over all ranks
        self.noted = Profile(**ends, bins=bins)  # here, since the last update

    def at(
        self,
        t: Tensor,
        steps: int | None = None,
        *,
        detach_ends: bool = True,
        ndim: int | None = None,
    ) -> NoiseLevels:
        levels = super().at(t, steps, detach_ends=detach_ends, ndim=ndim)
        if steps is not None or not (self.training and torch.is_grad_enabled()):
            return levels
        check_one_time(t)
        return levels._replace(learn=partial(self._note, levels))

    def _note(self, levels: NoiseLevels, loss: Tensor, dims: int) -> Tensor:
        if not under_functorch(loss):
            self._count_loss()
            # the loss is ½ · rate · w‖e‖²
            self.observe(levels.logsnr, 2.0 * to_float64(loss.detach()) / levels.rate)
        return loss

    def observe(self, logsnr: Float[Tensor, " batch"], value: Float[Tensor, " batch"]) -> None:
        """Record w‖ε − ε̂‖² at these λ for the next update."""
        self.noted.update(logsnr.detach(), value)

    @torch.no_grad()
    def update(self, all_reduce: AllReduce | None = None) -> None:
        """Turn the records since the last call, summed over ranks by `all_reduce`, into the next
        p. Records with NaN or infinity are dropped."""
        self._unread = 0
        sums = self.noted.sums if all_reduce is None else all_reduce(self.noted.sums)
        self.profile.decay(self.decay)
        self.profile.sums += torch.where(sums.isfinite().all(), sums, 0.0)
        self.noted.sums.zero_()
        size = self.profile.mean if self.first_moment else self.profile.second_moment.sqrt()
        size = filled(size)
        share = (1 - self.floor) * size / size.sum() + self.floor / len(size)
        ready = (self.profile.count.sum() >= self.warmup * len(size)) & (size.sum() > 0)
        self.mass.copy_(torch.where(ready, share, 1 / len(size)))

    def extra_repr(self) -> str:
        return super().extra_repr() + f", bins={len(self.mass)}"


class _Merged(Profile):
    """The profile over all ranks. It is the same on each, so its sums are an ordinary buffer."""

    def register_local(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor)

"""Importance sampling of a chain's steps by the second moment of the loss."""

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._inputs import Steps, on_chain
from vdiff._modules import PreciseModule
from vdiff._validate import Count, Number, require, validated
from vdiff.times import stratified

_NEVER_AGAIN = "without it a step whose losses were 0 is never drawn again"
Share = Annotated[float, Number(above=0.0, at_most=1.0, hint=_NEVER_AGAIN)]


def a_loss_for_each_time(self: "LossSecondMoment", t: Tensor, loss: Tensor) -> None:
    """Rule: times are ends of this chain's steps, each with a loss."""
    shape, hint = f"have shape (batch,) = {tuple(t.shape)}", "the loss of each example"
    require(loss.shape == t.shape, "loss", shape, tuple(loss.shape), f"{hint}, before the mean")
    on_chain(t, self.steps)


class LossSecondMoment(PreciseModule):
    """Draws steps i = 1 … T with p_i ∝ √E[L_i²], estimated from the last `memory` losses of each
    step. The draws are uniform until every step has as many losses.

    Of all independent draws this p has the least variance. Weights 1/(T p_i) keep every mean as it
    is under uniform i. A share `uniform` of the draws is uniform, so that every step is drawn. The
    state is in `state_dict()`.

        t, weight = sampler.draw(len(x))
        loss = elbo(model, x, schedule=schedule, decoder=decoder, steps=T, t=t).diffusion
        sampler.update(t, loss)
        (weight * loss).mean().backward()

    A decoder's term at t = 0 is no step of the chain (`Objective` draws it too). If a training
    step has several micro-batches or processes, each calls `note` instead of `update`, and all
    call `remember(all_reduce)` once.

    Nichol & Dhariwal, arXiv:2102.09672, section 3.3.

    >>> sampler = LossSecondMoment(steps=2, memory=1)
    >>> sampler.update(torch.tensor([0.5, 1.0]), torch.tensor([3.0, 1.0]))
    >>> sampler.probabilities()
    tensor([0.7497, 0.2502], dtype=torch.float64)
    """

    history: Tensor
    count: Tensor
    noted: Tensor

    @validated
    def __init__(self, steps: Steps, *, memory: Count = 10, uniform: Share = 0.001) -> None:
        super().__init__()
        self.steps, self.memory, self.uniform = steps, memory, uniform
        self.register_buffer("history", torch.zeros(steps, memory, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(steps, dtype=torch.long))
        # Σ loss² and the number of losses since `remember`
        self.register_local("noted", torch.zeros(2, steps, dtype=torch.float64))

    def reset_parameters(self) -> None:
        """Forget everything."""
        for v in (self.history, self.count, self.noted):
            v.zero_()

    def probabilities(self) -> Float[Tensor, " steps"]:
        """p_i of every step, in float64."""
        root = (self.history / self.history.abs().max().clamp(min=1e-300)).square().mean(1).sqrt()
        estimated = (self.count >= self.memory).all() & (root.sum() > 0)
        p = torch.where(estimated, root / root.sum(), 1 / self.steps)
        return (1 - self.uniform) * p + self.uniform / self.steps

    def draw(
        self, batch: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Times i/T, stratified over the batch, and the weight 1/(T p_i) of each."""
        return self.at(stratified(batch, generator=generator, device=self.history.device))

    @validated
    def at(
        self, u: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """`draw` from given uniform numbers.

        >>> LossSecondMoment(4).at(torch.tensor([0.1, 0.9]))[0]
        tensor([0.2500, 1.0000], dtype=torch.float64)
        """
        p = self.probabilities()
        step = torch.searchsorted(p.cumsum(0), u.to(p.dtype), right=True).clamp(max=self.steps - 1)
        return (step + 1).to(p.dtype) / self.steps, 1 / (self.steps * p[step])

    @validated(rules=[a_loss_for_each_time])
    @torch.no_grad()
    def update(self, t: Float[Tensor, " batch"], loss: Tensor) -> None:
        """Remember the unweighted losses at these times, except those that are not finite.

        >>> sampler = LossSecondMoment(2)
        >>> sampler.update(torch.tensor([0.5, 0.5]), torch.tensor([1.0, torch.nan]))
        >>> sampler.count
        tensor([1, 0])
        """
        good = torch.isfinite(loss)
        loss = loss.to(self.history)[good]
        step = (t[good] * self.steps).round().long() - 1
        step, order = step.sort(stable=True)
        first = torch.searchsorted(step, step)  # where each step's losses begin
        rank = torch.arange(len(step), device=step.device) - first
        new = torch.bincount(step, minlength=self.steps)
        kept = rank >= new[step] - self.memory
        self.history[step[kept], (self.count[step] + rank)[kept] % self.memory] = loss[order][kept]
        self.count += new

    @validated
    @torch.no_grad()
    def note(self, t: Float[Tensor, " batch"], loss: Float[Tensor, " batch"]) -> None:
        """Keep unweighted losses for the next `remember`, except those that are not finite."""
        good = torch.isfinite(loss)
        square = torch.where(good, loss.to(self.noted), 0.0).square()
        step = (t * self.steps).round().long() - 1
        self.noted.index_add_(1, step, torch.stack([square, good.to(square.dtype)]))

    @torch.no_grad()
    def remember(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """`update` each step with the root mean square of the losses noted since the last call;
        `all_reduce` sums over ranks.

        >>> sampler = LossSecondMoment(2)
        >>> sampler.note(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 7.0]))
        >>> sampler.remember()
        >>> sampler.history[0, 0], sampler.count
        (tensor(5., dtype=torch.float64), tensor([1, 0]))
        """
        square, count = self.noted if all_reduce is None else all_reduce(self.noted)
        i = count.nonzero()[:, 0]
        self.update((i + 1).to(square.dtype) / self.steps, (square[i] / count[i]).sqrt())
        self.noted.zero_()

    def extra_repr(self) -> str:
        return f"steps={self.steps}, memory={self.memory}, uniform={self.uniform}"


__all__ = ["LossSecondMoment"]

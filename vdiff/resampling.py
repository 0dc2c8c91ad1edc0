"""Importance sampling of a chain's steps by the second moment of the loss."""

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._modules import PreciseModule
from vdiff._validate import Count, Given, Number, Steps, on_chain, require, tensor, validated
from vdiff.times import stratified

Share = Annotated[
    float,
    Number(
        above=0.0, at_most=1.0, hint="without it a step whose losses were 0 is never seen again"
    ),
]


def like_times(value: Tensor, argument: str, given: Given) -> Tensor:
    """A loss for each time."""
    tensor(value, argument, given)
    shape, hint = tuple(given["t"].shape), "the loss of each example, before the mean"
    fits = tuple(value.shape) == shape
    require(fits, argument, f"have shape (batch,) = {shape}", tuple(value.shape), hint)
    return value


def of_own_chain(self: "LossSecondMoment", t: Tensor) -> None:
    """Rule: times are ends of this chain's steps."""
    on_chain(t, self.steps)


class LossSecondMoment(PreciseModule):
    """Steps i = 1 … T drawn with p_i ∝ √E[L_i²], from the last `memory` losses seen at each;
    uniform until all have as many.

    Among all p, these independent draws have the least variance that the memory can estimate;
    weights 1/(T p_i) give every mean the value that it has under uniform i. A share `uniform` of
    the draws is uniform, so that every step is drawn. Its state is in `state_dict()`.

        t, weight = sampler.draw(len(x))
        loss = elbo(model, x, schedule=schedule, decoder=decoder, steps=T, t=t).diffusion
        sampler.update(t, loss)
        (weight * loss).mean().backward()

    It draws the chain's steps; a decoder's term at t = 0 is one more (`Objective` draws it too).
    If a training step has several micro-batches or processes, each calls `note` instead of
    `update`, and all call `remember(all_reduce)` once.

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
        # Σ loss² and their number since `remember`
        self.register_local("noted", torch.zeros(2, steps, dtype=torch.float64))

    def reset_parameters(self) -> None:
        """Forget everything."""
        for v in (self.history, self.count, self.noted):
            v.zero_()

    def probabilities(self) -> Float[Tensor, " steps"]:
        """p_i of every step, in float64.

        >>> LossSecondMoment(4).probabilities()
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
        """
        root = (self.history / self.history.abs().max().clamp(min=1e-300)).square().mean(1).sqrt()
        seen = (self.count >= self.memory).all() & (root.sum() > 0)
        p = torch.where(seen, root / root.sum(), 1 / self.steps)
        return (1 - self.uniform) * p + self.uniform / self.steps

    def draw(
        self, batch: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Times i/T, stratified over the batch, and the weight 1/(T p_i) of each.

        >>> LossSecondMoment(4).draw(2, torch.Generator().manual_seed(0))[1]
        tensor([1., 1.], dtype=torch.float64)
        """
        return self.at(stratified(batch, generator=generator, device=self.history.device))

    @validated
    def at(
        self, u: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The times i/T into which uniform numbers fall, and the weight 1/(T p_i) of each.

        >>> LossSecondMoment(4).at(torch.tensor([0.1, 0.9]))[0]
        tensor([0.2500, 1.0000], dtype=torch.float64)
        """
        p = self.probabilities()
        step = torch.searchsorted(p.cumsum(0), u.to(p.dtype), right=True).clamp(max=self.steps - 1)
        return (step + 1).to(p.dtype) / self.steps, 1 / (self.steps * p[step])

    @validated(rules=[of_own_chain])
    @torch.no_grad()
    def update(self, t: Float[Tensor, " batch"], loss: Annotated[Tensor, like_times]) -> None:
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
        """`update` with the root mean square of what was noted at each step since the last call,
        summed over ranks by `merge`.

        >>> sampler = LossSecondMoment(2)
        >>> sampler.note(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 7.0]))
        >>> sampler.remember()
        >>> sampler.history[0, 0], sampler.count
        (tensor(5., dtype=torch.float64), tensor([1, 0]))
        """
        square, count = self.noted if all_reduce is None else all_reduce(self.noted)
        seen = count.nonzero()[:, 0]
        self.update((seen + 1).to(square.dtype) / self.steps, (square[seen] / count[seen]).sqrt())
        self.noted.zero_()

    def extra_repr(self) -> str:
        return f"steps={self.steps}, memory={self.memory}, uniform={self.uniform}"


__all__ = ["LossSecondMoment"]

"""How an evaluation spends its draws: pieces that lower the variance and never move the mean, each
of which can be left out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff._validate import Instance, Whole, validated
from vdiff.likelihood.control import Control, GaussianError, NoiseNorm
from vdiff.likelihood.density import Independent, Stratified, Times
from vdiff.schedule import Schedule

_STRATIFIED = Stratified()


@dataclass(frozen=True)
class Plan:
    """The pieces of an estimator of the bound. Each is unbiased by itself and with any other;
    `Plan.plain()` has none.

    Attributes:
        times: where an image's draws lie: `Stratified()`, `Sobol()` or `Independent()`.
        importance: True for a density over λ that follows the spread of the loss as a pilot
            measured it; False for one uniform in λ (on a chain, over its steps); or a `Schedule`
            with the same ends, whose density it then is.
        controls: control variates, with a coefficient in each bin of λ from the pilot:
            `NoiseNorm()`, `GaussianError()`.
        antithetic: whether each ε comes with −ε, at the same time; None leaves it to the pilot. It
            cancels what is odd in ε, at twice the cost of what is even, so that it pays only where
            the controls have taken the even part.
        baseline: whether the pilot's mean at each λ is taken off each draw and its integral added,
            which is what stratification does where a grid has few times.
        pilot: how many network evaluations the pilot may use. Its draws are its own: a coefficient
            fitted on the draws that it corrects would bias them.

    >>> Plan.plain().importance, len(Plan().controls)
    (False, 2)
    """

    times: Times = _STRATIFIED
    importance: bool | Schedule = True
    controls: tuple[Control, ...] = (NoiseNorm(), GaussianError())
    antithetic: bool | None = None
    baseline: bool = True
    pilot: int = 8192

    @validated
    def __post_init__(self) -> None:
        Instance((Times,))(self.times, "times", {})
        Instance((bool, Schedule))(self.importance, "importance", {})
        for control in self.controls:
            Instance((Control,))(control, "controls", {})
        Whole()(self.pilot, "pilot", {})

    @classmethod
    def plain(cls) -> "Plan":
        """Independent times, uniform in λ, and nothing else."""
        return cls(Independent(), importance=False, controls=(), antithetic=False, baseline=False)

    def noise(
        self, shape: tuple[int, ...], pairs: bool, generator: torch.Generator, like: Tensor
    ) -> Tensor:
        """n draws of ε for one image; with `pairs` the second half is the first with its sign
        turned.

        >>> eps = Plan().noise((4, 2), True, torch.Generator().manual_seed(0), torch.zeros(1))
        >>> bool((eps[:2] == -eps[2:]).all())
        True
        """
        n = shape[0] // 2 if pairs else shape[0]
        eps = torch.randn(n, *shape[1:], dtype=like.dtype, device=like.device, generator=generator)
        return torch.cat([eps, -eps]) if pairs else eps


__all__ = ["Plan"]

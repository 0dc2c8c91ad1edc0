"""How an evaluation lowers its variance: techniques that change no mean. Each can be left out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff._validate import Instance, Whole, validated
from vdiff.likelihood.control import Control, GaussianError, NoiseNorm
from vdiff.likelihood.density import Independent, Stratified, Times
from vdiff.schedule import Schedule

_STRATIFIED = Stratified()


@dataclass(frozen=True)
class VarianceReduction:
    """The techniques that an evaluation of the bound uses. The estimate is unbiased with any of
    them; `VarianceReduction.plain()` uses none.

    Attributes:
        times: how an image's times are drawn: `Stratified()`, `Sobol()` or `Independent()`.
        importance: True for a density over λ that follows the spread of the loss, as the pilot
            measured it; False for a uniform density in λ (on a chain, over its steps); a
            `Schedule` with the same ends for the density of that schedule.
        controls: control variates, with a coefficient in each bin of λ from the pilot:
            `NoiseNorm()`, `GaussianError()`.
        antithetic: whether each ε comes with −ε at the same time; None leaves it to the pilot.
            Antithetic noise cancels what is odd in ε and doubles the cost of what is even. It pays
            only where the controls have removed the even part.
        baseline: whether each draw is replaced by its difference from the pilot's mean at its λ,
            and the integral of that mean is added. It does for few times in a grid what
            stratification does for many.
        pilot: how many network evaluations the pilot may use. The pilot has its own draws: a
            coefficient fitted to the draws that it corrects would bias them.

    >>> VarianceReduction.plain().importance, len(VarianceReduction().controls)
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
    def plain(cls) -> "VarianceReduction":
        """Independent times, uniform in λ, and no other technique."""
        return cls(Independent(), importance=False, controls=(), antithetic=False, baseline=False)

    def noise(
        self, shape: tuple[int, ...], pairs: bool, generator: torch.Generator, like: Tensor
    ) -> Tensor:
        """n draws of ε for one image. With `pairs` the second half is minus the first.

        >>> generator, plan = torch.Generator().manual_seed(0), VarianceReduction()
        >>> eps = plan.noise((4, 2), True, generator, torch.zeros(1))
        >>> bool((eps[:2] == -eps[2:]).all())
        True
        """
        n = shape[0] // 2 if pairs else shape[0]
        eps = torch.randn(n, *shape[1:], dtype=like.dtype, device=like.device, generator=generator)
        return torch.cat([eps, -eps]) if pairs else eps

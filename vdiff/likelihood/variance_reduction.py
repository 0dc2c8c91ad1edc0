"""How an evaluation lowers its variance: techniques that change no mean. Each can be left out."""

from dataclasses import dataclass

from vdiff._validate import Instance, Whole, validated
from vdiff.likelihood.control import Control, GaussianError, NoiseNorm
from vdiff.likelihood.density import Independent, Stratified, Times
from vdiff.schedule import Schedule

_STRATIFIED = Stratified()
GAUSSIAN_CONTROLS: tuple[Control, ...] = (NoiseNorm(), GaussianError())


@dataclass(frozen=True)
class VarianceReduction:
    """The techniques that an evaluation of the bound uses. The estimate is unbiased with any of
    them; `VarianceReduction.plain()` uses none.

    Attributes:
        times: how an image's times are drawn: `Stratified()`, `Sobol()` or `Independent()`.
        importance: True for a density over λ that follows the spread of the loss, as the pilot
            measured it; False for a uniform density in λ (of tokens in α, on a chain over its
            steps); a `Schedule` with the same ends for the density of that schedule.
        controls: control variates, with a coefficient in each bin of λ from the pilot:
            `NoiseNorm()`, `GaussianError()`. They are of Gaussian noise; tokens have none.
        antithetic: whether each ε comes with −ε at the same time, of tokens each u with 1 − u;
            None leaves it to the pilot. Antithetic noise cancels what is odd in ε and doubles the
            cost of what is even. It pays only where the controls have removed the even part.
        baseline: whether each draw is replaced by its difference from the pilot's mean at its λ,
            and the integral of that mean is added. It does for few times in a grid what
            stratification does for many.
        pilot: how many network evaluations the pilot may use. The pilot has its own draws: a
            coefficient fitted to the draws that it corrects would bias them.
        any_order: whether a masked process masks exactly k = ⌈n(1 − α)⌉ of the n tokens, as
            `vdiff.discrete.AnyOrder`, instead of each on its own. Strata of times are then strata
            of k. It is used where it is the same bound: for a network that gets no time, in
            continuous time, with one λ for all tokens. (Between ends that are cut short, such as
            λ = ±2, it is another bound, by a few thousandths of a nat in a small example.)

    >>> VarianceReduction.plain().importance, len(VarianceReduction().controls)
    (False, 2)
    """

    times: Times = _STRATIFIED
    importance: bool | Schedule = True
    controls: tuple[Control, ...] = GAUSSIAN_CONTROLS
    antithetic: bool | None = None
    baseline: bool = True
    pilot: int = 8192
    any_order: bool = True

    @validated
    def __post_init__(self) -> None:
        Instance((Times,))(self.times, "times", {})
        Instance((bool, Schedule))(self.importance, "importance", {})
        for control in self.controls:
            Instance((Control,))(control, "controls", {})
        Whole()(self.pilot, "pilot", {})
        Instance((bool,))(self.any_order, "any_order", {})

    @classmethod
    def plain(cls) -> "VarianceReduction":
        """Independent times, uniform in λ, and no other technique."""
        return cls(
            Independent(), importance=False, controls=(), antithetic=False, baseline=False,
            any_order=False,
        )  # fmt: skip

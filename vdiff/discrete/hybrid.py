"""Tokens drawn from a π that depends on λ: masks and uniform tokens mixed."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Function, Number, require, validated
from vdiff.discrete.process import Process, Vocabulary
from vdiff.errors import InvalidValue
from vdiff.gaussian import Step

Share = Annotated[float, Number(above=0.0, below=1.0)]
GRID = 401  # the λ at which π is checked
FARTHEST = 20.0  # they are from −20 to 20
ROUNDING = 1e-6  # of a sum of probabilities


def is_process(vocabulary: int, pi: Callable[[Tensor], Tensor]) -> None:
    """Rule: π(λ) is a distribution over the states, and π ≥ π' on a grid of λ."""
    logsnr = torch.linspace(-FARTHEST, FARTHEST, GRID, dtype=torch.float64, device="cpu")
    value, slope = with_slope(pi, logsnr)
    sizes = (GRID, vocabulary), (GRID, vocabulary + 1)
    form = f"return (…, {vocabulary}) or, with the mask, (…, {vocabulary + 1}) for λ (…)"
    require(tuple(value.shape) in sizes, "pi", form, tuple(value.shape))
    even = ((value.sum(-1) - 1).abs() < ROUNDING) & (value >= 0).all(-1)
    law = "be a probability over the states at every λ"
    _everywhere(even, logsnr, law, "it does not sum to 1, or is negative")
    always = (value > 0).all(0) | (value == 0).all(0)
    _everywhere(always.all(-1).expand(GRID), logsnr, "be positive at all λ or at none", "a state")
    falls = (value - slope >= -ROUNDING * value).all(-1)
    rises = "be at least its derivative in λ: else tokens would have to get their values back"
    _everywhere(falls, logsnr, rises, "π < dπ/dλ")


def _everywhere(holds: Tensor, logsnr: Tensor, requirement: str, got: str) -> None:
    bad = logsnr[~holds]
    if len(bad):
        raise InvalidValue("pi", requirement, f"{got} at λ = {bad[0]:g}")


class Hybrid(Process):
    """A token keeps its value with probability α, else it is drawn from π(λ).

    `pi` maps λ of any shape to probabilities (…, vocabulary), or (…, vocabulary + 1) where the
    last is the mask's, elementwise in λ and differentiable. It is refused if π < dπ/dλ somewhere
    (checked for λ from −20 to 20): no process has it.

    von Rütte et al., arXiv:2503.04482 (GIDD).

    >>> process = Hybrid(3, lambda logsnr: torch.stack([logsnr.sigmoid() / 3] * 3 +
    ...                                                [(-logsnr).sigmoid()], -1))
    >>> process.mask, process.pi(torch.zeros(1, dtype=torch.float64))
    (3, tensor([[0.1667, 0.1667, 0.1667, 0.5000]], dtype=torch.float64))
    """

    _built: tuple[str, dict[str, float]]  # the class method that made it, and its arguments

    @validated(rules=[is_process])
    def __init__(
        self,
        vocabulary: Vocabulary,
        pi: Annotated[Callable[[Tensor], Tensor], Function("π as a function of λ")],
    ) -> None:
        self.vocabulary, self._pi = vocabulary, pi
        states = pi(torch.zeros(1, dtype=torch.float64, device="cpu")).shape[-1]
        self.mask = vocabulary if states > vocabulary else None

    @classmethod
    @validated
    def gidd(cls, vocabulary: Vocabulary, *, uniform: Share = 0.1) -> "Hybrid":
        """GIDD's process: masks, and uniform tokens, which are a share `uniform` of all at its
        t = ½.

        With its time t, e^λ = (1 − t)/(t + b √(t(1 − t))) and b = 2 uniform/(1 − uniform).

        >>> process = Hybrid.gidd(2, uniform=0.5)
        >>> process.pi(torch.tensor([-math.log(3)], dtype=torch.float64))  # t = ½
        tensor([[0.3333, 0.3333, 0.3333]], dtype=torch.float64)
        """
        made = cls(vocabulary, _GIDD(vocabulary, uniform))
        made._built = "gidd", {"vocabulary": vocabulary, "uniform": uniform}
        return made

    def pi(self, logsnr: Tensor) -> Tensor:
        return to_float64(self._pi(logsnr))

    def fresh(self, logsnr: Tensor) -> Tensor:
        value, slope = with_slope(self._pi, logsnr)
        return to_float64(value - slope)

    def jump(self, step: Step) -> Tensor:
        before = self.pi(step.logsnr_s)
        return (self.pi(step.logsnr_t) - before) + step.fresh[..., None] * before

    def __repr__(self) -> str:
        return f"Hybrid({self.vocabulary}, {self._pi!r})"


class _GIDD:
    """GIDD's π(λ), with γ = 1.

    With u = √((1 − t)/t), e^λ = u²/(1 + b u), so that u = ½ (b e^λ + √(b² e^{2λ} + 4 e^λ)), and π
    is 1/(1 + b u) on the mask.
    """

    def __init__(self, vocabulary: int, uniform: float) -> None:
        self.vocabulary, self.uniform = vocabulary, uniform

    def __call__(self, logsnr: Tensor) -> Tensor:
        b = 2 * self.uniform / (1 - self.uniform)
        half = 0.5 * logsnr
        log_u = half + torch.asinh(0.5 * b * half.exp())
        log_odds = (math.log(b) + log_u)[..., None]
        tokens = log_odds.sigmoid() / self.vocabulary
        return torch.cat(
            [tokens.expand(*logsnr.shape, self.vocabulary), (-log_odds).sigmoid()], -1
        )

    def __repr__(self) -> str:
        return f"gidd(uniform={self.uniform:g})"


def with_slope(pi: Callable[[Tensor], Tensor], logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """π and dπ/dλ, for a π that is elementwise in λ."""
    # J·1 of an elementwise π, the derivative of v ↦ Jᵀv; jvp would load deprecated torch.jit
    value, transposed, *_ = torch.func.vjp(pi, logsnr)
    _, derivative, *_ = torch.func.vjp(lambda v: transposed(v)[0], torch.zeros_like(value))
    return value, derivative(torch.ones_like(logsnr))[0]


__all__ = ["Hybrid"]

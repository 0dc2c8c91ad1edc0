"""What theorems are tested on: data with a known denoiser, and a model that may be any network."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vdiff.denoiser import Denoiser
from vdiff.gaussian import per_example, sigma
from vdiff.loss import Model
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps, Parameterization, V
from vdiff.prediction import Prediction, as_prediction
from vdiff.times import generator_of

ROWS, CHUNK = 64, 256  # rows of a user's data, and how many the network gets at once
DRAWS = 4096  # evaluations of the network for each side of a sampled theorem
TIMES, FEWEST = 64, 16  # stratified times of one (x, ε), and the fewest groups of them
HIGH, LOW = 8.0, -5.0  # λ at which a user's network is evaluated: inside all published ends
f64 = partial(torch.tensor, dtype=torch.float64)


def mixture() -> GaussianMixture:
    """Two unequal Gaussians on a line: a symmetric mixture would not detect a wrong sign."""
    return GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])


def line() -> Gaussian:
    """One Gaussian on a line, N(0.3, 0.25)."""
    return Gaussian([0.3], [0.25])


def plane() -> GaussianMixture:
    """Two Gaussians in the plane with different correlations."""
    covariances = f64([[[0.3, 0.2], [0.2, 0.4]], [[0.25, -0.1], [-0.1, 0.1]]])
    return GaussianMixture([0.35, 0.65], [[-1.0, 0.3], [0.6, -0.2]], covariances)


ORACLE = mixture()


def normal(name: str, *shape: int) -> Tensor:
    """Standard normal draws in float64, the same in each run."""
    return torch.randn(*shape, generator=generator_of(0, 0, name), dtype=torch.float64)


def random_network() -> Denoiser:
    """A small network with fixed random weights, in two dimensions."""
    first, inner, last = (
        torch.randn(shape, generator=generator_of(0, i), dtype=torch.float64)
        for i, shape in enumerate([(2, 8), (8,), (8, 2)])
    )
    return Denoiser(
        lambda z, logsnr: torch.tanh(z @ first + 0.3 * logsnr[:, None] * inner) @ last, V()
    )


class Altered:
    """A model whose ε̂ is a function of another's prediction: its error is known."""

    def __init__(self, model: Model, eps: Callable[[Prediction], Tensor]) -> None:
        self.model, self.eps = model, eps

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, self.eps(self.model(z, logsnr)), Eps())


class Reexpressed:
    """The same model in another parameterization."""

    def __init__(self, model: Model, parameterization: Parameterization) -> None:
        self.model, self.parameterization = model, parameterization

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        output = self.model(z, logsnr).as_target(self.parameterization)
        return Prediction(z, logsnr, output, self.parameterization)


def biased(model: Model) -> Altered:
    """An inexact model: 0.9 ε̂ + 0.05."""
    return Altered(model, lambda prediction: 0.9 * prediction.eps + 0.05)


def scaled_x(model: Model, scale: float) -> Altered:
    """The model with scale · x̂, from z = α x̂ + σ ε̂."""

    def eps(p: Prediction) -> Tensor:
        return scale * p.eps + (1 - scale) * p.z / per_example(sigma(p.logsnr), p.z)

    return Altered(model, eps)


class Wide:
    """A model of any precision as one of float64: its input is rounded, its output counts as
    exact.

    A float32 network is still one function of (z, λ), and a theorem about any function holds for
    it to float64 rounding. Its own reverse variance is left out: where one matters, a theorem says
    which.
    """

    def __init__(self, model: Model, like: Tensor) -> None:
        self.model, self.like = model, like

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        parts = [
            as_prediction(self.model(a.to(self.like), b.to(self.like)))
            for a, b in zip(torch.split(z, CHUNK), torch.split(logsnr, CHUNK), strict=True)
        ]
        output = torch.cat([part.output for part in parts]).to(z)
        return Prediction(z, logsnr, output, parts[0].parameterization)


@dataclass(frozen=True)
class Subject:
    """Any network `model` with data `x` of its kind, and the draws of a sampled theorem.

    >>> Subject().x.shape
    torch.Size([64, 2])
    """

    model: Model = field(default_factory=random_network)
    x: Tensor = field(default_factory=lambda: plane().sample(ROWS, generator_of(0, 0, "data")))
    draws: int = DRAWS

    @classmethod
    def of(cls, model: Model, data: Tensor, draws: int = DRAWS) -> "Subject":
        """A user's model and the first rows of their data, as the network sees it."""
        rows = data[:ROWS].detach()
        return cls(model=Wide(model, rows), x=rows.to("cpu", torch.float64), draws=draws)

    def rows(self, n: int) -> Tensor:
        """n rows of x, repeated in order."""
        return self.x.repeat(math.ceil(n / len(self.x)), *(1 for _ in self.x.shape[1:]))[:n]

    def drawn(self, name: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """n rows of x with their own ε and uniform times."""
        x, generator = self.rows(n), self.generator(name)
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return x, eps, torch.rand(n, generator=generator, dtype=torch.float64)

    def grouped(self, name: str, times: int = TIMES) -> tuple[Tensor, Tensor, Tensor]:
        """`draws` in groups that share one (x, ε): x, ε, and a place in each of `times` strata.

        The mean over a group's strata hardly varies, and groups are independent.
        """
        generator, groups = self.generator(name), max(FEWEST, self.draws // times)
        x = self.rows(groups)
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        place = torch.rand(groups, times, generator=generator, dtype=torch.float64)
        return x.repeat_interleave(times, 0), eps.repeat_interleave(times, 0), place

    def generator(self, name: str) -> torch.Generator:
        """The random generator of one theorem, the same in each run."""
        return generator_of(0, 0, name)

"""What theorems are tested on: data with a known denoiser, and a model that may be any network at
all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vdiff.denoiser import Denoiser
from vdiff.errors import check_data, must
from vdiff.gaussian import sigma
from vdiff.loss import Model
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps, Parameterization, V
from vdiff.prediction import Prediction
from vdiff.times import generator_of

ROWS, CHUNK = 64, 256  # rows of a user's data, and how many their network sees at once
DRAWS = 4096  # evaluations of the network for each side of a sampled theorem
TIMES, FEWEST = 64, 16  # stratified times of one (x, ε), and the fewest groups of them
HIGH, LOW = (
    8.0,
    -5.0,
)  # between these λ a user's network is asked: inside DDPM's, VDM's and flow matching's own ends


def mixture() -> GaussianMixture:
    """Two unequal Gaussians on a line, neither centered nor of unit variance: a symmetric one
    cannot see a sign.

    >>> mixture().dims
    1
    """
    return GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])


def line() -> Gaussian:
    """One Gaussian on a line, N(0.3, 0.25).

    >>> line().variances
    tensor([[0.2500]], dtype=torch.float64)
    """
    return Gaussian([0.3], [0.25])


def plane() -> GaussianMixture:
    """Two Gaussians in the plane, each correlated in its own way.

    >>> plane().dims
    2
    """
    covariances = torch.tensor(
        [[[0.3, 0.2], [0.2, 0.4]], [[0.25, -0.1], [-0.1, 0.1]]], dtype=torch.float64
    )
    return GaussianMixture([0.35, 0.65], [[-1.0, 0.3], [0.6, -0.2]], covariances)


def random_network() -> Denoiser:
    """A small network with fixed random weights, in two dimensions: the default for what holds of
    any network.

    >>> random_network()(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)).x.shape
    torch.Size([3, 2])
    """
    first, inner, last = (
        torch.randn(shape, generator=generator_of(0, i), dtype=torch.float64)
        for i, shape in enumerate([(2, 8), (8,), (8, 2)])
    )

    def network(z: Tensor, logsnr: Tensor) -> Tensor:
        return torch.tanh(z @ first + 0.3 * logsnr[:, None] * inner) @ last

    return Denoiser(network, V())


class Altered:
    """A model whose ε̂ is a function of another's prediction: an inexact one with a known error.

    >>> Altered(mixture(), lambda prediction: 0 * prediction.eps)(torch.ones(1, 1), torch.zeros(1)).eps
    tensor([[0.]])
    """

    def __init__(self, model: Model, eps: Callable[[Prediction], Tensor]) -> None:
        self.model, self.eps = model, eps

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, self.eps(self.model(z, logsnr)), Eps())


class Reexpressed:
    """A model that says the same in another parameterization.

    >>> Reexpressed(mixture(), V())(torch.ones(1, 1), torch.zeros(1)).parameterization
    V(sigma_data=1.0)
    """

    def __init__(self, model: Model, parameterization: Parameterization) -> None:
        self.model, self.parameterization = model, parameterization

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(
            z, logsnr, self.model(z, logsnr).read(self.parameterization), self.parameterization
        )


def biased(model: Model) -> Altered:
    """An inexact model: ε̂ scaled by 0.9 and moved by 0.05.

    >>> biased(mixture())(torch.zeros(1, 1), torch.zeros(1)).eps.shape
    torch.Size([1, 1])
    """
    return Altered(model, lambda prediction: 0.9 * prediction.eps + 0.05)


def scaled_x(model: Model, scale: float) -> Altered:
    """A model whose x̂ is another's times a number.

    >>> model, z, logsnr = mixture(), torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    >>> (scaled_x(model, 2.0)(z, logsnr).x / model(z, logsnr).x).item()
    2.0
    """

    def eps(prediction: Prediction) -> Tensor:
        noise = sigma(prediction.logsnr)[:, None]
        return (
            scale * prediction.eps + (1 - scale) * prediction.z / noise
        )  # z = α x̂ + σ ε̂, with x̂ times scale

    return Altered(model, eps)


class Wide:
    """A model of any precision as one of float64: what it is told is rounded, what it says counts
    as exact.

    A network in float32 is still one function of (z, λ), and a theorem about any function holds
    for it to float64 rounding. Its own choice of Σ is left out: where one matters, a theorem says
    which.

    >>> model = Wide(lambda z, logsnr: Prediction(z, logsnr, z, Eps()), like=torch.zeros(1))          # one of float32
    >>> model(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)).out.dtype
    torch.float64
    """

    def __init__(self, model: Model, like: Tensor) -> None:
        self.model, self.like = model, like

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        parts = [
            self.model(a.to(self.like), b.to(self.like))
            for a, b in zip(torch.split(z, CHUNK), torch.split(logsnr, CHUNK), strict=True)
        ]
        if not all(isinstance(part, Prediction) for part in parts):
            hint = "wrap the network, which says what it predicts: Denoiser(network, V())"
            raise TypeError(
                must("verify", "model", "return a Prediction", type(parts[0]).__name__, hint)
            )
        return Prediction(
            z, logsnr, torch.cat([part.out for part in parts]).to(z), parts[0].parameterization
        )


@dataclass(frozen=True)
class Subject:
    """`oracle` is data on a line whose denoiser is known; `model` any network at all, with data
    `x` of its kind.

    >>> Subject().x.shape
    torch.Size([64, 2])
    """

    oracle: GaussianMixture = field(default_factory=mixture)
    model: Model = field(default_factory=random_network)
    x: Tensor = field(default_factory=lambda: plane().sample(ROWS, generator_of(0, 0, "data")))
    draws: int = DRAWS

    @classmethod
    def of(cls, model: Model, data: Tensor, draws: int = DRAWS) -> "Subject":
        """A user's model and the first rows of their data, as the network sees it.

        >>> Subject.of(random_network(), torch.zeros(3, 2)).x.dtype
        torch.float64
        """
        if not callable(model) or isinstance(model, type):
            hint = "for instance Denoiser(network, V())"
            raise TypeError(
                must(
                    "verify",
                    "model",
                    "be called as model(z, logsnr) and return a Prediction",
                    repr(model),
                    hint,
                )
            )
        check_data("verify", data, "data")
        rows = data[:ROWS].detach()
        return cls(model=Wide(model, rows), x=rows.to("cpu", torch.float64), draws=draws)

    def rows(self, n: int) -> Tensor:
        """n rows of x, over and over again.

        >>> Subject().rows(1000).shape
        torch.Size([1000, 2])
        """
        return self.x.repeat(math.ceil(n / len(self.x)), *(1 for _ in self.x.shape[1:]))[:n]

    def grouped(self, name: str, times: int = TIMES) -> tuple[Tensor, Tensor, Tensor]:
        """`draws` in groups that have one (x, ε): x, ε, and a place in each of `times` strata.

        The mean over a group's strata hardly varies, and groups are independent.

        >>> x, eps, place = Subject(draws=1024).grouped("an example")
        >>> x.shape, place.shape
        (torch.Size([1024, 2]), torch.Size([16, 64]))
        """
        generator, groups = self.generator(name), max(FEWEST, self.draws // times)
        x = self.rows(groups)
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        place = torch.rand(groups, times, generator=generator, dtype=torch.float64)
        return x.repeat_interleave(times, 0), eps.repeat_interleave(times, 0), place

    def generator(self, name: str) -> torch.Generator:
        """The draws of one theorem, the same in each run.

        >>> Subject().generator("a").initial_seed() == Subject().generator("b").initial_seed()
        False
        """
        return generator_of(0, 0, name)


__all__ = [
    "Altered",
    "Reexpressed",
    "Subject",
    "Wide",
    "biased",
    "line",
    "mixture",
    "plane",
    "random_network",
    "scaled_x",
]

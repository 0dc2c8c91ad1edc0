"""A log-SNR for each dimension: paths between the same ends, and the chain rule along them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.gaussian import diffuse, prior_kl, weighted_sum
from vdiff.loss import Model, elbo, weighted_elbo
from vdiff.oracle import Gaussian
from vdiff.prediction import Prediction
from vdiff.schedule import InTurn, Linear, MuLAN, Path, PerDimension, Schedule
from vdiff.theorems.integral import panels
from vdiff.theorems.subject import f64, scaled_x
from vdiff.theorems.theorem import Sides, equal, sampled, theorem
from vdiff.times import generator_of

HIGH, LOW = 8.0, -14.0
COVARIANCE = f64([[1.0, 0.8, 0.3], [0.8, 1.5, 0.5], [0.3, 0.5, 0.7]])
DATA = Gaussian([0.0, 0.0, 0.0], COVARIANCE)
WRONG = Gaussian([0.4, 0.0, -0.2], [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.5]])
DIAGONAL = Gaussian([0.0, 0.0, 0.0], COVARIANCE.diagonal())
TURNS = [0, 1, 2], [2, 0, 1], [1, 0, 1]  # the last has a group of two dimensions
QUADRATURE = "quadrature over t; x and ε are exact"
EXACT, FIELD = "the denoiser is the exact one", "the network gets the field"


class Told:
    """A model that gets another λ than that of its input."""

    def __init__(self, model: Model, level: Callable[[Tensor], Tensor]) -> None:
        self.model, self.level = model, level

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        return self.model(z, self.level(logsnr)).replace(logsnr=logsnr)


def one_level(reduce: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One λ for all dimensions, from those of a field (n, d)."""
    return lambda logsnr: logsnr if logsnr.ndim == 1 else reduce(logsnr)


def noise_nodes(dims: int) -> Tensor:
    """±√d e_i, (2d, d): a quadratic function of noise N(0, I) has its mean over them."""
    root = math.sqrt(dims) * torch.eye(dims, dtype=torch.float64)
    return torch.cat([root, -root])


def data_nodes(data: Gaussian) -> tuple[Tensor, Tensor]:
    """x and ε (4d, d), over which a quadratic function of both has its mean."""
    node, root = noise_nodes(2 * data.dims), torch.linalg.cholesky(_covariance(data))
    return data.means + node[:, : data.dims] @ root.mT, node[:, data.dims :]


def _covariance(data: Gaussian) -> Tensor:
    axes = torch.eye(data.dims, dtype=torch.float64) if data.axes is None else data.axes[0]
    return axes * data.variances[0] @ axes.mT


def over_path(
    of: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, eps: Tensor, parts: int = 1
) -> Tensor:
    """E f(x, ε, t) over the rows of x and ε, integrated over each of `parts` equal parts of
    [0, 1]: (parts,)."""
    t, dt = panels(torch.linspace(0, 1, 132 + 1, dtype=torch.float64))
    value = of(x.repeat(len(t), 1), eps.repeat(len(t), 1), t.repeat_interleave(len(x)))
    return (dt * value.view(len(t), -1).mean(1)).view(parts, -1).sum(1)


def path_loss(model: Model, schedule: Schedule, parts: int = 1, **masks: Any) -> Tensor:
    """E[weighted_elbo] of `DATA` along a path, (parts,)."""

    def loss(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return weighted_elbo(model, x, schedule=schedule, t=t, eps=eps, **masks)

    return over_path(loss, *data_nodes(DATA), parts)


def written(model: Model, schedule: Schedule, parts: int = 1) -> Tensor:
    """½ ∫ Σ_i (−dλ_i/dt) E e_i² dt, without the library's loss."""

    def loss(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        at = schedule.at(t, ndim=2)
        error = eps - model(diffuse(x, eps, at.logsnr), at.logsnr).eps
        return 0.5 * weighted_sum(error.square(), at.rate)

    return over_path(loss, *data_nodes(DATA), parts)


def tilted(powers: Sequence[float], high: Tensor, low: Tensor) -> Path:
    """λ_i falls between its own ends as a power of t."""
    power = f64(powers)
    return Path(
        lambda t: high - (high - low) * t**power,
        [len(powers)],
        lambda t: (high - low) * power * t ** (power - 1),
    )


@theorem(
    "I-MMSE of a field: Palomar & Verdú 2006, Gradient of mutual information",
    without={
        EXACT: {"model": WRONG},
        FIELD: {"model": Told(DATA, one_level(lambda v: v.mean(1)))},
    },
)
def paths_of_the_exact_denoiser(model: Model = DATA) -> Sides:
    """Where each dimension has a λ of its own, ½ E e_i² = ∂I(x; z)/∂λ_i: on every path between two
    fields the diffusion term of the exact denoiser is the difference of their informations."""
    high, low = f64([8.0, 6.0, 7.0]), f64([-14.0, -9.0, -6.0])
    ends = zip(high.tolist(), low.tolist(), strict=True)
    paths: list[Schedule] = [PerDimension([Linear(*pair) for pair in ends])]
    paths += [tilted(powers, high, low) for powers in ([1, 2, 3], [3, 2, 1])]
    left = torch.cat([path_loss(model, path) for path in paths])
    at_high, at_low = DATA.mutual_information(torch.stack([high, low]))
    return equal(left, at_high - at_low, rel=1e-10, why=QUADRATURE)


@theorem(
    "of quadratic forms; MuLAN, arXiv:2312.13236, for other denoisers, whose path matters",
    without={
        "the denoiser is a Gaussian's": {"scale": 0.97},
        FIELD: {"level": one_level(lambda v: v.mean(1))},
    },
)
def paths_of_a_gaussian_denoiser(
    scale: float = 1.0, level: Callable[[Tensor], Tensor] | None = None
) -> Sides:
    """The denoiser of any Gaussian, also of a wrong one, has the same loss on every path: all
    dimensions together, each at its own pace, one after another, in the other order."""
    ends = torch.full((3,), HIGH, dtype=torch.float64), torch.full((3,), LOW, dtype=torch.float64)
    together = Linear(HIGH, LOW)
    paths = [together, tilted([1, 2, 3], *ends), *(InTurn(together, turns) for turns in TURNS)]
    left, right = [], []
    for data in (DATA, WRONG, DIAGONAL):
        model: Model = scaled_x(data, scale)
        model = model if level is None else Told(model, level)
        left.append(torch.cat([path_loss(model, path) for path in paths]))
        right.append(written(model, together))
    return equal(torch.stack(left), torch.stack(right), rel=1e-10, why=QUADRATURE)


def conditional_information(turns: Sequence[int], given: bool = True) -> Tensor:
    """I(x_k; z_k | the later groups at λ_max, the earlier ones at λ_min) of each group of `DATA`,
    from the covariance that conditioning leaves; (groups,)."""
    turn, found = torch.tensor(turns), []
    for now in range(max(turns) + 1):
        own, rest = turn == now, turn != now
        noise = torch.where(turn > now, math.exp(-HIGH), math.exp(-LOW))[rest].double()
        cross = COVARIANCE[own][:, rest]
        gain = torch.linalg.solve(COVARIANCE[rest][:, rest] + noise.diag(), cross.mT)
        left = COVARIANCE[own][:, own] - (cross @ gain if given else 0.0)
        one = torch.eye(len(left), dtype=torch.float64)
        at_high, at_low = (torch.logdet(one + math.exp(end) * left) for end in (HIGH, LOW))
        found.append(0.5 * (at_high - at_low))
    return torch.stack(found)


@theorem(
    "the chain rule of information; autoregressive models as a path",
    without={
        "each group is given those that fall later": {"given": False},
        EXACT: {"model": WRONG},
    },
)
def chain_rule_along_a_path(model: Model = DATA, given: bool = True) -> Sides:
    """Where groups of dimensions fall one after another, the part of each is its information given
    those that fall later, and the sum of the parts is the loss of all together."""
    left, right = [], []
    for turns in TURNS:
        parts = path_loss(model, InTurn(Linear(HIGH, LOW), turns), max(turns) + 1)
        left += [parts, parts.sum(0, keepdim=True)]
        ends = DATA.mutual_information(f64([HIGH, LOW]))
        right += [conditional_information(turns, given), (ends[0] - ends[1])[None]]
    return equal(torch.cat(left), torch.cat(right), rel=1e-10, why=QUADRATURE)


POINT = f64([0.7, -0.4, 1.1])
LOGITS = f64([[1.0, -1.0], [0.0, 2.0], [1.4, -1.4]])  # of two coins, for each of three dimensions


def mulan() -> MuLAN:
    """Two coins, each with a path of its own, between fixed ends."""
    encoder = nn.Linear(3, 2, bias=False).double()
    encoder.weight.data = LOGITS.mT.clone()
    schedule = MuLAN(encoder, [3], 4.0, -4.0, latents=2, knots=4, learn_ends=False)
    wave = torch.arange(schedule.log_factors.numel(), dtype=torch.float64).sin()
    schedule.log_factors.data = wave.view_as(schedule.log_factors)
    return schedule


@theorem(
    "MuLAN, arXiv:2312.13236, its auxiliary latent",
    without={EXACT: {"model": WRONG}, "the latent's KL is counted": {"counted": False}},
)
def noise_that_depends_on_the_data(model: Model = DATA, counted: bool = True) -> Sides:
    """With noise that depends on x through a latent c, the bound of the exact denoiser is that of
    any path plus KL(q(c|x) ‖ p(c)): a bound of −log p(x), and no lower one."""
    x = POINT[None]
    chances = torch.stack([(x @ LOGITS).sigmoid()[0], (-x @ LOGITS).sigmoid()[0]])
    law = torch.outer(chances[:, 0], chances[:, 1])  # q(c|x) of the four outcomes
    latent = (law * (4 * law).log()).sum() if counted else 0.0
    kl = DATA.information(x.expand(2, -1), f64([4.0, -4.0]))
    decoder = GaussianDecoder()
    rest = prior_kl(x, -4.0)[0] + kl[0] - kl[1] + decoder.expected_nll(x, 4.0)[0]
    n, eps = 1024, noise_nodes(3)
    found = elbo(
        model, x.expand(n * len(eps), -1), schedule=mulan(), decoder=decoder, draws=32,
        eps=eps.repeat(n, 1), generator=generator_of(0, 0, "MuLAN"),
    )  # fmt: skip
    return sampled(found.total.view(n, -1).mean(1), rest + latent)

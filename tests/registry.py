"""Every public part of the library by name, for the tests that hold for all parts of a kind.

A new schedule, target, weighting, decoder, step or oracle is one line here. `test_registry.py`
asserts that every public class is in its table.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff import Objective, sampling
from vdiff.decoder import Categorical, Decoder, DiscretizedGaussian, Gaussian
from vdiff.discrete import (
    AnyOrder,
    LeaveOneOut,
    Masked,
    Posterior,
    Process,
    TokenParameterization,
    Uniform,
)
from vdiff.discrete import Hybrid as HybridTokens
from vdiff.masks import (
    Absent,
    Bernoulli,
    MaskSampler,
    Mixture,
    NothingGiven,
    RandomBox,
    RandomHalf,
)
from vdiff.objective import VLB, Hybrid, Loss, Weighted
from vdiff.oracle import Gaussian as GaussianData
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import (
    Eps,
    Flow,
    Parameterization,
    PosteriorMean,
    Score,
    V,
    VarianceExploding,
    X,
)
from vdiff.schedule import (
    Adaptive,
    Cosine,
    Custom,
    Histogram,
    InTurn,
    Karras,
    Laplace,
    LearnedLinear,
    Linear,
    LinearBeta,
    LogLinear,
    Monotone,
    MuLAN,
    MultivariateSpline,
    Normal,
    OptimalTransport,
    Path,
    PerDimension,
    RescaledSigmoid,
    Schedule,
    Shifted,
    SignalPower,
    Spectral,
    Spline,
    Tabulated,
    Truncated,
)
from vdiff.schedule.law import Logistic
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Debiased,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
)
from vdiff.weighting import Custom as CustomWeighting


def quadratic(high: float, low: float, t: Tensor) -> Tensor:
    """λ of a user's own schedule."""
    return high - (high - low) * (0.3 * t + 0.7 * t**2)


def fades(logsnr: Tensor) -> Tensor:
    """A user's own weighting."""
    return torch.exp(-0.1 * logsnr)


# each made between two ends (λ_max, λ_min) within ±10
SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {
    "linear": Linear,
    "learned linear": LearnedLinear,
    "cosine": Cosine,
    "cosine, shift": lambda high, low: Cosine(high, low, shift=2.0),
    "cosine, offset": lambda high, low: Cosine(high, low, offset=0.008),
    "linear beta": LinearBeta,
    "optimal transport": OptimalTransport,
    "log-linear": LogLinear,
    "truncated": lambda high, low: Truncated(Logistic(1.0, 3.0), high, low),
    "normal": lambda high, low: Normal(2.4, 2.4, high, low),
    "laplace": lambda high, low: Laplace(1.0, 3.0, high, low),
    "karras": lambda high, low: Karras(math.exp(-high / 2), math.exp(-low / 2)),
    "rescaled sigmoid": RescaledSigmoid,
    "signal power": SignalPower,
    "spectral": lambda high, low: Spectral([0.01, 0.5, 4.0], high, low),
    "shifted": lambda high, low: Shifted(Cosine(high + 1.5, low + 1.5), -1.5),
    "table": lambda high, low: Tabulated([high - (high - low) * s / 30 for s in TABLE_AT]),
    "custom": lambda high, low: Custom(partial(quadratic, high, low)),
    "histogram": lambda high, low: Histogram([1.0 + i % 7 for i in range(30)], high, low),
    "adaptive": lambda high, low: Adaptive(high, low, bins=30),
    "spline": lambda high, low: Spline(high, low, knots=31, learn_ends=False),
    "monotone": lambda high, low: Monotone(high, low, hidden=64, learn_ends=False),
}


class Encoder(torch.nn.Module):
    """The logits of the coins of an input-dependent schedule."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(math.prod(EXAMPLE), latents))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.weight.device.type != "meta":
            generator = torch.Generator(self.weight.device).manual_seed(2)
            self.weight.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def tilted(high: float, low: float, t: Tensor) -> Tensor:
    """λ of a user's own path: the first row falls late, the second one early."""
    power = torch.tensor([2.0, 0.7], dtype=t.dtype, device=t.device).view(2, 1)
    return high - (high - low) * (
        0.01 * t + 0.99 * ((t + 0.01) ** power - 0.01**power) / (1.01**power - 0.01**power)
    )


def crossing(logsnr: Tensor) -> Tensor:
    """π of a hybrid: the mask with probability sigmoid(−λ), else uniform on three values."""
    tokens = (logsnr.sigmoid() / 3)[..., None].expand(*logsnr.shape, 3)
    return torch.cat([tokens, (-logsnr).sigmoid()[..., None]], -1)


EXAMPLE = (2, 3)  # the shape of one example of these
SCHEDULES_OVER_DIMS: dict[str, Callable[[float, float], Schedule]] = {
    "per row": lambda high, low: PerDimension([Cosine(high, low), Linear(high - 1, low + 2)]),
    "per column": lambda high, low: PerDimension(
        [Tabulated([high - (high - low) * s / 30 for s in TABLE_AT]), *[Linear(high, low)] * 2], -1
    ),
    "in turn": lambda high, low: InTurn(Cosine(high, low), 2),
    "in turn, each": lambda high, low: InTurn(
        Linear(high, low), torch.tensor([[2, 0, 5], [1, 4, 3]], device="cpu")
    ),
    "path": lambda high, low: Path(partial(tilted, high, low), [2, 1]),
    "multivariate spline": lambda high, low: MultivariateSpline(
        EXAMPLE, high, low, knots=5, learn_ends=False
    ),
    "mulan": lambda high, low: MuLAN(
        Encoder(3), (2, 1), high, low, latents=3, knots=4, learn_ends=False
    ),
}
TABLE_AT = (0, 1, 6, 12, 14, 20, 22, 30)
TARGETS: dict[str, Parameterization] = {
    "eps": Eps(),
    "x": X(),
    "v": V(),
    "v of scale ½": V(0.5),
    "flow": Flow(),
    "score": Score(),
    "variance exploding": VarianceExploding(X()),
    "posterior mean": PosteriorMean(Linear(20.0, -20.0), steps=10),
}
CLOSED_TARGETS = {name: t for name, t in TARGETS.items() if not isinstance(t, PosteriorMean)}
WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "elbo": ELBO,
    "sigmoid": Sigmoid,
    "edm": EDM,
    "edm, monotone": lambda: EDM(monotone=True),
    "indi": InDI,
    "mse": lambda: MSE(Cosine(10.0, -10.0), V()),
    "mse of a chain": lambda: MSE(Tabulated.linear_betas(), Eps(), steps=999),
    "min-snr": lambda: MSE(Cosine(10.0, -10.0), Eps()) * MinSNR(),
    "soft min-snr": lambda: ELBO() * SoftMinSNR(),
    "p2, truncated snr": lambda: ELBO() * P2() * TruncatedSNR(),
    "debiased": lambda: ELBO() * Debiased(),
    "custom": lambda: CustomWeighting(fades),
}
DECODERS: dict[str, Callable[[], Decoder]] = {
    "categorical": lambda: Categorical(17),
    "categorical, prior": lambda: Categorical(17, prior=torch.arange(17.0)),
    "categorical, priors": lambda: Categorical(17, prior=torch.arange(34.0).view(2, 17)),
    "discretized gaussian": lambda: DiscretizedGaussian(17),
    "discretized gaussian, x̂": lambda: DiscretizedGaussian(17, uses_network=True),
    "gaussian": Gaussian,
    "gaussian, x̂": lambda: Gaussian(uses_network=True, variance=0.5),
}
MASKS: dict[str, MaskSampler] = {
    "nothing given": NothingGiven(),
    "half": RandomHalf(),
    "half, one dim": RandomHalf(dims=(-1,)),
    "box": RandomBox(),
    "outside a box": RandomBox(outside=True),
    "bernoulli": Bernoulli(0.3),
    "bernoulli, shared": Bernoulli(0.3, shared=(0,)),
    "absent": Absent(RandomHalf()),
    "mixture": Mixture([NothingGiven(), RandomHalf(), RandomBox()], weights=[1, 2, 3]),
    "mixture, absent": Mixture([NothingGiven(), Absent(RandomHalf())]),
}
PROCESSES: dict[str, Callable[[], Process]] = {
    "mask": lambda: Masked(3),
    "mask of the vocabulary": lambda: Masked(4, mask=3),
    "uniform": lambda: Uniform(3),
    "hybrid": lambda: HybridTokens(3, crossing),
    "gidd": lambda: HybridTokens.gidd(3, uniform=0.3),
}
COUNTED: dict[str, Callable[[], Process]] = {"any order": lambda: AnyOrder(3)}
TOKEN_TARGETS: dict[str, TokenParameterization] = {
    "posterior": Posterior(),
    "leave-one-out": LeaveOneOut(),
}
STEPS: dict[str, Callable[..., Any]] = {
    "ancestral": sampling.ancestral,
    "ddim": sampling.ddim,
    "ddim, noise": partial(sampling.ddim, eta=0.5),
    "heun": sampling.heun,
    "dpmpp_2m": sampling.dpmpp_2m,
    "adams_bashforth": sampling.adams_bashforth,
    "ode": partial(sampling.ode, rtol=1e-9, atol=1e-9),
}
TOKEN_STEPS: dict[str, Callable[..., Any]] = {
    "ancestral": sampling.ancestral,
    "confidence": sampling.confidence,
    "confidence, random": partial(sampling.confidence, randomness=2.0),
    "tau_leaping": sampling.tau_leaping,
}
ORACLES: dict[str, Callable[[], GaussianMixture]] = {
    "mixture": lambda: GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]]),
    "plane": lambda: GaussianMixture(
        [0.3, 0.7], [[-1.0, 0.5], [0.5, 0.0]], [[0.04, 0.04], [0.09, 0.09]]
    ),
    "correlated": lambda: GaussianMixture(
        [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]] * 2
    ),
    "gaussian": lambda: GaussianData([0.3, -0.2], [0.5, 1.5]),
    "lattice": lambda: Lattice(Categorical(4).level_values, [0.4, 0.3, 0.2, 0.1]),
}


def made_of(
    table: dict[str, Callable[[float, float], Schedule]], high: float = 9.0, low: float = -9.0
) -> dict[str, Callable[[], Schedule]]:
    """Functions without arguments that make the schedules between two ends."""
    return {name: partial(make, high, low) for name, make in table.items()}


def moved(schedule: Schedule) -> Schedule:
    """A schedule whose learned shape is away from its start, without gradients."""
    generator = torch.Generator().manual_seed(1)
    for name, p in schedule.named_parameters():
        if name not in ("low", "high"):
            p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    if isinstance(schedule, Adaptive):  # nonsense, within its floor
        high, low = schedule.logsnr_max, schedule.logsnr_min
        logsnr = low + (high - low) * torch.rand(5000, generator=generator, dtype=torch.float64)
        value = torch.randint(0, 3, (5000,), generator=generator)
        schedule.observe(logsnr, value * torch.exp(3 * torch.sin(5 * logsnr)))
        schedule.update()
        assert schedule.mass.max() > 20 * schedule.mass.min()
    return schedule.requires_grad_(False)


def of_batch(schedule: Schedule, batch: int) -> Schedule:
    """The schedule for a batch: one that depends on the data has another for each."""
    if not schedule.depends_on_data:
        return schedule
    assert isinstance(schedule, MuLAN)
    return schedule.for_samples(batch, torch.Generator().manual_seed(3))


def corners(schedule: Schedule) -> list[float]:
    """The λ at which the density of a schedule has a corner or a jump."""
    if isinstance(schedule, Tabulated):
        return schedule.table.tolist()
    if isinstance(schedule, Laplace):
        return [schedule.law.mean]
    cells = {Histogram: "mass", Adaptive: "mass", Spline: "log_density"}.get(type(schedule))
    if cells is None:
        return []
    count = len(getattr(schedule, cells)) + (0 if isinstance(schedule, Spline) else 1)
    ends = schedule.logsnr_min, schedule.logsnr_max
    return torch.linspace(*ends, count, dtype=torch.float64).tolist()


def loss_of(
    weighting: Any = None,
    decoder: Any = None,
    steps: int | None = None,
    bound_weight: float | None = None,
    resampling: Any = None,
) -> Loss:
    """The loss that these parts make."""
    if bound_weight is not None:
        return Hybrid(steps, bound_weight=bound_weight, decoder=decoder)
    if decoder is not None and isinstance(weighting or ELBO(), ELBO):
        return VLB(decoder, steps=steps, resampling=resampling)
    return Weighted(weighting or ELBO(), steps=steps, decoder=decoder)


def objective_of(model: Any, *, schedule: Any, **parts: Any) -> Objective:
    """The objective that these parts make."""
    return Objective(model, schedule=schedule, loss=loss_of(**parts))

"""torch's default dtype changes no number: λ, times, noise and the data's grid have a dtype of
their own, float32 at least."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from faults.common import Net, data_of
from points import data_of as data_of_points
from points import points
from registry import DECODERS, SCHEDULES, WEIGHTINGS, made_of
from torch import Tensor, nn

import vdiff
from vdiff import Denoiser, Objective
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.likelihood import (
    Sobol,
    TruncatedNormal,
    Uniform,
    VarianceReduction,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    ode_likelihood,
    path_importance,
    verify_estimators,
)
from vdiff.likelihood.importance import chain_log_prob
from vdiff.metrics import mmd
from vdiff.nn import MLP, UNet, VDMUNet
from vdiff.objective import VLB
from vdiff.oracle import Gaussian as GaussianData
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import Eps, V
from vdiff.profile import Profile
from vdiff.recipes import RECIPES
from vdiff.reverse import MonteCarlo, Raw
from vdiff.sampling import (
    STEPS,
    Guided,
    invert,
    per_sample_generators,
    sample,
    to_levels,
    to_uint8,
    trajectory,
)
from vdiff.sampling.noise import noise_like, start
from vdiff.schedule import Cosine, Linear
from vdiff.training import Config, Validation, train
from vdiff.training.batches import Batches
from vdiff.variance import LearnedRange
from vdiff.weighting import loss_factor


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


F32: dict[str, Any] = {"dtype": torch.float32}
F64: dict[str, Any] = {"dtype": torch.float64}
MODEL, OTHER = Denoiser(Net(), V()), Denoiser(Net(width=4), V())
TWICE = Denoiser(
    Net(), Eps(), variance=LearnedRange(), call=lambda net, z, t: torch.cat([net(z, t), z], 1)
)
LABELLED = Denoiser(lambda z, t, label: z * label[:, None], Eps())
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), **F32)
LEVELS = torch.randint(0, 17, (6, 2), generator=torch.Generator().manual_seed(2))
T, EPS = (
    torch.linspace(0.1, 0.95, 6, **F64),
    torch.randn(6, 2, generator=torch.Generator().manual_seed(3), **F32),
)
LAM = torch.linspace(-4.9, 4.9, 6, **F64)
CHAIN = torch.arange(1, 7, **F64) / 6
LOOKING = DiscretizedGaussian(17, uses_network=True)
FINITE = Linear(6.0, -5.0)
ENDS: dict[str, Any] = {"schedule": Linear(4.0, -6.0)}
LINE = partial(GaussianMixture, [0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise() -> Tensor:
    """As wide as encoded levels are."""
    return EPS.to(torch.promote_types(torch.get_default_dtype(), torch.float32))


def decoded(make: Callable[[], Any]) -> list[Tensor]:
    decoder = make()
    data = (
        data_of(decoder).to(torch.float32) if isinstance(decoder, Gaussian) else data_of(decoder)
    )
    x = decoder.encode(data).to(torch.float32)
    found = [
        x,
        decoder.decode(x),
        decoder.log_prob(data, x, 5.0),
        decoder.nll(data, x, 5.0, MODEL),
    ]
    if not isinstance(decoder, Gaussian):
        found += [decoder.table(5.0), decoder.log_probs(MODEL(x, LAM[:4])), decoder.level_values]
    return found if decoder.uses_network else [*found, decoder.expected_nll(data, 5.0)]


def scheduled(make: Callable[[], Any]) -> list[Tensor]:
    schedule = make()
    found = [
        schedule(T),
        schedule.rate(T),
        *schedule.at(T)[:2],
        schedule.delta(CHAIN, 6),
        *schedule.at(CHAIN, 6)[:2],
    ]
    inside = schedule(T).detach()
    found += [
        schedule.inverse(inside),
        schedule.density(inside),
        torch.tensor([schedule.logsnr_max, schedule.logsnr_min], **F64),
    ]
    loss = vdiff.weighted_elbo(MODEL, X, schedule=schedule, t=T, eps=EPS)
    schedule.update()
    return [*found, loss, schedule(T)]


def profiled() -> list[Tensor]:
    profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=4)
    profile.update(torch.linspace(-4.9, 4.9, 64, **F64), torch.linspace(1, 2, 64, **F64))
    said = vdiff.diagnosis.diagnose(profile, Cosine(5.0, -5.0))
    best = vdiff.schedule.Histogram.optimal(profile)
    return [profile.mean, profile.standard_error, profile.at(LAM), said.best, said.square, best(T)]


def resampled() -> list[Tensor]:
    sampler = vdiff.resampling.LossSecondMoment(300, memory=1)
    t = torch.arange(1, 301, **F64) / 300
    sampler.note(t, 1 + t)
    sampler.remember()
    return [sampler.history, sampler.count, *sampler.draw(8, seeded())]


def estimated(report: Any) -> list[Tensor]:
    estimates = (report.prior, report.diffusion, report.reconstruction, report.total)
    return [
        report.by_image,
        *(torch.tensor([e.value, e.monte_carlo, e.images], **F64) for e in estimates),
    ]


def evaluated(decoder: Any, data: Tensor, **options: Any) -> list[Tensor]:
    options = {"schedule": Cosine(8.0, -6.0), "decoder": decoder, "draws": 8} | options
    profile = Profile(logsnr_max=8.0, logsnr_min=-6.0, bins=4)
    return [*estimated(evaluate(MODEL, data, profile=profile, **options)), profile.sums]


def counted_progress() -> list[Tensor]:
    told: list[tuple[int, int]] = []
    data = torch.zeros(300, 1, **F64)
    path_importance(
        LINE(),
        data,
        schedule=FINITE,
        decoder=Gaussian(),
        steps=1,
        samples=1,
        batch=50,
        progress=lambda *n: told.append(n),
    )
    return [torch.tensor(told)]


def augmented() -> list[Tensor]:
    """So many images that some of their uniform numbers round to one half in half precision."""
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
    config = Config(network=network, shape=[1, 8, 8], batch=4096, augment="flip")
    batch = Batches(torch.arange(64).view(1, 1, 8, 8).expand(40, 1, 8, 8) % 17, config)(0, 0)
    return [batch.data, batch.u, batch.eps, batch.images]


def trained() -> list[Tensor]:
    config = points(steps=3)
    with default(torch.float32):
        torch.manual_seed(0)
        objective = config.objective()
    averaged = train(
        objective,
        data_of_points(config),
        config,
        quiet=True,
        validate=Validation(data_of_points(config)[:8]),
        every=1,
    )
    return [*objective.parameters(), *averaged.parameters()]


# nothing is drawn, or from a generator in a dtype of its own
GIVEN: dict[str, Callable[[], Any]] = {
    **{f"decoder {name}": partial(decoded, make) for name, make in DECODERS.items()},
    **{f"schedule {name}": partial(scheduled, make) for name, make in made_of(SCHEDULES).items()},
    **{f"weighting {name}": lambda make=make: [make()(LAM), loss_factor(make(), Linear(),
    V())(LAM)]
       for name, make in WEIGHTINGS.items() if make().steps is None},
    "stratified": lambda: [vdiff.times.stratified(8, generator=seeded()), vdiff.times.stratified(4,
    offset=0.3)],
    "elbo": lambda: [vdiff.elbo(MODEL, LEVELS, schedule=Linear(), decoder=Categorical(17), t=T,
    eps=noise()).total],
    "draws": lambda: list(vdiff.elbo(MODEL, X, schedule=Linear(), decoder=Gaussian(), draws=3,
    generator=seeded()).diffusion),
    "estimators": lambda: [
        vdiff.elbo(MODEL, X, schedule=Linear(), decoder=Gaussian(), steps=6, estimator=one(),
        generator=seeded()).total
        for one in (MonteCarlo, Raw)
    ],
    "hybrid_loss": lambda: [vdiff.hybrid_loss(TWICE, X, schedule=Linear(), steps=6, t=CHAIN,
    eps=EPS)],
    "paths": lambda: list(vdiff.chain.path_bound(MODEL, X, schedule=FINITE, decoder=Gaussian(),
    steps=4, generator=seeded())),
    "evaluate points": lambda: evaluated(Gaussian(), X),
    "evaluate with other draws": lambda: evaluated(
        Gaussian(), X, plan=VarianceReduction(times=Sobol()), steps=6
    ),
    "evaluate to a tolerance": lambda: evaluated(Gaussian(), X, tolerance=0.05, draws=None),
    "compare": lambda: [
        torch.tensor(compare(MODEL, OTHER, X, schedule=Cosine(8.0, -6.0), decoder=Gaussian(),
        draws=4).difference.value, **F64)
    ],
    "importance": lambda: [path_importance(MODEL, X, schedule=FINITE, decoder=Gaussian(), steps=3,
    samples=4).nats],
    "progress": counted_progress,
    "exact chain": lambda: [chain_log_prob(LINE(), X[:, :1].double(), schedule=FINITE, steps=4,
    decoder=Gaussian(), points=201)],
    "ode": lambda: [ode_likelihood(MODEL, X, tolerance=1e-4, **ENDS).nats],
    "immse": lambda: [immse(MODEL, X, schedule=Linear(12.0, -12.0), gaussian=GaussianData([0.0,
    0.0], [0.5, 1.0]), draws=4).nats],
    "sampling": lambda: [
        sample(MODEL, X, schedule=FINITE, steps=4, step=step, generator=seeded()) for name,
        step in STEPS.items() if name != "ode"
    ],
    "sampling by the flow": lambda: [sample(MODEL, X, schedule=FINITE, steps=3, step=STEPS["ode"]),
    invert(MODEL, X, **ENDS)],
    "sampling on levels": lambda: [
        sample(MODEL, X, levels=[-5.0, 0.3, 5.1], generator=per_sample_generators(0, range(6))),
        *(one.x for _, one in trajectory(MODEL, X, schedule=vdiff.sampling.logistic(), steps=3,
        generator=seeded())),
    ],
    "guidance": lambda: [
        Guided(LABELLED, 3.3, {"label": 0.1}, interval=(-3.1, 3.3))(
            X, LAM, label=T.float()
        ).output,
        Guided(LABELLED, 7.3, {"label": 0.1})(X, LAM, label=T.float()).output,
    ],
    "output": lambda: [to_uint8(X.clamp(-1, 1)), to_levels(Categorical(17), MODEL(X, LAM),
    draw=True, generator=seeded())],
    "noise": lambda: [noise_like(X, seeded()), start((3,), per_sample_generators(0, range(4)))],
    "oracles": lambda: [
        LINE()(X[:, :1], LAM).output, LINE().log_prob(X[:, :1]), LINE().sample(5, seeded()),
        LINE().mmse(LAM), LINE().entropy(),
        Lattice([-0.5, 0.5], [0.3, 0.7]).bound(13.3, -5.0, Categorical(2)).total,
        GaussianData.fit(X).log_prob(X),
    ],
    "metrics": lambda: [mmd(X, EPS)],
    "profile": profiled,
    "resampling": resampled,
    "recipes": lambda: [str(vdiff.describe.describe(name)) for name in RECIPES],
}  # fmt: skip

DRAWN: dict[
    str, Callable[[], Any]
] = {  # noise is drawn in the dtype of x, which is float64 where that is the default
    "elbo": lambda: [vdiff.elbo(MODEL, LEVELS, schedule=Linear(), decoder=Categorical(17)).total],
    "objective": lambda: [
        Objective(MODEL, schedule=vdiff.schedule.LearnedLinear(), loss=VLB(Categorical(17)))(
            LEVELS
        )
    ],
    "vlb": lambda: [
        vdiff.chain.vlb(MODEL, LEVELS, schedule=Linear(), steps=6, decoder=LOOKING).total
    ],
    "evaluate": lambda: evaluated(Categorical(17), LEVELS),
    "evaluate a chain": lambda: evaluated(LOOKING, LEVELS, steps=6),
    "dequantised": lambda: [
        dequantized_ode(MODEL, LEVELS, dequantization=one, tolerance=1e-3, **ENDS).nats
        for one in (Uniform(Categorical(17)), TruncatedNormal(Categorical(17), 4.0))
    ],
    "verify": lambda: [
        torch.tensor(
            [
                [row.estimate, row.standard_error]
                for row in verify_estimators(names=["lattice"], points=4).rows
            ],
            **F64,
        )
    ],
    "a batch": augmented,
    "training": trained,
}


def found(case: Callable[[], Any], dtype: torch.dtype) -> Any:
    with default(dtype):
        torch.manual_seed(0)
        return case()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*GIVEN, *(f"drawn {name}" for name in DRAWN)])
def test_half_precision_by_default_changes_nothing(name: str, dtype: torch.dtype) -> None:
    case = DRAWN[name.removeprefix("drawn ")] if name.startswith("drawn ") else GIVEN[name]
    for got, expected in zip(found(case, dtype), found(case, torch.float32), strict=True):
        assert (
            got == expected
            if isinstance(expected, str)
            else torch.equal(got, expected) and got.dtype == expected.dtype
        )


@pytest.mark.parametrize("name", GIVEN)
def test_double_precision_by_default_changes_rounding_alone(name: str) -> None:
    for got, expected in zip(
        found(GIVEN[name], torch.float64), found(GIVEN[name], torch.float32), strict=True
    ):
        if isinstance(expected, str):
            assert got == expected
        else:
            torch.testing.assert_close(got.to(expected), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", [Categorical(256), DiscretizedGaussian(256)], ids=repr)
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_levels_lie_on_their_grid_whatever_the_default(decoder: Any, dtype: torch.dtype) -> None:
    levels = torch.arange(256)[None]
    with default(dtype):
        x = decoder.encode(levels)
        assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(x[0].to(torch.float64), decoder.level_values, rtol=0, atol=2e-7)
        assert torch.equal(decoder.decode(x), levels)
        assert torch.equal(
            decoder.decode(x.to(torch.bfloat16).to(torch.float32)),
            decoder.decode(x.to(torch.bfloat16)),
        )


def test_noise_in_the_default_dtype_is_taken() -> None:
    options: dict[str, Any] = {"schedule": Linear(), "decoder": Categorical(17), "t": T}
    rounded = EPS.to(torch.bfloat16)
    expected = vdiff.elbo(MODEL, LEVELS, eps=rounded.to(torch.float32), **options).total
    with default(torch.bfloat16):
        assert torch.equal(vdiff.elbo(MODEL, LEVELS, eps=rounded, **options).total, expected)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: MLP(2), (4, 2)),
    "UNet": (lambda: UNet(channels=1, width=8), (2, 1, 8, 8)),
    "VDMUNet": (lambda: VDMUNet(width=32, depth=1), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_built_in_the_default_and_work_there(name: str, dtype: torch.dtype) -> None:
    if name == "VDMUNet" and dtype == torch.bfloat16:
        pytest.skip("it refuses half precision, by name")
    make, shape = NETWORKS[name]
    with default(dtype):
        network = make()
        assert {p.dtype for p in network.parameters()} == {dtype}
        loss = vdiff.weighted_elbo(
            Denoiser(network, V()), torch.zeros(shape, **F32), schedule=Linear()
        )
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()

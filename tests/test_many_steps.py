"""A chain of very many steps: its bound is that of continuous time, or its number of steps is
refused."""

from collections.abc import Callable

import pytest
import torch

from vdiff import Denoiser
from vdiff.chain import first_variance, hybrid_loss, path_bound, vlb
from vdiff.cli import main
from vdiff.decoder import Categorical, Gaussian
from vdiff.errors import MOST_STEPS
from vdiff.likelihood import compare, evaluate, path_importance
from vdiff.likelihood.importance import chain_log_prob
from vdiff.loss import elbo, weighted_elbo
from vdiff.objective import Objective, Weighted
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, PosteriorMean
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Cosine, LearnedLinear, Linear
from vdiff.times import on_chain
from vdiff.training import Config, Run
from vdiff.weighting import ELBO, MSE, loss_factor

MODEL = GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 1.0]])
OTHER = GaussianMixture([1.0], [[0.1, 0.0]], [[1.0, 1.0]])
DENOISER = Denoiser(lambda z, logsnr: z, Eps())
X, LEVELS, DECODER = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.long), Categorical(4)
SCHEDULE, T = Linear(7.0, -6.0), torch.tensor([0.5, 1.0])
SETTING = {"schedule": SCHEDULE, "decoder": Gaussian()}
TAKES_STEPS: dict[str, Callable[[int], object]] = {
    "weighted_elbo": lambda n: weighted_elbo(MODEL, X, schedule=SCHEDULE, steps=n),
    "elbo": lambda n: elbo(MODEL, X, steps=n, **SETTING),
    "hybrid_loss": lambda n: hybrid_loss(DENOISER, X, schedule=SCHEDULE, steps=n),
    "vlb": lambda n: vlb(MODEL, LEVELS, schedule=SCHEDULE, decoder=DECODER, steps=n),
    "path_bound": lambda n: path_bound(MODEL, X, steps=n, **SETTING),
    "path_importance": lambda n: path_importance(MODEL, X, steps=n, samples=2, **SETTING),
    "chain_log_prob": lambda n: chain_log_prob(MODEL, X[:, :1], steps=n, points=101, **SETTING),
    "first_variance": lambda n: first_variance(SCHEDULE, n),
    "evaluate": lambda n: evaluate(MODEL, X, steps=n, **SETTING),
    "compare": lambda n: compare(MODEL, OTHER, X, steps=n, **SETTING),
    "compare, one of two": lambda n: compare(MODEL, OTHER, X, steps=(None, n), **SETTING),
    "Objective": lambda n: Objective(DENOISER, schedule=SCHEDULE, loss=Weighted(steps=n)),
    "MSE": lambda n: MSE(SCHEDULE, Eps(), steps=n),
    "loss_factor": lambda n: loss_factor(ELBO(), SCHEDULE, Eps(), steps=n),
    "PosteriorMean": lambda n: PosteriorMean(SCHEDULE, n),
    "LossSecondMoment": lambda n: LossSecondMoment(n),
    "delta": lambda n: SCHEDULE.delta(T, n),
    "levels": lambda n: SCHEDULE.at(T, n)[:2],
    "at": lambda n: SCHEDULE.at(T, n),
    "levels of a learned one": lambda n: LearnedLinear().at(T, n)[:2],
    "at of a learned one": lambda n: LearnedLinear().at(T, n),
}


@pytest.mark.parametrize("steps", [MOST_STEPS + 1, 10**12, 10**17, 2**70])
@pytest.mark.parametrize("name", TAKES_STEPS)
def test_more_steps_than_rounding_tells_apart_are_refused(name, steps):
    text = rf"'steps' must be at most 1,000,000,000; got {steps:,} \(beyond that rounding loses"
    with pytest.raises(ValueError, match=text):
        TAKES_STEPS[name](steps)


def test_a_config_and_the_command_line_refuse_them_too(tmp_path, capsys):
    config = {"network": {"name": "MLP", "dims": 2}, "shape": [2], "level_head": False}
    assert Config(**config, chain=10**6).chain == 10**6
    with pytest.raises(ValueError, match="'chain' must be a whole number from 1 to 1,000,000,000"):
        Config(**config, chain=10**17)
    run = tmp_path / "run"
    small = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    Run.create(run, small).save(small.objective())
    why = {
        "evaluate": "evaluate: argument 'steps' must be at most",
        "sample": "uniform: argument 'steps' must be at most",
    }
    for command in why:
        assert main([command, str(run), "--steps", "100000000000000000", "--quiet"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vdiff {command}: {why[command]}")
        assert said.count("\n") == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("schedule", [Linear(13.3, -5.0), Cosine(), LearnedLinear(13.3, -5.0)])
@pytest.mark.parametrize("steps", [10**6, MOST_STEPS])
def test_the_bound_of_a_chain_of_many_steps_is_that_of_continuous_time(steps, schedule, dtype):
    """To first order in 1/T; what rounding adds is less than 1e-7."""
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(20_000, 2, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    u = torch.rand(len(x), generator=generator, dtype=torch.float64).to(dtype)
    given = {"schedule": schedule, "eps": eps, "t": on_chain(u, steps)}
    with torch.no_grad():
        chain = weighted_elbo(MODEL, x, steps=steps, **given)
        whole = weighted_elbo(MODEL, x, **given)
    assert (chain.mean() / whole.mean() - 1).abs() < 1e-7 + 1e3 / steps


@pytest.mark.parametrize("name", ["evaluate", "weighted_elbo", "MSE", "delta", "at"])
def test_a_million_steps_are_taken(name):
    for steps in (10**6, MOST_STEPS):
        assert TAKES_STEPS[name](steps) is not None

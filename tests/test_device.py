"""Every part of the library on a device gives what it gives on the CPU: from the same times and
noise, the same losses, gradients, samples and likelihoods. With a GPU:
`pytest tests/test_device.py -k cuda`, as `make gpu` does."""

import contextlib
import copy
import math

import pytest
import torch
from points import data_of, points
from registry import (
    DECODERS,
    ORACLES,
    SCHEDULES,
    STEPS,
    TARGETS,
    WEIGHTINGS,
    made_of,
    moved,
    objective_of,
)

from vdiff import Denoiser, elbo, sample
from vdiff.decoder import Gaussian
from vdiff.likelihood import evaluate, log_prob
from vdiff.nn import MLP
from vdiff.parameterization import V
from vdiff.sampling import per_sample_generators
from vdiff.schedule import Linear, Tabulated
from vdiff.times import stratified
from vdiff.training import Run, train

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["cpu", "meta", pytest.param("cuda", marks=GPU)])
def device(request):
    """The meta device has no values, but an operation that mixes devices raises there too."""
    return torch.device(request.param)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device_with_values(request):
    return torch.device(request.param)


def same(found, known, rtol=1e-6, atol=1e-7):
    """On the device it was made on, and equal to that of the CPU."""
    if found.is_meta:
        assert (found.shape, found.dtype) == (known.shape, known.dtype)
    else:
        torch.testing.assert_close(found.detach().cpu(), known.detach(), rtol=rtol, atol=atol)


def learns_alike(device, target=None, schedule=None, data=None, **parts):
    """The loss of given times and noise, its gradients, and what is learned by `update`, in
    float64."""
    torch.manual_seed(0)
    x = torch.randn(16, 2, dtype=torch.float64) if data is None else data
    t, eps = stratified(16, offset=0.3), torch.randn(16, 2, dtype=torch.float64)
    network = MLP(2, width=16, depth=1).double()
    schedule = schedule or Linear(9.0, -9.0)
    here = objective_of(Denoiser(network, target or V()), schedule=schedule, **parts)
    if here.steps is not None:
        t = (t * here.steps).ceil().clamp(min=1) / here.steps
    there = copy.deepcopy(here).to(device)
    losses = [
        objective(x.to(place), t=t.to(place), eps=eps.to(place))
        for objective, place in ((here, "cpu"), (there, device))
    ]
    assert losses[1].device.type == device.type
    same(losses[1], losses[0])
    for objective, loss in zip((here, there), losses, strict=True):
        loss.mean().backward()
        objective.update()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert q.grad.device.type == device.type
            same(q.grad, p.grad)
    state = there.state_dict()
    for name, value in here.state_dict().items():
        same(state[name], value)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule(name, device):
    schedule = moved(made_of(SCHEDULES)[name]())
    there = copy.deepcopy(schedule).to(device)
    steps = 30 if name == "table" else None
    t = torch.linspace(0, 1, 31, dtype=torch.float64)[1:-1]
    logsnr = schedule(t)
    same(there(t.to(device)), logsnr)
    same(there.density(logsnr.to(device)), schedule.density(logsnr))
    same(there.at(t.to(device), steps).rate, schedule.at(t, steps).rate)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "table"])
def test_a_loss_under_a_schedule_and_what_the_schedule_learns(name, device):
    learns_alike(device, schedule=made_of(SCHEDULES)[name]())


@pytest.mark.parametrize("name", TARGETS)
def test_a_loss_of_a_target(name, device):
    learns_alike(device, target=copy.deepcopy(TARGETS[name]))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_loss_with_a_weighting(name, device):
    chain = {"schedule": Tabulated.linear_betas(), "steps": 999} if "chain" in name else {}
    learns_alike(device, weighting=WEIGHTINGS[name](), **chain)


@pytest.mark.parametrize("name", DECODERS)
def test_a_bound_with_a_decoder(name, device):
    levels = torch.randint(0, 17, (16, 2), generator=torch.Generator().manual_seed(0))
    data = levels.double() / 8 - 1 if name.startswith("gaussian") else levels
    learns_alike(device, decoder=DECODERS[name](), data=data)


@pytest.mark.parametrize("name", STEPS)
def test_a_sampler(name, device_with_values):
    """From the same noise, with a generator for each sample."""
    oracle, device = ORACLES["plane"](), device_with_values
    noise = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = []
    for place in ("cpu", device):
        options = {"generator": per_sample_generators(0, range(8)), "step": STEPS[name]}
        there = copy.deepcopy(oracle).to(place)
        schedule = Linear(9.0, -9.0).to(place)
        samples.append(sample(there, noise.to(place), schedule=schedule, steps=9, **options))
    assert samples[1].device.type == device.type
    same(samples[1], samples[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle(name, device):
    oracle = ORACLES[name]()
    x = oracle.sample(8, torch.Generator().manual_seed(0))
    t, eps = stratified(8, offset=0.3), torch.ones_like(x)
    bounds = []
    for place in ("cpu", device):
        there, schedule = copy.deepcopy(oracle).to(place), Linear(9.0, -9.0).to(place)
        draws = {"t": t.to(place), "eps": eps.to(place)}
        decoder = Gaussian().to(place)
        bounds.append(elbo(there, x.to(place), schedule=schedule, decoder=decoder, **draws).total)
    same(bounds[1], bounds[0])


def test_likelihoods(device_with_values):
    """The ODE's to its tolerance; the bound's within its error, for a device has draws of its
    own."""
    oracle, schedule, device = ORACLES["plane"](), Linear(9.0, -9.0), device_with_values
    x = oracle.sample(16, torch.Generator().manual_seed(0))
    there, levels, at = copy.deepcopy(oracle).to(device), schedule.to(device), x.to(device)
    same(log_prob(there, at, schedule=levels), oracle.log_prob(x), rtol=0, atol=0.05)
    effort = {"draws": 16, "replicates": 8}
    known = evaluate(oracle, x, schedule=schedule, decoder=Gaussian(), **effort).total
    found = evaluate(there, at, schedule=levels, decoder=Gaussian().to(device), **effort).total
    error = math.hypot(known.monte_carlo, found.monte_carlo)
    assert abs(found.value - known.value) < 6 * error + 1e-9


class Stop(Exception):
    pass


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_a_run_that_is_resumed_is_the_same_run(autocast, device_with_values, tmp_path):
    config, device, found = points(autocast=autocast), device_with_values, []

    def stop(averaged):
        raise Stop

    for name, validations in (("whole", [None]), ("resumed", [stop, None])):
        for validate in validations:  # the first ends at step 8, the second goes on from there
            torch.manual_seed(0)
            objective, expected = config.objective().to(device), Stop if validate else ()
            with Run.open(tmp_path / name, config) as run, contextlib.suppress(expected):
                options = {"run": run, "validate": validate, "every": 8, "quiet": True}
                averaged = train(objective, data_of(config), config, **options)
        assert next(averaged.parameters()).device.type == device.type
        found.append(averaged.state_dict())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key
    loaded = Run(tmp_path / "whole").load().state_dict()  # on the CPU
    for key, value in found[0].items():
        assert torch.equal(value.cpu(), loaded[key]), key

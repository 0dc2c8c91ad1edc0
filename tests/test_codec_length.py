"""The codec: a file is as long as the bound of its chain."""

import math

import numpy as np
import pytest
import torch
from coded import LINEAR, Net, latents_of, objective, of_digits, push, round_trip

from vdiff import Denoiser, elbo
from vdiff.codec import batches, compress
from vdiff.codec.baselines import baselines
from vdiff.codec.code import Rows
from vdiff.codec.latents import TOLERANCE, cost, excess, spacing_for
from vdiff.codec.stack import Stack
from vdiff.data.digits import digits
from vdiff.decoder import Categorical
from vdiff.likelihood._models import evaluating
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import Eps
from vdiff.reverse import reverse_mean
from vdiff.variance import LearnedRange

pytest.importorskip("constriction")


def test_the_latents_have_the_chain_s_distributions():
    """Against the noise of the chain itself, by the moments of many draws."""
    oracle, decoder, steps = GaussianMixture([1.0], [[0.0]], [[0.2]]), Categorical(4), 12
    latents, count = latents_of(oracle, LINEAR, decoder, steps, spacing=2.0**-10), 40_000
    data = torch.ones(count, 1, dtype=torch.long)
    q = latents.of_data(data)
    index = np.rint(q.mean + q.std * np.random.default_rng(0).normal(size=count)).astype(int)
    for i in range(1, steps + 1):
        q = latents.forward(i, index)
        noise = np.random.default_rng(i).normal(size=count)
        index = np.rint(q.mean + q.std * noise).astype(int)
        z, level = latents.grid[i] * index, LINEAR(torch.tensor([i / steps]).double())
        alpha, sigma = level.sigmoid().sqrt().item(), (-level).sigmoid().sqrt().item()
        x = decoder.encode(data[:1]).item()
        assert z.mean() == pytest.approx(alpha * x, abs=5 * sigma / math.sqrt(count))
        assert z.std() == pytest.approx(sigma, rel=5 / math.sqrt(2 * count))
        p = latents.reverse(i, index, Rows((count, 1), {}))
        at = LINEAR.at(torch.full((count,), i / steps), steps)
        prediction = oracle(torch.from_numpy(z)[:, None], at.logsnr)
        mean = reverse_mean(prediction, at.step)[:, 0].numpy()
        assert np.allclose(p.mean * latents.grid[i - 1], mean, rtol=1e-5, atol=1e-6)
        assert np.allclose(p.std * latents.grid[i - 1], at.step.variance.sqrt().numpy())
        assert min(p.std.min(), q.std.min()) > 0.99 * 2**10


@torch.no_grad()
def test_a_learned_variance_is_the_models_own():
    model = Denoiser(Net(4, 2), Eps(), variance=LearnedRange())
    latents = latents_of(model, LINEAR, Categorical(4), 5)
    p = latents.reverse(3, np.arange(12), Rows((3, 1, 2, 2), {}))
    at = LINEAR.at(torch.full((3,), 3 / 5), 5)
    z = torch.from_numpy(latents.grid[3] * np.arange(12)).view(3, 1, 2, 2)
    prediction = model(z.float(), at.logsnr)
    v = 0.5 * (prediction.variance_output + 1)
    u = v * at.step.log_variance_ratio.view(-1, 1, 1, 1)
    std = (at.step.variance.sqrt().view(-1, 1, 1, 1) * torch.exp(0.5 * u)).flatten()
    assert np.allclose(p.std * latents.grid[2], std.numpy(), rtol=1e-6)


def test_finer_grids_for_less_cost():
    assert spacing_for(1000, 20.0, 0.002) < spacing_for(1000, 20.0, 0.02)
    for tolerance in (0.001, 0.002, 0.01):
        spent = cost(spacing_for(1000, 16.0, tolerance), 1000, 16.0) / math.log(2)
        assert spent < tolerance


PMF = [0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.04, 0.01]


def test_files_are_as_long_as_the_entropy():
    """Data of known entropy under its exact denoiser, in many files: no shorter on average, and
    longer by less than a hundredth and what a chain of so few steps adds to the bound."""
    decoder = Categorical(8)
    oracle, files, images = Lattice(decoder.level_values, PMF), 10, 250
    latents, drawn = latents_of(oracle, LINEAR, decoder, 100), []
    for file in range(files):
        chosen = np.random.default_rng(file).choice(8, size=(images, 1), p=PMF)
        drawn.append(push(latents, torch.from_numpy(chosen), seed=file)[0] / images)
    mean, error = np.mean(drawn), np.std(drawn) / math.sqrt(files - 1)
    entropy = oracle.entropy().item() / math.log(2)
    chosen = torch.from_numpy(np.random.default_rng(99).choice(8, size=(20_000, 1), p=PMF))
    given = {"schedule": LINEAR, "decoder": decoder, "steps": 100, "draws": 100}
    generator = torch.Generator().manual_seed(0)
    bound = elbo(oracle, chosen, generator=generator, **given).total.mean().item() / math.log(2)
    assert entropy < bound < 1.1 * entropy
    assert entropy - 3 * error < mean < 1.01 * bound + 3 * error


@pytest.mark.parametrize("steps", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_file_is_as_long_as_the_path_it_took(steps):
    """Coded bits against the log-ratio of the same latents as densities."""
    decoder = Categorical(8)
    oracle = Lattice(decoder.level_values, PMF)
    data = torch.from_numpy(np.random.default_rng(0).choice(8, size=(2000, 1), p=PMF))
    bits, path = push(latents_of(oracle, LINEAR, decoder, steps), data)
    assert abs(bits - path.sum()) / 2000 < 0.002 + 0.004 * math.sqrt(steps / 1000)


def test_the_code_of_digits_is_as_long_as_their_bound():
    data, steps = digits().test[:64], 40
    model, generator = objective().model, torch.Generator().manual_seed(0)
    bits, path = push(latents_of(model, steps=steps, **of_digits()), data)
    with evaluating(model):
        given = of_digits() | {"steps": steps, "draws": steps, "generator": generator}
        bound = elbo(model, data, **given).bits_per_dim.double()
    off = torch.from_numpy(path / 64) - bound
    error = off.std().item() / 8
    assert abs(bits / data.numel() - bound.mean().item()) < 0.002 + 3 * error
    assert error < 0.08


class Replay(Stack):
    """A stack without bits: the same noise again, without what grids and coder add to it."""

    def __init__(self, noise, excess):
        self.noise, self.scale = iter(noise), 1 / math.sqrt(1 + excess)

    def pop_normal(self, mean, std):
        return np.rint(mean + std * self.scale * next(self.noise)).astype(np.int64)

    def whiten(self, *_):
        pass

    push_normal = push_levels = whiten


@pytest.mark.parametrize(
    ("steps", "images"), [(60, 16), pytest.param(1000, 32, marks=pytest.mark.soak)]
)
def test_grids_cost_less_than_the_tolerance(steps, images, monkeypatch):
    """The log-ratio of a path on the grids against that of the same path on grids without width:
    they share their noise, so that the difference has little variance."""
    noise, pop, data = [], batches._pop, digits().test[:images]

    def noting(stack, normal):
        index = pop(stack, normal)
        noise.append((index - normal.mean) / normal.std)
        return index

    latents = latents_of(objective().model, steps=steps, **of_digits())
    monkeypatch.setattr(batches, "_pop", noting)
    _, path = push(latents, data)
    monkeypatch.undo()
    fine = latents_of(objective().model, steps=steps, spacing=2.0**-24, **of_digits())
    replay = Replay(noise, excess(latents.spacing))
    with evaluating(objective().model):
        exact = batches.push(replay, fine, data, Rows(tuple(data.shape), {}), lambda: None)
    off = (path - exact / math.log(2)) / 64
    assert off.std() / math.sqrt(images) < 2e-4
    assert abs(off.mean()) < 0.0015 < TOLERANCE


def test_the_parts_of_a_file_add_up(tmp_path):
    data = digits().test[:20]
    written = compress(objective().model, data, tmp_path / "f", steps=10, **of_digits())
    total = written.bits + written.start + 8 * written.container
    assert 0 <= 8 * written.bytes - total < 8
    assert written.log_ratio.shape == (20,)
    assert written.bits_per_dim == pytest.approx(written.path_bits_per_dim, abs=2)
    lines = str(written).split("\n")
    assert lines[1].startswith("images")
    assert lines[-1].split()[1] == f"{written.bytes:,}"


def test_other_compressors_get_the_same_images():
    data = digits().test
    sizes = baselines(data, 17)
    assert sizes == baselines(data.to(torch.uint8).numpy(), 17)
    assert {"PNG", "gzip", "xz"} <= sizes.keys()
    assert 6000 < min(sizes.values()) <= max(sizes.values()) < 10_000
    assert "PNG" not in baselines(data, 300)
    wide = baselines(torch.randint(0, 60_000, (40, 1, 8, 8)), 60_000)
    assert wide["gzip"] > 2 * 40 * 64 * 0.9


@pytest.mark.soak
def test_all_digits_in_fewer_bytes_than_any_other(tmp_path):
    data, model = digits().test, objective().model
    written, back = round_trip(tmp_path, model, data, steps=250, **of_digits())
    assert torch.equal(back, data)
    assert all(written.bytes < size for size in baselines(data, 17).values())
    assert abs(written.bits_per_dim - written.path_bits_per_dim) < 0.002


@pytest.mark.soak
def test_a_hundred_files_are_as_long_as_the_entropy():
    decoder = Categorical(8)
    oracle, files, images = Lattice(decoder.level_values, PMF), 100, 200
    latents, drawn = latents_of(oracle, LINEAR, decoder, 1000), []
    for file in range(files):
        chosen = np.random.default_rng(file).choice(8, size=(images, 1), p=PMF)
        drawn.append(push(latents, torch.from_numpy(chosen), seed=file)[0] / images)
    mean, error = np.mean(drawn), np.std(drawn) / math.sqrt(files - 1)
    entropy = oracle.entropy().item() / math.log(2)
    slack = 0.03  # of a chain of 1,000 steps: 0.22 bits at 100
    assert entropy - 3 * error < mean < 1.01 * entropy + slack + 3 * error

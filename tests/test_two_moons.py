"""The two moons' example: its measurements against exact values and slow ways, and a quick run to
the end and again."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vdiff import Denoiser, Prediction, elbo
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step
from vdiff.nn import MLP
from vdiff.oracle import Gaussian as GaussianData
from vdiff.parameterization import Eps
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw
from vdiff.schedule import Linear
from vdiff.times import generator_of

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import two_moons
from two_moons_findings import verdict
from two_moons_variances import along_path, at_step, spread

SCHEDULE = Linear(13.3, -5.0)
# exact: the bound of N(0, 1/4) at x = 1/2 under its best denoiser, from one path, a linear
# schedule of log-SNR from 13.3 to −5
EXACT = {
    10: (10.497350852808673, 73.11786038459424, 99.35970226768129),
    100: (1.2554767546775454, 1.187691670580383, 12.466055215222118),
}


@pytest.mark.parametrize("chain", EXACT)
def test_the_path_has_its_exact_mean_and_variances(chain):
    oracle = GaussianData(
        torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.25, dtype=torch.float64)
    )
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    found = [
        along_path(oracle, x, chain, SCHEDULE, generator_of(0, i), repeats=1000) for i in range(12)
    ]
    mean, of_ratios, of_kls = EXACT[chain]
    for key, exact in (
        ("mean of log-ratios", mean),
        ("path, MC", of_ratios),
        ("path, RB", of_kls),
    ):
        draws = torch.tensor([one[key] for one in found])
        assert abs(draws.mean() - exact) < 4 * draws.std() / len(draws) ** 0.5, key


def test_gradients_and_values_are_those_of_the_bound_example_by_example():
    torch.manual_seed(0)
    model, x, chain, i = Denoiser(MLP(2, width=8), Eps()), torch.randn(6, 2), 10, 3
    found = at_step(model.network, x, i, chain, SCHEDULE, generator_of(0, 0), repeats=4, fewer=1)
    x = x.repeat_interleave(4, 0)
    eps, t = torch.randn(x.shape, generator=generator_of(0, 0)), torch.full((1,), i / chain)
    values, gradients = [], []
    for one, noise in zip(x, eps, strict=True):
        value = elbo(
            model,
            one[None],
            schedule=SCHEDULE,
            decoder=Gaussian(),
            steps=chain,
            t=t,
            eps=noise[None],
        ).diffusion.sum()
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(value, [*model.parameters()])])
        )
        values.append(value.detach()[None])
    for quantity, slow in (("value", torch.stack(values)), ("gradient", torch.stack(gradients))):
        assert found[f"{quantity} RB"] == pytest.approx(slow.var(0).sum().item(), rel=1e-4)
        fixed = torch.stack([group.var(0).sum() for group in slow.split(4)]).mean()
        assert found[f"{quantity} RB, x fixed"] == pytest.approx(fixed.item(), rel=1e-4)


@pytest.mark.parametrize("quantity", ["value", "gradient"])
def test_what_monte_carlo_adds_is_what_the_theory_says(quantity):
    torch.manual_seed(0)
    network, x = MLP(2, width=8), torch.randn(64, 2)
    found = [
        at_step(network, x, 7, 10, SCHEDULE, generator_of(1, i), repeats=16, fewer=2)
        for i in range(40)
    ]
    excess = torch.tensor([one[f"{quantity} MC"] - one[f"{quantity} MC, theory"] for one in found])
    assert abs(excess.mean()) < 4 * excess.std() / len(excess) ** 0.5
    added = torch.tensor([one[f"{quantity} MC"] - one[f"{quantity} RB"] for one in found])
    assert (
        excess.std() / len(excess) ** 0.5 < 0.05 * added.mean()
    )  # precise enough to see a factor


def test_the_raw_term_has_the_gradient_of_monte_carlo():
    step, x, eps = (
        Step(torch.zeros(4), torch.full((4,), 0.1)),
        torch.randn(4, 2),
        torch.randn(4, 2),
    )
    out = torch.randn(4, 2, requires_grad=True)
    prediction = Prediction(torch.randn(4, 2), step.logsnr_t, out, Eps())
    of_raw, of_mc, of_rb = (
        torch.autograd.grad(estimator(prediction, x, eps, step, generator_of(0, 0)).sum(), out)[0]
        for estimator in (Raw(), MonteCarlo(), RaoBlackwell())
    )
    assert torch.equal(of_raw, of_mc)
    assert not torch.equal(of_mc, of_rb)


def test_the_spread_is_the_trace_of_the_covariance():
    draws = torch.randn(3, 50, 4, dtype=torch.float64)
    torch.testing.assert_close(
        spread(draws), torch.stack([torch.cov(one.T).trace() for one in draws])
    )


def quick_run(out, monkeypatch, *more):
    monkeypatch.setattr(sys, "argv", ["two_moons.py", "--quick", "--out", str(out), *more])
    two_moons.main()


def test_a_quick_run_ends_and_a_second_draws_again_without_training(tmp_path, monkeypatch, capsys):
    quick_run(tmp_path, monkeypatch)
    said = capsys.readouterr().out
    names = {
        "samples.png",
        "samples.gif",
        "training.png",
        "variances.png",
        "variances.gif",
        "findings.json",
        "findings.txt",
    }
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    assert (tmp_path / "findings.txt").read_text().strip() in said
    found = json.loads((tmp_path / "findings.json").read_text())["mean, standard error"]
    kept = tmp_path / two_moons.QUICK.digest
    spreads = [load_file(kept / f"seed{seed}_variances.safetensors") for seed in range(2)]
    ratios = torch.stack(
        [one["value MC"][-1].sum() / one["value RB"][-1].sum() for one in spreads]
    )
    assert found["value ratio, summed over t"] == pytest.approx(
        [ratios.mean().item(), (ratios.std() / 2**0.5).item()]
    )

    for name in names:
        (tmp_path / name).unlink()
    monkeypatch.setattr(two_moons, "train", lambda *_: pytest.fail("trained again"))
    quick_run(tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    assert json.loads((tmp_path / "findings.json").read_text())["mean, standard error"] == found


def test_nothing_but_the_estimator_sets_the_trainings_apart(monkeypatch):
    """With one estimator under both names they are equal to the bit: weights, rows, t and ε are
    the same."""
    quick = two_moons.Settings(**{**two_moons.asdict(two_moons.QUICK), "steps": 2, "snapshots": 3})
    by_rb, by_mc = (two_moons.train(quick, 0, name) for name in ("RB", "MC"))
    assert torch.equal(by_rb["weights"][0], by_mc["weights"][0])
    assert torch.equal(by_rb["samples"][0], by_mc["samples"][0])
    assert by_rb["losses"][0] != by_mc["losses"][0]
    monkeypatch.setitem(two_moons.ESTIMATORS, "MC", RaoBlackwell())
    again = two_moons.train(quick, 0, "MC")
    assert all(torch.equal(again[key], by_rb[key]) for key in by_rb)


def test_results_are_kept_in_a_folder_of_any_name(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))  # Latin-1, not UTF-8
    for made in (torch.ones(2), torch.zeros(2)):  # the second is not made
        kept = two_moons.kept(folder, "seed0", lambda made=made: {"a": made})
        assert torch.equal(kept["a"], torch.ones(2))


def test_other_settings_have_another_folder():
    settings = two_moons.Settings()
    assert (
        settings.digest
        == two_moons.Settings().digest
        != two_moons.Settings(steps=settings.steps + 1).digest
    )


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.1, "are not told apart"),
        (0.3, "differ: Rao-Blackwell is better"),
        (-0.3, "differ: Monte Carlo is better"),
        (0.0, "are not told apart"),
    ],
)
def test_a_difference_is_claimed_beyond_two_standard_errors(difference, words):
    assert words in verdict((difference, 0.1), " nats")

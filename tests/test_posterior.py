"""The example of a posterior density: the exact one against its simulator, C2ST, a quick run."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import posterior


def grid(low, high, spacing=0.0025):
    """Midpoints of cells, (n, 2), and the area of a cell."""
    axes = [torch.arange(a, b, spacing) + spacing / 2 for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes), spacing**2


@pytest.mark.parametrize("x", posterior.OBSERVED.split(1))
def test_the_exact_posterior_is_normalised_and_is_that_of_its_samples(x):
    """On the whole prior: so both crescents of the example's observations lie in its square."""
    torch.manual_seed(0)
    theta, area = grid((-1, -1), (1, 1))
    log_p = posterior.exact_log_prob(theta, x)
    assert (log_p.exp().sum() * area).item() == pytest.approx(1, abs=0.01)
    drawn = posterior.exact_sample(x, 20_000)
    for of in (posterior.exact_log_prob, radius):
        mean = (log_p.exp() * of(theta, x).clamp(min=-100)).sum() / log_p.exp().sum()
        found = of(drawn, x)
        assert abs(found.mean() - mean) < 4 * found.std() / len(found) ** 0.5


def radius(theta, x):
    """r of the simulator: without 1/r the density would have another mean of it, by 14 errors."""
    turned = posterior.turn(theta)
    along, across = x[0, 0] + turned[:, 0].abs() - posterior.OFFSET, x[0, 1] - turned[:, 1]
    return torch.hypot(along, across)


def test_the_simulator_has_the_likelihood_of_the_exact_posterior():
    """p(x | θ) = p(θ | x) p(x)/p(θ), with p(x) = ½ and p(θ) = ¼."""
    torch.manual_seed(0)
    theta = torch.tensor([[0.3, 0.2]])
    drawn = posterior.simulate(theta.expand(20_000, 2))
    x, area = grid(drawn.amin(0) - 0.03, drawn.amax(0) + 0.03, 0.001)

    def log_likelihood(x):
        return posterior.exact_log_prob(theta.expand_as(x), x) + math.log(2)

    density = log_likelihood(x).exp()
    assert (density.sum() * area).item() == pytest.approx(1, abs=0.01)
    mean = (density * log_likelihood(x).clamp(min=-100)).sum() * area
    found = log_likelihood(drawn)
    assert abs(found.mean() - mean) < 4 * found.std() / len(found) ** 0.5


def test_c2st_tells_apart_what_differs():
    torch.manual_seed(0)
    x = posterior.OBSERVED[:1]
    one, other = posterior.exact_sample(x, 500), posterior.exact_sample(x, 500)
    assert abs(posterior.c2st(one, other) - 0.5) < 0.08
    assert posterior.c2st(one, other + 0.1) > 0.8


def test_a_quick_run_learns_something(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["posterior.py", "--quick"])
    posterior.main()
    said = capsys.readouterr().out
    distances = [float(n) for n in re.findall(r"KL\(exact ‖ model\) (\S+) ±", said)]
    assert len(distances) == len(posterior.OBSERVED) == said.count("C2ST")
    prior = [
        posterior.exact_log_prob(posterior.exact_sample(x, 1000), x).mean().item() + math.log(4)
        for x in posterior.OBSERVED.split(1)
    ]  # KL of the prior
    assert all(of_model < of_prior for of_model, of_prior in zip(distances, prior, strict=True))

"""The example of a time series: its exact density, the bound of the perfect denoiser, a quick
run."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from vdiff import bits_per_dim

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import series


def test_the_density_of_a_window_is_that_of_the_recursion():
    """log p(x) = log p(x₁, x₂) + Σ log N(x_t; φ₁ x_{t−1} + φ₂ x_{t−2}, s²)."""
    x = series.process(20).sample(8, torch.Generator().manual_seed(0))
    covariance = series.autocovariance(2)[torch.tensor([[0, 1], [1, 0]])]
    first = MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
    variance = 2 ** (2 * series.entropy_rate()) / (2 * math.pi * math.e)
    mean = series.PHI[0] * x[:, 1:-1] + series.PHI[1] * x[:, :-2]
    rest = Normal(mean, variance**0.5).log_prob(x[:, 2:]).sum(1)
    assert torch.allclose(series.process(20).log_prob(x), first.log_prob(x[:, :2]) + rest)


def test_one_more_number_costs_the_entropy_rate():
    longer, shorter = (series.process(n).entropy().item() for n in (31, 30))
    assert (longer - shorter) / math.log(2) == pytest.approx(series.entropy_rate())


def test_the_perfect_denoiser_reaches_the_entropy():
    data = series.process(series.LENGTH)
    ends = series.SCHEDULE.logsnr_max, series.SCHEDULE.logsnr_min
    exact = (data.bound(*ends).total.item() - data.entropy().item()) / data.dims / math.log(2)
    assert 0 < exact < 0.005
    x = data.sample(64, torch.Generator().manual_seed(0))
    found = series.bits(data, x, 0.01)
    above = found.value + bits_per_dim(data.log_prob(x), data.dims).mean().item()
    assert abs(above - exact) < 4 * found.monte_carlo


def test_a_quick_run_lies_above_the_entropy(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["series.py", "--quick"])
    series.main()
    above = [float(n) for n in re.findall(r", (\S+) ± \S+ above", capsys.readouterr().out)]
    assert len(above) == 2
    assert abs(above[0]) < 0.05 < above[1] < 1

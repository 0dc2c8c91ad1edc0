"""Exponential averages of any module, as the formula says, and their state."""

import copy

import pytest
import torch
from torch import nn

from vdiff.training import EMA


def moved(module: nn.Module, steps: int, *averages: EMA, first: int = 0) -> list[torch.Tensor]:
    """Weights of a random walk, and averages that see each of them."""
    generator = torch.Generator().manual_seed(first)
    seen = []
    for n in range(first, first + steps):
        with torch.no_grad():
            for p in module.parameters():
                p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for ema in averages:
            ema.update(n)
        seen.append(next(module.parameters()).detach().clone())
    return seen


def test_the_averages_are_the_formula():
    module = nn.Linear(3, 2).double()
    start = module.weight.detach().clone()
    ema = EMA(module, [0.9, 0.2])
    seen = moved(module, 30, ema)
    for decay, averaged in ema.copies.items():
        expected = start
        for n, weight in enumerate(seen):
            d = min(decay, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * weight
        torch.testing.assert_close(averaged.weight.detach(), expected, rtol=1e-13, atol=1e-13)
    assert ema.averaged is ema.copies[0.9]
    assert not ema.averaged.training
    assert not ema.averaged.weight.requires_grad


def test_a_state_resumes_to_the_bit(tmp_path):
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = EMA(module, 0.9)
    moved(module, 5, ema)
    torch.save({"module": module.state_dict(), "ema": ema.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state")  # plain data and tensors alone
    moved(module, 5, ema, first=5)
    again = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    resumed = EMA(again, 0.9)
    again.load_state_dict(state["module"])
    resumed.load_state_dict(state["ema"])
    moved(again, 5, resumed, first=5)
    for name, value in ema.averaged.state_dict().items():
        assert torch.equal(resumed.averaged.state_dict()[name], value), name


def test_buffers_and_integers_are_copied_and_halves_averaged_in_float32():
    module = nn.BatchNorm1d(2).bfloat16()
    module.register_parameter("level", nn.Parameter(torch.zeros(1, dtype=torch.int8), False))
    ema = EMA(module, 0.9999)
    module.running_mean.fill_(3.0)
    with torch.no_grad():
        module.level += 1
        module.weight += 1
    for n in range(20):
        ema.update(n)
    assert ema.averaged.running_mean.tolist() == [3.0, 3.0]
    assert ema.averaged.level.item() == 1
    assert ema.averaged.weight.dtype == torch.float32
    assert 1.0 < ema.averaged.weight[0].item() < 2.0


def test_a_module_that_gets_new_tensors_is_followed():
    module = nn.BatchNorm1d(1)
    ema = EMA(module, 0.0)
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}, assign=False)
    module.running_mean = torch.full((1,), 7.0)
    module.weight.data = torch.full((1,), 5.0)  # as `module.to` does
    ema.update(0)
    assert ema.averaged.running_mean.item() == 7.0
    assert ema.averaged.weight.item() == 5.0


@pytest.mark.parametrize("decay", [1.0, -0.1, [0.9, 1.5], [], float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="EMA: argument 'decay' must"):
        EMA(nn.Linear(1, 1), decay)


def test_a_state_of_other_averages_is_refused():
    ema, module = EMA(nn.Linear(1, 1), 0.9), nn.Linear(2, 1)
    state = copy.deepcopy(ema.state_dict())
    with pytest.raises(ValueError, match=r"hold the averages 0\.99; got 0\.9"):
        EMA(nn.Linear(1, 1), 0.99).load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        EMA(module, 0.9).load_state_dict(state)
    with pytest.raises(TypeError, match="'module' must"):
        EMA("module", 0.9)

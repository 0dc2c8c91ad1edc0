"""The benchmark of a training step: it runs, and its bare step is the loop's network."""

import sys
from pathlib import Path

import pytest
import torch

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "examples")]
import recipes
import train_step


@pytest.mark.parametrize("name", ["small", "iddpm-vlb"])
def test_the_benchmark_trains_both_ways(name, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train_step, "matrix_rate", lambda *_: 1e12)
    tiny = (
        ["network.width=8", "network.depth=1"]
        if name == "small"
        else ["network.width=8", "network.multipliers=[1]"]
    )
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "train_step.py",
            "--recipe",
            name,
            "--batch",
            "2",
            "--rounds",
            "2",
            "--set",
            "accumulate=2",
            *tiny,
        ],
    )
    train_step.main()
    out = capsys.readouterr().out
    assert "batch 2 in micro-batches of 1" in out
    for word in (
        "training over bare step",
        "images/s",
        "averages",
        "peak memory",
        "of this device's float32 matrices",
    ):
        assert word in out


def test_a_bare_step_moves_the_network_and_nothing_else():
    config = recipes.load("small").override(
        ["network.width=8", "network.depth=1", "batch=2", "schedule.name=LearnedLinear"]
    )
    both = train_step.Steps(config, torch.device("cpu"))
    ends, averaged = (
        both.objective.schedule.logsnr_max,
        [p.clone() for p in both.trainer.state.averaged.parameters()],
    )
    weights = [p.clone() for p in both.network.parameters()]
    both.bare(2)
    assert any(
        not torch.equal(p, q) for p, q in zip(weights, both.network.parameters(), strict=True)
    )
    assert all(
        torch.equal(p, q)
        for p, q in zip(averaged, both.trainer.state.averaged.parameters(), strict=True)
    )
    assert both.objective.schedule.logsnr_max == ends
    both.loop(2)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(averaged, both.trainer.state.averaged.parameters(), strict=True)
    )
    assert both.objective.schedule.logsnr_max != ends


def test_multiply_adds_of_the_published_network():
    with torch.device("meta"):
        network = recipes.load("vdm").objective().model.network
        found = train_step.multiply_adds(network, torch.zeros(2, 3, 32, 32), torch.zeros(2))
    assert found / 1e9 == pytest.approx(26.7, abs=0.05)  # docs/training.md

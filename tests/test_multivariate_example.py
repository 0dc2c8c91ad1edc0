"""The example of noise of its own for each pixel: where its schedules start, and a quick run."""

import json
import sys
from pathlib import Path

import torch

from vdiff.data.digits import digits
from vdiff.decoder import Categorical
from vdiff.schedule import Normal

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import multivariate
from multivariate import HIGH, LOW, MEAN, NAMES, SHAPE, STD, schedule_of

T = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None, None, None]


def levels(name):
    schedule = schedule_of(name, digits().train)
    x = Categorical(17).encode(digits().test[:9])
    return schedule.for_data(x)[0].logsnr_at(T).expand(9, *SHAPE).detach()


def test_all_but_the_fixed_one_start_at_the_scalar_which_is_nearly_normal():
    scalar = levels("scalar")
    normal = Normal(MEAN, STD, HIGH, LOW).logsnr_at(T)
    assert (scalar - normal).abs().max() < 0.05
    for name in ("pixel, learned", "MuLAN"):
        torch.testing.assert_close(levels(name), scalar, rtol=0, atol=1e-9)


def test_the_fixed_one_has_more_signal_where_there_is_less_variance():
    fixed, scalar = levels("pixel, fixed"), levels("scalar")
    torch.testing.assert_close(fixed[[0, -1]], scalar[[0, -1]])  # the ends are shared
    shift = multivariate.shifts(digits().train)
    middle = (fixed - scalar)[4, 0]
    assert torch.equal(middle.flatten().argsort(), shift.flatten().argsort())
    inner = shift.abs() < 1  # elsewhere the ends cut the density
    assert (middle[inner[0]] * shift[inner] > 0).all()


def test_only_the_learned_ones_learn():
    learned = [name for name in NAMES if any(
        p.requires_grad for p in schedule_of(name, digits().train).parameters()
    )]  # fmt: skip
    assert learned == ["pixel, learned", "MuLAN"]


def test_a_quick_run_compares_with_the_scalar_of_the_same_seed(monkeypatch, tmp_path, capsys):
    argv = ["multivariate.py", "--quick", "--quiet", "--seeds", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    multivariate.main()
    [results] = json.loads((tmp_path / "results.json").read_text()).values()
    assert list(results) == list(NAMES)
    bits = {name: each["bits"]["value"] for name, each in results.items()}
    for name in NAMES[1:]:
        difference = results[name]["difference"]
        error = sum(each["bits"]["monte_carlo"] for each in (results[name], results["scalar"]))
        assert abs(difference["value"] - (bits[name] - bits["scalar"])) < 4 * error
    assert "mean over seeds" in capsys.readouterr().out
    assert (tmp_path / "levels.png").stat().st_size > 5_000

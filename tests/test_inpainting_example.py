"""The example of inpainting: how its bounds add up, what its samples keep, a quick run."""

import json
import sys
from pathlib import Path

import pytest
import torch

from vdiff.data.digits import LEVELS, digits

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import inpainting
from inpainting import DIMS, ORDERS, SIDES, Bits


def test_the_errors_of_bounds_with_draws_of_their_own_add_in_squares():
    a, b = Bits(torch.tensor([1.0, 3.0]), 0.3), Bits(torch.tensor([5.0, 1.0]), 0.4)
    gap = a + -b
    assert gap.by_image.tolist() == [-4.0, 2.0]
    assert gap.monte_carlo == pytest.approx(0.5)


def test_the_sides_of_an_order_share_no_pixel_and_leave_none():
    for first, second in ORDERS:
        assert torch.equal(SIDES[first], ~SIDES[second])
    assert (
        SIDES["left"][0, 5].tolist() == SIDES["top"][0, :, 5].tolist() == [True] * 4 + [False] * 4
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpainting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inpainting.py", "--quick", "--out", str(folder)])
        inpainting.main()
    return folder


def test_a_quick_run_prints_the_bounds_and_their_gaps(run):
    results = json.loads((run / "results.json").read_text())
    assert len(results) == 1 + 3
    for first, second in ORDERS[:1]:
        parts = [results[name]["bits"] for name in (first, f"{second} | {first}", "both")]
        left, right, both = torch.tensor(parts, dtype=torch.float64)
        gap = torch.tensor(results[f"gap: {first}, then {second}"]["bits"])
        torch.testing.assert_close(left + right - both, gap.double(), rtol=0, atol=1e-3)
        assert 0.7 < (left.mean() + right.mean()) / both.mean() < 1.3
    assert results["both"]["monte_carlo"] < 10 < torch.tensor(results["both"]["bits"]).mean()
    assert (run / "table.txt").read_text().count("gap") == 1
    assert (run / "completions.png").stat().st_size > 10_000


def test_completions_keep_what_is_given():
    config = inpainting.config_of(options())
    objective = config.objective().eval()
    images, mask = digits().test[:3], SIDES["right"]
    made = [inpainting.complete(objective, images, mask, seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    for drawn in made:
        assert torch.equal(drawn[..., :4], images[..., :4])
        assert 0 <= drawn.min() <= drawn.max() < LEVELS
        assert drawn[0].numel() == DIMS


def options():
    return type("Options", (), {"width": 8, "steps": 2, "seed": 0})

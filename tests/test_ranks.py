"""Training on several processes, with the environment that torchrun gives them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from points import (
    MASKS,
    POINTS,
    assert_same_to_rounding,
    data_of,
    finish,
    on_ranks,
    outcome,
    points,
    run_until,
    tensors,
)

from vdiff.training import Run
from vdiff.training.batches import Batches, seed_everything
from vdiff.training.ranks import Rank

CHAIN: dict[str, Any] = {
    "network": {
        "name": "MLP",
        "dims": 64,
        "dims_out": 128,
        "width": 16,
        "depth": 1,
        "features": 8,
    },
    "schedule": {"name": "Tabulated.cosine_betas", "levels": 6},
    "decoder": {
        "name": "DiscretizedGaussian",
        "levels": 17,
        "uses_network": True,
        "posterior_variance": 0.01,
    },
    "variance": {"name": "LearnedRange"},
    "chain": 5,
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"schedule": {"name": "Spline", "knots": 5}},
    {"schedule": {"name": "Adaptive", "bins": 6, "warmup": 2}},
    {
        "schedule": {"name": "LearnedLinear"},
        "weighting": {"name": "Sigmoid"},
    },  # ends without a gradient
    CHAIN | {"bound_weight": 0.001},
    CHAIN | {"resampling": True},  # after ten steps by what all processes saw
    {"network": {**POINTS["network"], "field": True}, "masked": True},
)


def alone(folder: Path, changes: dict[str, Any], stop: int | None = None) -> None:
    """Train in this process, to the end or to a step."""
    mask = MASKS if changes.get("masked") else None
    config = points(**{name: v for name, v in changes.items() if name != "masked"})
    run_until(folder, config, stop, mask=mask)


def test_one_process_then_two_then_one_are_one(tmp_path: Path) -> None:
    """One process to step 3; two of three micro-batches each, of which the second is asked to stop
    in step 7: both leave behind the same step; and one to the end: what it would have reached by
    itself, optimizer and schedule too."""
    for i, changes in enumerate(SETTINGS):
        alone(tmp_path / str(i), changes, 3)
    said = finish(
        on_ranks(
            2,
            tmp_path,
            *({"do": "stop", "at": 3, "accumulate": 3, **changes} for changes in SETTINGS),
        )
    )
    assert [code for code, _ in said] == [143, 143], said
    for i, changes in enumerate(SETTINGS):
        whole, both = tmp_path / "alone" / str(i), tmp_path / str(i)
        assert outcome(both)["state"]["step"] == 7
        for folder in (both, whole):
            alone(folder, changes)
        assert_same_to_rounding(tensors(both), tensors(whole))
        assert [entry["step"] for entry in Run(both).history()] == list(range(1, 13))


@pytest.mark.parametrize("do", ["raise", "hang"])
def test_fault_69_where_one_rank_fails_the_others_end(do: str, tmp_path: Path) -> None:
    """By themselves, without torchrun to end them; what was kept can be gone on from."""
    first, second = on_ranks(2, tmp_path, {"do": do, "at": 6})
    try:
        errors = first.communicate(timeout=90)[1]
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert first.returncode == 1, errors
    assert (
        "Connection closed by peer" in errors
        or "timeout" in errors.lower()
        or "timed out" in errors.lower()
    )
    assert outcome(tmp_path / "0")["state"]["step"] == 4


def test_fault_68_ranks_start_from_one_model_and_draw_apart() -> None:
    """That they start from one model is seen above: each is given other weights, and both reach
    those of a single process."""
    config = points(accumulate=2)
    shares = [
        Batches(data_of(config), config, rank=Rank(i, 3))(5, part)
        for part in range(2)
        for i in range(3)
    ]
    for name in ("images", "u", "eps"):
        values = torch.cat([getattr(share, name) for share in shares])
        assert len(values.unique(dim=0)) == config.batch
    draws = []
    for index, part in ((0, 0), (1, 0), (0, 1)):
        seed_everything(0, 5, Rank(index, 2), part)
        draws.append(torch.rand(1).item())
    assert len(set(draws)) == 3

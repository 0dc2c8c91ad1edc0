"""Fault 52: a step of a training whose loss or gradient is not finite."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from points import data_of, outcome, points
from safetensors.torch import load_file
from torch import Tensor, nn

from vdiff import Objective
from vdiff.training import Run, train
from vdiff.training.batches import Batches
from vdiff.training.checkpoint import checkpoints, read_meta, write

from .common import Net, assert_refused
from .training_runs import objective_of


class Sick(nn.Module):
    """A network that at some of its calls returns, or hands back as its gradient, what is not
    finite."""

    def __init__(
        self, calls: Callable[[int], bool], value: float = torch.nan, backwards: bool = False
    ) -> None:
        super().__init__()
        self.inner, self.calls, self.value, self.backwards, self.call = (
            Net(64),
            calls,
            value,
            backwards,
            0,
        )

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        self.call += 1
        out: Tensor = self.inner(z, time)
        if not self.calls(self.call):
            return out
        if self.backwards:
            return out + 0 * (out - out.detach()).abs().sqrt()  # zero, with a gradient of 0 · ∞
        return out + self.value


def state_of(objective: Objective) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in objective.state_dict().items()}


@pytest.mark.parametrize("late", [0, 1])  # as on a CPU and as on a GPU
@pytest.mark.parametrize(
    ("value", "backwards"),
    [(torch.nan, False), (torch.inf, False), (0.0, True)],
    ids=["nan", "inf", "gradient"],
)
def test_fault_52_a_step_that_is_not_finite_is_left_out_and_counted(
    value: float, backwards: bool, late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and moments are those of before, and everything after continues from finite
    numbers."""
    monkeypatch.setattr("vdiff.training.trainer.DELAY", {"cpu": late})
    config, seen = points(steps=8), {}
    sick = objective_of(Sick(lambda call: call in (3, 4, 6), value, backwards))

    def look(entry: dict[str, Any]) -> None:
        seen[entry["step"]] = (state_of(sick), entry)

    with Run.open(tmp_path, config) as run:
        averaged = train(sick, data_of(config), config, run=run, log=look, every=1, quiet=True)
        facts = read_meta(checkpoints(run.checkpoints)[-1])["facts"]["state"]
    assert [entry["skipped"] for _, entry in seen.values()] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert ["train_bits_per_dim" in entry for _, entry in seen.values()] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    assert (facts["skipped"], facts["in_a_row"]) == (3, 0)
    for name, weight in sick.named_parameters():
        assert torch.equal(seen[4][0][name], seen[2][0][name])
        assert torch.equal(seen[6][0][name], seen[5][0][name])
        assert not torch.equal(seen[5][0][name], seen[4][0][name])
        assert weight.isfinite().all()
    assert all(v.isfinite().all() for v in averaged.state_dict().values())
    steps = load_file(checkpoints(tmp_path / "checkpoints")[-1] / "optimizer.safetensors")[
        "step.model.network.inner.last.bias"
    ]
    assert steps == 5


def test_fault_52_ten_in_a_row_end_the_run_and_say_how_to_see_them_again(tmp_path: Path) -> None:
    config = points(accumulate=2, seed=5)
    sick = objective_of(Sick(lambda call: call > 4))
    said = r"in 10 steps in a row, up to step 11 of seed 5 \(lower the learning rate; .* are in"
    with (
        Run.open(tmp_path, config) as run,
        pytest.raises(ValueError, match=f"train: the loss or its gradient was NaN .* {said}"),
    ):
        train(sick, data_of(config), config, run=run, every=1, quiet=True)
    dump = json.loads((tmp_path / "nonfinite-00000011.json").read_text())
    assert (dump["step"], dump["seed"], len(dump["slots"])) == (11, 5, config.batch)
    slots = [slot["slot"] for slot in dump["slots"]]
    assert slots == list(range(config.batch))
    assert {slot["loss"] for slot in dump["slots"]} == {"nan"}
    batch = Batches(data_of(config), replace(config, accumulate=1))(dump["step"], 0)
    assert batch.images.tolist() == [slot["image"] for slot in dump["slots"]]
    assert batch.u.tolist() == [slot["t"] for slot in dump["slots"]]
    t = torch.tensor([slot["t"] for slot in dump["slots"]], dtype=torch.float64)
    assert torch.equal(
        sick.schedule(t),
        torch.tensor([slot["logsnr"] for slot in dump["slots"]], dtype=torch.float64),
    )
    again = Run(tmp_path).config
    assert again == config  # from the newest checkpoint the same steps come again
    assert outcome(tmp_path)["state"]["skipped"] == 9


def test_fault_52_the_first_ends_the_run_where_it_is_asked_to() -> None:
    config = points()
    sick = objective_of(Sick(lambda call: call == 3))
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 steps .* step 2 of seed 0"):
        train(sick, data_of(config), config, on_nonfinite="raise", quiet=True)
    assert all(p.isfinite().all() for p in sick.parameters())
    with assert_refused(
        ValueError, "train", "on_nonfinite", "be one of 'skip', 'raise'", "did you mean 'skip'?"
    ):
        train(sick, data_of(config), config, on_nonfinite="skipp", quiet=True)


def test_fault_52_no_checkpoint_holds_nan(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = tmp_path / "run"
    with assert_refused(ValueError, "checkpoint", str(run), "hold no NaN", "one in model weight"):
        write(run, 1, {"model": {"weight": torch.tensor([1.0, torch.nan])}}, {})
    assert list((tmp_path / "run").iterdir()) == []

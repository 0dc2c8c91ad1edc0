"""Checkpoints: written completely or not at all, verified before they are used."""

import pytest
import torch

from vdiff.training.checkpoint import checkpoints, prune, read, step_of, use_newest, write


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"objective": {"weight": torch.full((2,), value)}}


def test_nothing_is_copied_from_a_damaged_checkpoint(tmp_path):
    path = write(tmp_path, 7, tensors(1.0) | {"optimizer": {"step": torch.ones(1)}}, {})
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    live = tensors(0.0) | {"optimizer": {"step": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"hold optimizer\.safetensors .*it is cut off"):
        read(path, live)
    assert live["objective"]["weight"].tolist() == [0.0, 0.0]


def test_the_newest_intact_checkpoint_is_used(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, tensors(float(step)), {"step": step})
    (checkpoints(tmp_path)[-1] / "meta.json").write_text("{")
    live = tensors(0.0)
    with pytest.warns(UserWarning, match="the one before it is used"):
        assert use_newest(tmp_path, lambda path: read(path, live)) == {"step": 2}
    assert live["objective"]["weight"].tolist() == [2.0, 2.0]
    assert (tmp_path / "refused-step-00000003").is_dir()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1, 2]


def test_prune_keeps_the_newest(tmp_path):
    for step in (5, 100_000_000, 20):
        write(tmp_path, step, tensors(0.0), {})
    (tmp_path / ".step-00000001.partial").mkdir()
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000020",
        "step-100000000",
    ]

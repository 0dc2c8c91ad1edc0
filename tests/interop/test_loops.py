"""The loops of the examples on two gloo processes, stopped and resumed: bit for bit the run that
was not stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("lightning")

from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(out: Path, steps: int, *words: str) -> None:
    """A command with the options that every loop has."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *words, "--steps", str(steps), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def torchrun(name: str) -> tuple[str, ...]:
    two = ("--nproc-per-node", "2", "--standalone")
    return ("-m", "torch.distributed.run", *two, str(EXAMPLES / name))


def accelerated(out: Path, steps: int) -> dict[str, torch.Tensor]:
    run(out, steps, *torchrun("accelerate_loop.py"))
    return load_file(out / "model.safetensors")


def of_lightning(out: Path, steps: int) -> dict[str, torch.Tensor]:
    run(out, steps, str(EXAMPLES / "lightning_module.py"), "--devices", "2")
    return torch.load(out / "last.ckpt", weights_only=True)["state_dict"]


def sharded(out: Path, steps: int) -> dict[str, torch.Tensor]:
    run(out, steps, *torchrun("fsdp_loop.py"))
    dcp_to_torch_save(out, out.parent / "whole.pt")
    return torch.load(out.parent / "whole.pt", weights_only=True)["model"]


@pytest.mark.parametrize("train", [accelerated, of_lightning, sharded])
def test_a_stopped_run_resumes_bit_for_bit(train, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    whole = train(tmp_path / "one" / "run", 6)
    train(tmp_path / "two" / "run", 3)
    resumed = train(tmp_path / "two" / "run", 6)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []

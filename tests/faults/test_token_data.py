"""Data that are no tokens of the process: found before the first step, or at the first batch that
has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vdiff import Objective
from vdiff.data import load_images
from vdiff.decoder import Categorical
from vdiff.discrete import Masked, TokenDenoiser
from vdiff.errors import InvalidType, InvalidValue
from vdiff.objective import VLB, Weighted
from vdiff.schedule import LearnedLinear, LogLinear, Spline
from vdiff.training import Config, Validation, train

TOKENS = torch.randint(0, 5, (64, 4), generator=torch.Generator().manual_seed(0))
BAD = TOKENS.index_fill(0, torch.tensor([63]), 5)


class Counted(nn.Embedding):
    """A network that counts its calls."""

    calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(z)


def objective(process: Masked, **parts: Any) -> Objective:
    network = Counted(process.states, process.vocabulary)
    model = TokenDenoiser(network, process)
    return Objective(model, **{"schedule": LogLinear(9.0, -9.0), "loss": Weighted()} | parts)


def config(**settings: Any) -> Config:
    own = {"network": {"name": "own.py:build"}, "process": {"name": "Masked", "vocabulary": 5}}
    return Config(**own | {"shape": [4], "steps": 2, "batch": 2} | settings)


@pytest.mark.parametrize(
    ("data", "process", "text"),
    [
        (BAD, Masked(5), r"'data' must lie in 0 … 4; got values from 0 to 5 \(the mask is no val"),
        (BAD + 1, Masked(5), r"'data' must lie in 0 … 4; got values from 1 to 6"),
        (TOKENS - 1, Masked(5), r"'data' must lie in 0 … 4; got values from -1 to 3"),
        (TOKENS, Masked(5, mask=0), r"'data' must hold no mask: the process masks tokens"),
        ((TOKENS + 3).to(torch.uint16), Masked(5), r"'data' must lie in 0 … 4; got values from 3"),
    ],
)
def test_values_that_are_no_tokens(data: Tensor, process: Masked, text: str) -> None:
    one = objective(process)
    with pytest.raises(InvalidValue, match=text):
        train(one, data, config(), quiet=True)
    assert one.model.network.calls == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_data_that_are_no_integers(dtype: torch.dtype) -> None:
    text = r"train: argument 'data' must be integer tokens; got torch\.\w+ \(data\.long\(\)\)"
    with pytest.raises(InvalidType, match=text):
        train(objective(Masked(5)), TOKENS.to(dtype), config(), quiet=True)


def test_a_file_is_read_before_the_first_step(tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", BAD.numpy().astype(np.uint16))
    data, one = load_images(tmp_path / "bad.npy", levels=5), objective(Masked(5))
    with pytest.raises(InvalidValue, match=r"'data' must lie in 0 … 4"):
        train(one, data, config(), quiet=True)
    assert one.model.network.calls == 0
    np.save(tmp_path / "good.npy", TOKENS.numpy().astype(np.uint16))
    data = load_images(tmp_path / "good.npy", levels=5)
    train(one, data, config(), quiet=True)
    assert one.model.network.calls == 2


def test_a_stream_is_checked_batch_by_batch() -> None:
    one = objective(Masked(5))
    with pytest.raises(InvalidValue, match=r"'data' must lie in 0 … 4"):
        train(one, iter(BAD[-4:]), config(), quiet=True)
    assert one.model.network.calls == 1


def test_padding_must_be_called_absent() -> None:
    def padding(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return x < 5, x >= 5

    train(objective(Masked(5)), BAD, config(), mask=padding, quiet=True)
    with pytest.raises(InvalidValue, match=r"'data' must lie in 0 … 4"):
        train(objective(Masked(5)), BAD + 1, config(), mask=lambda x, g: x < 6, quiet=True)


def test_parts_that_tokens_cannot_have() -> None:
    with pytest.raises(InvalidValue, match=r"'decoder' must be left out for tokens"):
        train(objective(Masked(5), loss=VLB(Categorical(5))), TOKENS, config(), quiet=True)
    for schedule in LearnedLinear(9.0, -9.0), Spline(9.0, -9.0):
        with pytest.raises(InvalidValue, match=r"'schedule' must have no trained parameters but"):
            train(objective(Masked(5), schedule=schedule), TOKENS, config(), quiet=True)
    with pytest.raises(InvalidValue, match=r"Validation: argument 'data' must lie in 0 … 4"):
        Validation(BAD)(objective(Masked(5)))

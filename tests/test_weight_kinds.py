"""Weights of every kind of number (half precision, complex, integers, tied): trained, averaged,
kept and loaded."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from points import data_of, points
from safetensors.torch import load_file
from short_runs import CONFIG, trained
from torch import Tensor, nn

from vdiff import Denoiser, Objective
from vdiff.decoder import Categorical
from vdiff.nn import MLP
from vdiff.objective import VLB
from vdiff.parameterization import V
from vdiff.schedule import Linear
from vdiff.training import Config, Run, train
from vdiff.training.ema import EMA
from vdiff.training.state import State


class Made(nn.Module):
    """A network with weights of some dtype beside its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = MLP(64, width=16, depth=1, features=8), kind
        extra = {
            "complex64": lambda: nn.Parameter(0.1 * torch.randn(33, dtype=torch.complex64)),
            "complex128": lambda: nn.Parameter(0.1 * torch.randn(33, dtype=torch.complex128)),
            "sparse": lambda: nn.Embedding(100, 64, sparse=True),
            "whole numbers": lambda: nn.Parameter(
                torch.ones(64, dtype=torch.int64), requires_grad=False
            ),
            "float64": lambda: nn.Linear(64, 64).double(),
        }
        self.extra = extra[kind]()

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        out = self.inner(z, time)
        if self.kind.startswith("complex"):
            return out + torch.fft.irfft(
                torch.fft.rfft(z.to(self.extra.real.dtype)) * self.extra, 64
            ).to(out.dtype)
        if self.kind == "sparse":
            return out + self.extra((5 * (time + 10)).long().clamp(0, 99))
        if self.kind == "float64":
            return out + self.extra(z.double()).to(out.dtype)
        return out * self.extra


def made(kind: str) -> Objective:
    torch.manual_seed(0)
    return Objective(
        Denoiser(Made(kind), V()), schedule=Linear(10.0, -7.0), loss=VLB(Categorical(17))
    )


KINDS = ["complex64", "complex128", "sparse", "whole numbers", "float64"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind_are_trained_kept_and_loaded(kind, tmp_path):
    """Without a run, with one, stopped and resumed, to the last bit; the extra weights move where
    they can.
    """
    start = made(kind)
    alone = train(made(kind), data_of(CONFIG), CONFIG, quiet=True)
    whole = _in_run(kind, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stop"):
        _in_run(kind, tmp_path / "stopped", stop=2)
    stopped = _in_run(kind, tmp_path / "stopped")
    loaded = Run(tmp_path / "whole").load(objective=made(kind))
    for name, value in alone.state_dict().items():
        for other in (whole, stopped, loaded):
            assert torch.equal(other.state_dict()[name], value), name
            assert other.state_dict()[name].dtype == start.state_dict()[name].dtype
    moved = not torch.equal(_extra(alone), _extra(start))
    assert moved == (kind != "whole numbers")


def _extra(objective: Objective) -> Tensor:
    return torch.cat(
        [p.detach().flatten() for name, p in objective.named_parameters() if "extra" in name]
    )


def _in_run(kind: str, folder: Path, stop: int = 0) -> Objective:
    seen: list[int] = []

    def validate(averaged: Objective) -> float:
        seen.append(1)
        if len(seen) == stop:
            raise RuntimeError("stop")
        return 1.0

    with Run.open(folder, CONFIG) as run:
        return train(
            made(kind), data_of(CONFIG), CONFIG, run=run, every=1, validate=validate, quiet=True
        )


class Sick(nn.Module):
    """A network with a complex weight that at some of its calls returns NaN."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.bad, self.calls = Made("complex64"), bad, 0

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(z, time) + (torch.nan if self.calls in self.bad else 0.0)


def test_a_step_that_is_not_finite_is_left_out_by_the_plain_optimizer_too():
    objective = Objective(
        Denoiser(Sick((2, 3)), V()), schedule=Linear(10.0, -7.0), loss=VLB(Categorical(17))
    )
    seen: list[tuple[dict[str, Tensor], int]] = []

    def log(entry: dict[str, int]) -> None:
        seen.append(
            (
                {name: p.detach().clone() for name, p in objective.named_parameters()},
                entry["skipped"],
            )
        )

    train(objective, data_of(CONFIG), CONFIG, log=log, every=1, quiet=True)
    assert [skipped for _, skipped in seen] == [0, 1, 2, 2]
    for name in seen[0][0]:
        assert torch.equal(seen[2][0][name], seen[0][0][name])
        assert seen[3][0][name].isfinite().all()
    assert not torch.equal(
        seen[3][0]["model.network.inner.extra"], seen[2][0]["model.network.inner.extra"]
    )


def test_complex_weights_take_adamw_s_step():
    """As torch's own, on real and imaginary parts."""
    config = points(
        steps=1, warmup=0, decay="constant", clip=None, schedule=CONFIG.schedule, ema=[0.0]
    )
    objective = made("complex64")
    start = objective.model.network.extra.detach().clone()
    train(objective, data_of(config), config, quiet=True)
    step = objective.model.network.extra.detach() - start * (1 - config.lr * config.weight_decay)
    parts = torch.view_as_real(step)
    moved = parts[parts.abs() > 1e-6]
    assert len(moved) > 60
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, config.lr), rtol=1e-3, atol=0)


def test_nan_in_complex_weights_is_no_checkpoint(tmp_path):
    state = State(made("complex64"), CONFIG)
    with torch.no_grad():
        state.objective.model.network.extra[3] = complex(0.0, math.nan)
    with (
        Run.open(tmp_path, CONFIG) as run,
        pytest.raises(
            ValueError, match=r"must hold no NaN; got one in objective model\.network\.extra"
        ),
    ):
        run.store(state)


def test_only_what_has_a_kernel_is_fused():
    assert State(CONFIG.objective(), CONFIG).fused
    assert State(made("float64"), CONFIG).fused
    assert not State(made("complex64"), CONFIG).fused


def test_weights_without_values_are_named():
    with torch.device("meta"):
        objective = CONFIG.objective()
    with pytest.raises(
        ValueError,
        match=(
            r"train: argument 'objective' must have weights; got the meta device "
            r"\(objective.to_empty"
        ),
    ):
        train(objective, data_of(CONFIG), CONFIG, quiet=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["default dtype", "cast"])
@pytest.mark.parametrize("weights", ["averaged", "of a checkpoint"])
def test_a_run_with_weights_in_half_precision_is_loaded_as_it_was_averaged(
    dtype, how, weights, tmp_path
):
    """Averages are in float32, and so is what `load` returns: the numbers that a validation
    saw."""
    config = points(steps=4, schedule=CONFIG.schedule, ema=[0.9], lr=1e-4)
    objective = half(config, dtype, how)
    assert dtype in {p.dtype for p in objective.model.parameters()}
    with Run.open(tmp_path, config) as run:
        averaged = train(objective, data_of(config), config, run=run, quiet=True)
    assert {p.dtype for p in averaged.model.parameters()} == {torch.float32}
    if weights == "of a checkpoint":
        (tmp_path / "ema.safetensors").unlink()
    before = torch.get_default_dtype()
    if how == "default dtype":
        torch.set_default_dtype(dtype)
    try:
        loaded = Run(tmp_path).load()
    finally:
        torch.set_default_dtype(before)
    for name, value in averaged.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(loaded.state_dict()[name], value), name
    x, setting = data_of(config)[:8], {"u": torch.linspace(0.1, 0.9, 8), "eps": torch.randn(8, 64)}
    assert torch.equal(loaded(x, **setting), averaged(x, **setting))
    with Run.open(tmp_path, config) as run:  # and goes on
        again = train(half(config, dtype, how), data_of(config), config, run=run, quiet=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), averaged.state_dict().values(), strict=True)
    )


def half(config: Config, dtype: torch.dtype, how: str) -> Objective:
    torch.manual_seed(0)
    if how == "default dtype":
        torch.set_default_dtype(dtype)
        try:
            objective = config.objective()
        finally:
            torch.set_default_dtype(torch.float32)
        return objective
    objective = config.objective()
    objective.model.to(dtype)
    return objective


def test_weights_come_back_in_the_precision_in_which_they_were_saved(tmp_path):
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        objective = CONFIG.objective()
        objective.model.to(dtype)
        shutil.rmtree(tmp_path, ignore_errors=True)
        with Run.open(tmp_path, CONFIG) as run:
            run.save(objective)
        loaded = Run(tmp_path).load()
        assert {p.dtype for p in loaded.model.parameters()} == {dtype}
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                loaded.state_dict().values(), objective.state_dict().values(), strict=True
            )
        )


def test_another_kind_of_number_is_another_architecture(tmp_path):
    from safetensors.torch import save_file

    trained(tmp_path)
    tensors = load_file(tmp_path / "ema.safetensors")
    name = "model.network.layers.0.bias"
    save_file(tensors | {name: tensors[name].long()}, tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match=rf"must have {name} in torch.float32; got torch.int64"):
        Run(tmp_path).load()


def test_averages_of_every_kind():
    for kind in KINDS:
        objective = made(kind)
        averages = EMA(objective, [0.5])
        before = _extra(averages.copies[0.5]).clone()
        with torch.no_grad():
            for p in objective.parameters():
                p.add_(2)
        averages.update(100)
        grown = _extra(averages.copies[0.5]) - before
        expected = torch.full_like(grown, 2 if kind == "whole numbers" else 1)
        torch.testing.assert_close(grown, expected, rtol=0, atol=1e-6)

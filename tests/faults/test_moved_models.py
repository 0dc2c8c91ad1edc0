"""Faults 38, 39 and 43: copies, pickles, moves, other dtypes and other devices of a model."""

import copy
import io
import itertools
import pickle
import types
from collections.abc import Callable

import pytest
import torch
from registry import DECODERS, SCHEDULES, WEIGHTINGS, made_of
from torch import Tensor, nn

from vdiff import Denoiser, Objective, elbo
from vdiff._precision import float64_for, keep_dtype, to_float64
from vdiff.decoder import Categorical
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import V
from vdiff.schedule import LearnedLinear

from .common import SCHEDULE, assert_same, batch, data_of, gradients, model
from .losses import objectives


def parts() -> dict[str, tuple[nn.Module, Callable[[nn.Module], Tensor]]]:
    t, logsnr = (
        torch.linspace(0.05, 0.95, 7, dtype=torch.float64),
        torch.linspace(-9, 9, 7, dtype=torch.float64),
    )
    schedules = {
        f"schedule {name}": (
            make(),
            lambda m: torch.cat(
                [m(t), m.rate(t), m.density(logsnr), m.inverse(logsnr, clamp=True)]
            ),
        )
        for name, make in made_of(SCHEDULES).items()
    }
    weightings = {
        f"weighting {name}": (make(), lambda m: m(logsnr)) for name, make in WEIGHTINGS.items()
    }
    decoders = {
        f"decoder {name}": (make(), lambda m: m.log_prob(data_of(m), batch()[0], 5.0))
        for name, make in DECODERS.items()
    }
    _, times, eps = batch()
    whole = {
        f"objective {name}": (objective, lambda m, data=data: m(data, t=times, eps=eps))
        for name, (objective, data) in objectives().items()
    }
    return {**schedules, **weightings, **decoders, **whole}


@pytest.mark.parametrize("name", list(parts()))
def test_fault_38_copies_pickles_and_moves(name: str) -> None:
    module, value = parts()[name]
    before = value(module)
    assert torch.equal(value(copy.deepcopy(module)), before)
    assert torch.equal(value(pickle.loads(pickle.dumps(module))), before)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(value(torch.load(file, weights_only=False)), before)
    assert torch.equal(value(module.to("cpu")), before)
    assert torch.equal(value(module.eval()), before)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    moved = copy.deepcopy(module).to("meta")
    assert {v.device.type for v in moved.state_dict().values()} <= {"meta"}
    back = moved.to_empty(device="cpu")
    back.load_state_dict(state, strict=True)
    assert torch.equal(value(back), before)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_fault_38_half_precision_is_for_the_network_alone(cast: torch.dtype) -> None:
    for name, (module, value) in parts().items():
        before = value(module)
        after = value(copy.deepcopy(module).to(cast))
        if name.startswith("objective"):
            assert after.dtype == torch.float32
            assert_same(after.mean(), before.mean(), rtol=0.1)
        else:
            assert torch.equal(after, before), name


def test_fault_38_a_state_dict_is_strict_and_a_loaded_prior_counts() -> None:
    data, x = data_of(Categorical(17)), batch()[0]
    fitted = Categorical.fit(data, 17)
    other = Categorical(17, prior=torch.zeros(2, 17))
    before = other.expected_nll(data, 5.0)
    other.load_state_dict(fitted.state_dict(), strict=True)
    assert torch.equal(other.expected_nll(data, 5.0), fitted.expected_nll(data, 5.0))
    assert (other.expected_nll(data, 5.0) != before).any()
    with pytest.raises(RuntimeError, match="prior"):
        Categorical(17).load_state_dict(fitted.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"schedule\.low"):
        Objective(model(), schedule=SCHEDULE).load_state_dict(
            Objective(model(), schedule=LearnedLinear()).state_dict(), strict=True
        )
    learned = Objective(model(), schedule=LearnedLinear(12.0, -4.0))
    restored = Objective(model(), schedule=LearnedLinear())
    restored.load_state_dict(learned.state_dict(), strict=True)
    _, t, eps = batch()
    assert torch.equal(restored(x, t=t, eps=eps), learned(x, t=t, eps=eps))
    assert restored.schedule.logsnr_max == learned.schedule.logsnr_max


def test_fault_38_built_on_the_meta_device() -> None:
    x, t, eps = batch()
    data = data_of(Categorical(17))
    weightings = itertools.cycle(WEIGHTINGS.values())
    pairs = list(zip(made_of(SCHEDULES).values(), weightings, strict=False))
    with torch.device("meta"):
        deferred = [
            Objective(
                Denoiser(nn.Identity(), V()), schedule=make(), loss=Weighted(w(), steps=w().steps)
            )
            for make, w in pairs
        ]
        bound = Objective(
            Denoiser(nn.Identity(), V()), schedule=LearnedLinear(), loss=VLB(Categorical(17))
        )
    for objective, (make, w) in zip(deferred, pairs, strict=True):
        if next(objective.schedule.parameters(), None) is None:
            direct = Objective(
                Denoiser(nn.Identity(), V()), schedule=make(), loss=Weighted(w(), steps=w().steps)
            )
            objective.model.network = direct.model.network = TwoArguments()
            assert torch.equal(objective(x, t=t, eps=eps), direct(x, t=t, eps=eps))
    assert bound.schedule.low.device.type == "meta"
    filled = bound.to_empty(device="cpu")
    filled.load_state_dict(
        Objective(
            Denoiser(nn.Identity(), V()), schedule=LearnedLinear(), loss=VLB(Categorical(17))
        ).state_dict()
    )
    filled.model.network = TwoArguments()
    assert torch.equal(
        filled(data, t=t, eps=eps),
        elbo(
            Denoiser(TwoArguments(), V()),
            data,
            schedule=LearnedLinear(),
            decoder=Categorical(17),
            t=t,
            eps=eps,
        ).total,
    )


class TwoArguments(nn.Module):
    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return z.tanh()


@pytest.mark.parametrize("name", list(objectives()))
def test_fault_39_inference_tensors(name: str) -> None:
    objective, data = objectives()[name]
    _, t, eps = batch()
    expected = gradients(objective, lambda: objective(data, t=t, eps=eps).mean())
    fresh, _ = objectives()[name]
    with torch.inference_mode():
        inputs = data.clone(), t.clone(), eps.clone()
        inside = fresh(inputs[0], t=inputs[1], eps=inputs[2])
    assert_same(inside, objective(data, t=t, eps=eps))
    got = gradients(fresh, lambda: fresh(inputs[0], t=inputs[1], eps=inputs[2]).mean())
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_fault_43_a_device_without_float64() -> None:
    mps = types.SimpleNamespace(type="mps")
    assert float64_for(mps) == torch.float32  # type: ignore[arg-type]
    assert float64_for(torch.device("cpu")) == torch.float64
    vector = types.SimpleNamespace(device=mps, to=lambda dtype: dtype)
    assert to_float64(vector) == torch.float32  # type: ignore[arg-type, comparison-overlap]

    def to_mps(v: Tensor) -> Tensor:
        if v.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                "support float64. Please use float32 instead."
            )
        return v + 1

    with pytest.warns(
        UserWarning, match=r"the device has no float64: a tensor of shape \(3,\) stays on cpu"
    ):
        assert torch.equal(
            keep_dtype(to_mps)(torch.ones(3, dtype=torch.float64)),
            torch.ones(3, dtype=torch.float64),
        )
    assert torch.equal(keep_dtype(to_mps)(torch.ones(3)), torch.full((3,), 2.0))
    with pytest.warns(UserWarning, match="stays on cpu"):
        schedule = LearnedLinear()._apply(to_mps)
    logsnr, rate = (v.float() for v in schedule.at(torch.tensor([0.25]))[:2])
    assert_same(logsnr, torch.tensor([13.3 - 18.3 / 4]))
    assert_same(rate, torch.tensor([18.3]))


def test_fault_43_any_other_failed_move_is_an_error() -> None:
    def fails(v: Tensor) -> Tensor:
        raise TypeError("unknown device")

    with pytest.raises(TypeError, match="unknown device"):
        keep_dtype(fails)(torch.ones(1, dtype=torch.float64))

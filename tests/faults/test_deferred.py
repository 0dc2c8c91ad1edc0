"""Modules without values: built on the meta device or moved there, made empty, and restored by
`reset_parameters`."""

from collections.abc import Callable

import pytest
import torch
from registry import DECODERS, ORACLES, SCHEDULES, SCHEDULES_OVER_DIMS, made_of
from torch import Tensor, nn

from vdiff import Denoiser, Objective
from vdiff.decoder import Categorical
from vdiff.denoiser import TableStep
from vdiff.nn import FourierFeatures, LevelHead
from vdiff.objective import VLB
from vdiff.parameterization import V, X
from vdiff.profile import Profile
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Adaptive, LearnedLinear, Monotone, Shifted, Spline, Tabulated
from vdiff.weighting import MSE

from .common import Net, batch, data_of, model

MORE: dict[str, Callable[[], nn.Module]] = {
    "spline and its ends": Spline,
    "monotone and its ends": lambda: Monotone(hidden=8),
    "shifted table": lambda: Shifted(Tabulated([3.0, 0.0, -float("inf")]), 1.0),
    "profile": lambda: Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=3),
    "resampling": lambda: LossSecondMoment(3),
    "weighting": lambda: MSE(Tabulated.linear_betas(), V(), steps=999),
    "features": FourierFeatures,
    "features of a table": lambda: FourierFeatures(8, of=TableStep(Tabulated.linear_betas())),
    "level head": lambda: LevelHead(Net(), Categorical(17)),
}
MADE: dict[str, Callable[[], nn.Module]] = {
    **{f"schedule {name}": make for name, make in made_of(SCHEDULES).items()},
    **{f"schedule {name}": make for name, make in made_of(SCHEDULES_OVER_DIMS).items()},
    **{f"decoder {name}": make for name, make in DECODERS.items()},
    **{f"oracle {name}": make for name, make in ORACLES.items()},
    **MORE,
}


def values(module: nn.Module) -> dict[str, Tensor]:
    """All of them, those that no state dict has too."""
    return {
        **module.state_dict(),
        **dict(module.named_buffers()),
        **dict(module.named_parameters()),
    }


def restored(module: nn.Module, by: str) -> nn.Module:
    """A module that was made empty and restored, as its users do it."""
    empty = module.to_empty(device="cpu")
    for name, value in values(empty).items():
        if not name.endswith("ends"):
            value.detach().fill_(7)  # empty memory may hold anything
    if by == "itself":
        empty.reset_parameters()
    else:  # as FSDP's users do
        for each in empty.modules():
            if hasattr(each, "reset_parameters"):
                each.reset_parameters()
    return empty


@pytest.mark.parametrize("by", ["itself", "a loop"])
@pytest.mark.parametrize("start", ["built on meta", "moved to meta", "emptied"])
@pytest.mark.parametrize("name", MADE)
def test_a_module_without_values_is_restored(name: str, start: str, by: str) -> None:
    if start == "built on meta" and ("oracle" in name or "prior" in name):
        pytest.skip("made of tensors that are then on meta too")
    expected = values(MADE[name]())
    # a network of the user's restores itself
    theirs = {"level head": "network", "schedule mulan": "encoder"}.get(name, " ")
    expected = {k: v for k, v in expected.items() if not k.startswith(theirs)}
    with torch.device("meta" if start == "built on meta" else "cpu"):
        module = MADE[name]()
    module = module.to("meta") if start == "moved to meta" else module
    got = values(restored(module, by))
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


def test_every_module_of_ours_that_holds_tensors_can_be_restored() -> None:
    for make in MADE.values():
        for module in make().modules():
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if held or getattr(module, "_local", ()):
                assert hasattr(module, "reset_parameters"), type(module)


@pytest.mark.parametrize("name", [*SCHEDULES, *SCHEDULES_OVER_DIMS])
def test_an_objective_of_any_schedule_is_built_on_meta(name: str) -> None:
    made = made_of({**SCHEDULES, **SCHEDULES_OVER_DIMS})
    with torch.device("meta"):
        objective = Objective(model(), schedule=made[name](), loss=VLB(Categorical(17)))
    assert all(parameter.is_meta for parameter in objective.parameters())


@pytest.mark.parametrize(
    "schedule",
    [LearnedLinear, Spline, lambda: Monotone(hidden=8), Adaptive],
    ids=["linear", "spline", "monotone", "adaptive"],
)
def test_an_objective_that_was_built_on_meta_is_the_one_that_was_not(
    schedule: Callable[[], nn.Module],
) -> None:
    def make() -> Objective:
        return Objective(
            Denoiser(nn.Identity(), X()), schedule=schedule(), loss=VLB(Categorical(17))
        )  # type: ignore[arg-type]

    data, (_, t, eps) = data_of(Categorical(17)), batch()
    with torch.device("meta"):
        empty = make()
    ours, expected = restored(empty, "a loop"), make()
    network = model().network
    for one in (ours, expected):
        one.model.network = network
        one(data, t=t, eps=eps).mean().backward()
    assert torch.equal(ours(data, t=t, eps=eps), expected(data, t=t, eps=eps))


def test_what_was_learned_is_forgotten() -> None:
    schedule = Adaptive(10.0, -10.0, bins=4, warmup=1)
    before = {k: v.clone() for k, v in schedule.state_dict().items()}
    schedule.observe(torch.tensor([6.0, 6.0, 6.0, -6.0]), torch.tensor([9.0, 9.0, 9.0, 1.0]))
    schedule.update()
    schedule.observe(torch.tensor([5.0]), torch.tensor([1.0]))
    assert not torch.equal(schedule.mass, before["mass"])
    schedule.reset_parameters()
    for name, value in schedule.state_dict().items():
        assert torch.equal(value, before[name])
    table = Tabulated([3.0, 1.0, -2.0])
    table.load_state_dict({"table": torch.tensor([5.0, 1.0, -4.0], dtype=torch.float64)})
    table.reset_parameters()
    assert (table.logsnr_max, table.logsnr_min) == (3.0, -2.0)
    decoder = Categorical(4, prior=torch.arange(4.0))
    data = torch.tensor([[0, 3]])
    known = decoder.expected_nll(data, 2.0)
    decoder.load_state_dict({"prior": torch.zeros(4, dtype=torch.float64) - 1.4})
    assert not torch.equal(decoder.expected_nll(data, 2.0), known)
    decoder.reset_parameters()
    assert torch.equal(decoder.expected_nll(data, 2.0), known)

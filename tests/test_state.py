"""State dicts of what lies between two ends, and the values of construction."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.func import functional_call

from vdiff import Denoiser, Objective, weighted_elbo
from vdiff.parameterization import Eps, X
from vdiff.profile import Profile
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import (
    Adaptive,
    Cosine,
    Histogram,
    LearnedLinear,
    Linear,
    Monotone,
    Schedule,
    Shifted,
    Spline,
    Tabulated,
)
from vdiff.weighting import MSE

T = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)


class Own(Schedule):
    """A schedule of a user with a buffer."""

    def __init__(self, high: float, low: float) -> None:
        super().__init__(high, low)
        self.register_buffer("scale", torch.ones(1))

    def logsnr_at(self, t):
        return self._ends[0] - (self._ends[0] - self._ends[1]) * t

    def rate_at(self, t, logsnr):
        return torch.full_like(t, self._ends[0] - self._ends[1])


MADE = {
    "adaptive": lambda high, low: Adaptive(high, low, bins=4, warmup=1),
    "histogram": lambda high, low: Histogram([1.0, 2.0, 4.0], high, low),
    "spline": lambda high, low: Spline(high, low, knots=5, learn_ends=False),
    "monotone": lambda high, low: Monotone(high, low, hidden=4, learn_ends=False),
    "own": Own,
    "shifted": lambda high, low: Shifted(Histogram([1.0, 2.0, 4.0], high - 1, low - 1), 1.0),
    "twice": lambda high, low: Shifted(
        Shifted(Histogram([1.0, 2.0, 4.0], high - 2, low - 2), 1.0), 1.0
    ),
    "objective": lambda high, low: Objective(
        Denoiser(lambda z, t: z, Eps()), schedule=Histogram([1.0, 2.0], high, low)
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_a_state_of_other_ends_is_refused(name, strict):
    mine, other = MADE[name](8.0, -8.0), MADE[name](13.3, -5.0)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"λ_max = \S+ and λ_min = \S+; got λ_max = \S+ and λ_min = "
    ) as caught:
        mine.load_state_dict(other.state_dict(), strict=strict)
    if name not in ("shifted", "twice"):  # there each of them speaks
        assert "λ_max = 8 and λ_min = -8; got λ_max = 13.3 and λ_min = -5" in str(caught.value)
    same = MADE[name](13.3, -5.0)
    same.load_state_dict(other.state_dict())
    half = {k: v.half() for k, v in other.state_dict().items()}
    same.load_state_dict(half)
    mine.load_state_dict(
        {k: v for k, v in before.items() if not k.endswith("ends")}
    )  # of an older version
    for moved in (
        copy.deepcopy(mine),
        pickle.loads(pickle.dumps(mine)) if name != "objective" else mine,
    ):
        moved.load_state_dict(moved.state_dict())
        with pytest.raises(RuntimeError, match="must have the ends"):
            moved.load_state_dict(other.state_dict(), strict=strict)


def test_the_peak_of_an_adaptive_schedule_stays_where_it_was_learned():
    learned = Adaptive(13.3, -5.0, bins=10, warmup=1)
    learned.observe(torch.full((100,), 6.4), torch.full((100,), 9.0))
    learned.observe(torch.linspace(-4.9, 13.2, 100), torch.ones(100))
    learned.update()
    file = io.BytesIO()
    torch.save(learned.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    with pytest.raises(
        RuntimeError,
        match=r"Adaptive.load_state_dict: argument 'state_dict' must have the ends of this module",
    ):
        Adaptive(8.0, -8.0, bins=10, warmup=1).load_state_dict(state)
    again = Adaptive(13.3, -5.0, bins=10, warmup=1)
    again.load_state_dict(state)
    assert torch.equal(again(T), learned(T))


@pytest.mark.parametrize(
    "inner",
    [lambda: Histogram([1.0, 2.0]), lambda: Tabulated([5.0, 1.0, -3.0])],
    ids=["histogram", "table"],
)
def test_another_shift_is_other_ends(inner):
    with pytest.raises(RuntimeError, match=r"Shifted.load_state_dict: .* must have the ends"):
        Shifted(inner(), 1.0).load_state_dict(Shifted(inner(), 2.0).state_dict())
    Shifted(inner(), 1.0).load_state_dict(Shifted(inner(), 1.0).state_dict())


def test_a_loaded_table_brings_its_ends_through_what_is_made_of_it():
    first, second = Tabulated([6.0, 2.0, -3.0]), Tabulated([9.0, 5.0, -4.0])
    shifted = Shifted(Tabulated([6.0, 2.0, -3.0]), 1.0)
    shifted.load_state_dict(Shifted(second, 1.0).state_dict())
    assert (shifted.logsnr_max, shifted.logsnr_min) == (10.0, -3.0)
    assert shifted.check().inverse(torch.tensor([9.9])) < 0.1
    weighting = MSE(first, Eps(), steps=2)
    weighting.load_state_dict(MSE(second, Eps(), steps=2).state_dict())
    level = torch.tensor([5.0, -4.0], dtype=torch.float64)
    assert torch.equal(weighting(level), MSE(second, Eps(), steps=2)(level))
    assert (weighting(level) > 0).all()
    assert weighting.support() == (5.0, -4.0)


def test_learned_ends_are_loaded_and_fixed_ones_are_not_mixed_with_them():
    learned = Spline(12.0, -4.0, knots=5)
    mine = Spline(knots=5)
    mine.load_state_dict(learned.state_dict())
    assert mine.logsnr_max == pytest.approx(12.0)
    linear = LearnedLinear()
    linear.load_state_dict(LearnedLinear(12.0, -4.0).state_dict())
    assert (linear.logsnr_max, linear.logsnr_min) == pytest.approx((12.0, -4.0))
    fixed = Spline(12.0, -4.0, knots=5, learn_ends=False)
    with pytest.raises(RuntimeError, match="must have the ends"):
        Spline(knots=5, learn_ends=False).load_state_dict(learned.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="must have the ends"):
        Spline(knots=5).load_state_dict(fixed.state_dict(), strict=False)
    Spline(12.0, -4.0, knots=5, learn_ends=False).load_state_dict(
        learned.state_dict(), strict=False
    )
    for other in (
        Spline(12.0, -4.0, knots=6, learn_ends=False),
        Monotone(12.0, -4.0, hidden=5, learn_ends=False),
    ):
        with pytest.raises(RuntimeError, match="log_density"):
            other.load_state_dict(fixed.state_dict())


def test_a_profile_belongs_to_its_edges():
    profile, other = (
        Profile(logsnr_max=13.3, logsnr_min=-5.0, bins=4),
        Profile(logsnr_max=8.0, logsnr_min=-8.0, bins=4),
    )
    with pytest.raises(
        RuntimeError,
        match=(
            r"Profile.load_state_dict: .* λ_max = 8 and λ_min = -8; got λ_max = 13.3 and λ_min = "
            r"-5"
        ),
    ):
        other.load_state_dict(profile.state_dict())
    other.load_state_dict({"sums": profile.sums})


def test_what_has_no_state_takes_no_part():
    assert all(
        not schedule.state_dict() for schedule in (Linear(), Cosine(), Shifted(Cosine(), 1.0))
    )
    objectives = [
        Objective(torch.nn.Linear(1, 1), schedule=schedule)
        for schedule in (Linear(5.0, -5.0), Cosine())
    ]
    objectives[0].load_state_dict(objectives[1].state_dict())
    assert set(Tabulated([2.0, 1.5, -1.0]).state_dict()) == {"table"}
    objectives[0].load_state_dict(MADE["objective"](13.3, -5.0).state_dict(), strict=False)


def test_a_loaded_schedule_is_checked_again():
    schedule, x = Histogram([1.0, 2.0]), torch.zeros(2, 1)
    model = Denoiser(lambda z, t: z, X())
    weighted_elbo(model, x, schedule=schedule)
    schedule.load_state_dict({"mass": torch.tensor([0.5, -0.5], dtype=torch.float64)})
    with pytest.raises(ValueError, match="weighted_elbo: argument 'schedule' must"):
        weighted_elbo(model, x, schedule=schedule)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=2), "sums"),
        (lambda: Adaptive(1.0, -1.0, bins=2), "noted.sums"),
        (lambda: Spline(1.0, -1.0, knots=3), "seen"),
        (lambda: LossSecondMoment(2), "noted"),
    ],
    ids=["profile", "adaptive", "spline", "resampling"],
)
def test_what_one_process_has_seen_moves_and_is_saved_and_is_no_buffer(make, name):
    """DDP sends the buffers of rank 0 to all."""
    module = make()
    owner = module.get_submodule(name.rpartition(".")[0])
    tensor = getattr(owner, name.rpartition(".")[2]).fill_(3.0)
    assert name not in dict(module.named_buffers())
    assert module.state_dict()[name] is not tensor
    assert module.state_dict()[name].data_ptr() == tensor.data_ptr()
    assert module.state_dict(keep_vars=True)[name] is tensor
    assert module.half().state_dict()[name].dtype == torch.float64
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied.state_dict()[name], module.state_dict()[name])
    state = module.state_dict()
    assert copy.deepcopy(module).to("meta").state_dict()[name].device.type == "meta"
    for assign in (False, True):
        other = make()
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other.state_dict()[name], state[name])
        assert name not in dict(other.named_buffers())
    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        make().load_state_dict({k: v for k, v in state.items() if k != name})


@pytest.mark.parametrize("name", [*MADE, "learned ends", "no state"])
def test_torch_finds_every_name_of_a_state(name):
    """As `functional_call` and distributed checkpoints look for them."""
    more = {
        "learned ends": lambda high, low: Spline(high, low),
        "no state": lambda high, low: Linear(high, low),
    }
    schedule = (MADE | more)[name](13.3, -5.0)
    network = torch.nn.Linear(2, 2)
    model = Denoiser(TwoArguments(network), Eps())
    objective = schedule if name == "objective" else Objective(model, schedule=schedule)
    if name == "objective":
        objective.model.network = TwoArguments(network)
    x, t, eps = torch.randn(4, 2), torch.rand(4), torch.randn(4, 2)
    expected = objective(x, t=t, eps=eps)
    state = {k: v.clone() for k, v in objective.state_dict().items()}
    assert torch.equal(functional_call(objective, state, (x,), {"t": t, "eps": eps}), expected)
    set_model_state_dict(objective, get_model_state_dict(objective))
    assert torch.equal(objective(x, t=t, eps=eps), expected)


class TwoArguments(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z, time):
        return self.inner(z)

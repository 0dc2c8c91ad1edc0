"""Values can be copied and pickled, also while the graph of a loss hangs on them."""

import copy
import pickle

import pytest
import torch
from faults.common import Net
from registry import SCHEDULES, TARGETS, WEIGHTINGS, made_of

from vdiff import Denoiser, elbo
from vdiff.decoder import Categorical
from vdiff.gaussian import Step
from vdiff.parameterization import Eps, V
from vdiff.schedule import Cosine, LearnedLinear, Tabulated
from vdiff.variance import LearnedLogVariance
from vdiff.weighting import ELBO, MSE, MinSNR, Sigmoid, loss_factor

LAMBDAS = torch.linspace(-4.0, 4.0, 9)
DATA = torch.randint(0, 4, (6, 2), generator=torch.Generator().manual_seed(0))


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize(
    "again", [pickled, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_a_loss_factor_can_be_copied_and_pickled(row, again):
    for weighting in (WEIGHTINGS["elbo"](), WEIGHTINGS["sigmoid"]()):
        for make in made_of(SCHEDULES).values():
            factor = loss_factor(weighting, make(), row)
            assert torch.equal(again(factor)(LAMBDAS), factor(LAMBDAS))


@pytest.mark.parametrize("again", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_so_can_that_of_a_chain_of_a_product_and_of_a_learned_schedule(again):
    table, learned = Tabulated.cosine_betas(21), LearnedLinear()
    factors = (
        loss_factor(MSE(table, Eps(), steps=20), table, Eps(), steps=20),
        loss_factor(MSE(Cosine(), Eps()) * MinSNR(5.0), Cosine(), Eps()),
        loss_factor(ELBO(), learned, V()),
    )
    for factor in factors:
        torch.testing.assert_close(again(factor)(LAMBDAS), factor(LAMBDAS), rtol=0.0, atol=0.0)


def test_a_factor_made_of_a_function_of_ones_own_works_as_before():
    def weight(logsnr):
        return torch.exp(-0.1 * logsnr)

    assert torch.isfinite(loss_factor(weight, Cosine(), V())(LAMBDAS)).all()


def live(steps=None):
    torch.manual_seed(0)
    net = Net()
    schedule = LearnedLinear(6.0, -4.0)
    bound = elbo(Denoiser(net, V()), DATA, schedule=schedule, decoder=Categorical(4), steps=steps)
    assert bound.total.requires_grad
    assert not bound.total.is_leaf
    return net, schedule, bound


def tensors_of(bound):
    drawn = [] if bound.drawn is None else [*bound.drawn.times, *bound.drawn.terms]
    return [bound.prior, bound.diffusion, bound.reconstruction, *drawn]


@pytest.mark.parametrize("steps", [None, 5])
def test_a_deep_copy_of_a_live_bound_has_its_values_and_no_graph(steps):
    net, _, bound = live(steps)
    made = copy.deepcopy({"bound": bound, "again": bound})
    assert made["bound"] is made["again"]
    copied = made["bound"]
    for one, other in zip(tensors_of(copied), tensors_of(bound), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
        assert one.data_ptr() != other.data_ptr()
    assert copied.parts().keys() == bound.parts().keys()
    if steps is not None:
        assert copied.terms().keys() == bound.terms().keys()
        assert type(copied.drawn) is type(bound.drawn)
        assert copied.drawn.steps == steps
    bound.total.mean().backward()  # the graph of the original is whole
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("steps", [None, 5])
def test_a_shallow_copy_of_a_live_bound_shares_its_graph(steps):
    net, _, bound = live(steps)
    copied = copy.copy(bound)
    assert copied == bound or copied.diffusion is bound.diffusion
    copied.total.mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("steps", [None, 5])
def test_a_live_bound_can_be_pickled(steps):
    _, _, bound = live(steps)
    for one, other in zip(tensors_of(pickled(bound)), tensors_of(bound), strict=True):
        assert torch.equal(one, other)


def test_what_a_bound_is_made_of_can_be_copied_too():
    """The steps that were drawn, a step of a learned schedule, and a prediction with a learned
    variance."""
    _, schedule, bound = live(5)
    drawn = copy.deepcopy(bound.drawn)
    assert torch.equal(drawn.terms[0], bound.drawn.terms[0])
    t = torch.full((6,), 0.6, dtype=torch.float64)
    step = Step(schedule(t) * torch.ones(6, requires_grad=True), schedule.delta(t, 5))
    copied = copy.deepcopy(step)
    assert torch.equal(copied.logsnr_s, step.logsnr_s)
    assert not copied.logsnr_t.requires_grad
    wide = Denoiser(
        Net(), V(), variance=LearnedLogVariance(), output=lambda out: torch.cat([out, out], 1)
    )
    prediction = wide(torch.zeros(6, 2), torch.zeros(6))
    again = copy.deepcopy(prediction)
    assert torch.equal(again.x, prediction.x)
    assert torch.equal(again.variance_output, prediction.variance_output)
    assert not again.output.requires_grad
    assert repr(again.parameterization) == repr(prediction.parameterization)
    assert copy.copy(prediction).output is prediction.output


@pytest.mark.parametrize("again", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("name", ["spline", "monotone"])
@pytest.mark.parametrize("steps", [None, 5])
def test_the_noise_levels_of_a_learned_schedule_can_be_copied(name, steps, again):
    levels = SCHEDULES[name](6.0, -4.0).at(torch.tensor([0.2, 1.0], dtype=torch.float64), steps)
    assert any(part.requires_grad for part in levels[:3] if part is not None)
    copied = again(levels)
    assert type(copied) is type(levels)
    for one, other in zip(copied[:3], levels[:3], strict=True):
        assert one is other is None or torch.equal(one, other)


def test_a_leaf_stays_a_leaf_in_a_deep_copy():
    from vdiff.bound import Bound

    nats = torch.ones(2, requires_grad=True)
    copied = copy.deepcopy(Bound(torch.zeros(2), nats, torch.zeros(2), 1))
    assert copied.diffusion.requires_grad
    assert copied.diffusion.is_leaf
    assert copied.diffusion is not nats


def test_a_weighting_of_a_lambda_says_itself_that_it_cannot_be_pickled():
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(loss_factor(lambda logsnr: torch.ones_like(logsnr), Cosine(), V()))
    assert pickled(loss_factor(Sigmoid(2.0), Cosine(), V()))(LAMBDAS).shape == (9,)

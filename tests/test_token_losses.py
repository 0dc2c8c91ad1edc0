"""`weighted_elbo` and `elbo` over tokens: the same verbs, exact on small distributions."""

import itertools
import math

import pytest
import torch
from registry import PROCESSES
from tokens import NUMBERS, Conditionals, distribution, expected_loss, gauss, pairs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vdiff import Objective, elbo, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.denoiser import logsnr_time
from vdiff.discrete import Masked, TokenDenoiser
from vdiff.errors import InvalidType, InvalidValue
from vdiff.objective import Weighted
from vdiff.reverse import MonteCarlo
from vdiff.schedule import (
    Adaptive,
    Cosine,
    LearnedLinear,
    Linear,
    MultivariateSpline,
    Spline,
    Truncated,
)
from vdiff.schedule.law import Logistic
from vdiff.weighting import Sigmoid

ENDS = Linear(12.0, -12.0)


def of_pairs(kind):
    log_p, x = pairs()
    process = PROCESSES[kind]()
    return TokenDenoiser(Conditionals(log_p, x, process), process, time=logsnr_time), x


def three():
    log_p, x = distribution("masked_K3_L3")
    return TokenDenoiser(Conditionals(log_p, x, Masked(3)), Masked(3)), x


def by_hidden(model, x, t, **masks):
    """E of the loss at every time, over which tokens are masked."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for hidden in itertools.product([False, True], repeat=x.shape[1]):
        eps = torch.where(torch.tensor(hidden), 0.0, 1.0).double().expand(x.shape)
        lost = ENDS.at(t).logsnr.neg().sigmoid()
        p = torch.where(torch.tensor(hidden), lost[:, None], 1 - lost[:, None]).prod(1)
        total += p * weighted_elbo(model, x, schedule=ENDS, t=t, eps=eps, **masks)
    return total


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("steps", [None, 5])
def test_weighted_elbo_is_the_loss_of_the_prediction(kind, steps):
    model, x = of_pairs(kind)
    t = torch.arange(1, 10, dtype=torch.float64) % 5 / 5 + 0.2
    t = t.clamp(max=1.0)
    eps = torch.rand(x.shape, dtype=torch.float64)
    at = ENDS.at(t, steps)
    prediction = model(model.process.corrupt(x, eps, at.logsnr), at.logsnr)
    expected = prediction.loss(x, eps, at, Sigmoid(1.0)(at.logsnr))
    arguments = {"schedule": ENDS, "weighting": Sigmoid(1.0), "steps": steps, "t": t, "eps": eps}
    torch.testing.assert_close(weighted_elbo(model, x, **arguments), expected)


@pytest.mark.parametrize("kind", PROCESSES)
def test_drawn_losses_have_the_expected_mean(kind):
    model, x = of_pairs(kind)
    each, generator = 4000, torch.Generator().manual_seed(0)
    loss = weighted_elbo(
        model, x.repeat(each, 1), schedule=Cosine(12.0, -12.0), generator=generator
    )
    loss = loss.view(each, len(x)).double()
    error = loss.std(0) / each**0.5
    off = (loss.mean(0) - expected_loss(model, x, ENDS, *gauss(80))) / error
    assert off.square().mean() < 2.5


def test_mask_gives_the_conditional_and_absent_the_marginal():
    """Exact conditionals attain −log p(x_M | x_given) and −log p(x_M)."""
    model, x = three()
    log_p = distribution("masked_K3_L3")[0]
    cube = log_p.exp().view(3, 3, 3)
    wanted = {
        "given": -(cube / cube.sum((1, 2), keepdim=True)).log().flatten(),
        "absent": -cube.sum(0).log().repeat(3, 1, 1).flatten(),
    }
    modelled = torch.tensor([False, True, True])
    masks = {"given": {"mask": modelled}, "absent": {"absent": ~modelled}}
    for name, expected in wanted.items():
        t, weights = gauss(60)
        losses = by_hidden(model, x.repeat(60, 1), t.repeat_interleave(len(x)), **masks[name])
        total = (weights[:, None] * losses.view(60, len(x))).sum(0)
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [None, 8])
@pytest.mark.parametrize("kind", PROCESSES)
def test_bound_has_three_parts_and_bits_per_token(kind, steps):
    model, x = of_pairs(kind)
    draws = 8 if steps else 3
    bound = elbo(model, x, schedule=ENDS, steps=steps, draws=draws)
    close = torch.testing.assert_close
    close(bound.prior, model.process.prior(x, -12.0))
    close(bound.reconstruction, model.process.reconstruction(x, 12.0))
    close(bound.bits_per_token, bound.total / (2 * math.log(2)))
    assert bound.dims == 2
    if steps:
        assert set(bound.terms()) == {f"L_{i}" for i in range(10)}


def test_bound_of_modelled_tokens():
    model, x = three()
    mask = torch.tensor([True, False, True])
    bound = elbo(model, x, schedule=ENDS, mask=mask)
    assert bound.dims.tolist() == [2] * 27
    torch.testing.assert_close(bound.prior, model.process.prior(x[:, ::2], -12.0))
    both = elbo(model, x, schedule=ENDS, mask=mask, absent=torch.tensor([True, False, False]))
    assert both.dims.tolist() == [1] * 27


def test_bounds_of_all_values_sum_to_a_probability():
    """A bound is of a distribution: Σ exp(−bound) is at most 1 for any network."""
    x = pairs()[1]
    for kind, make in PROCESSES.items():
        process = make()
        torch.manual_seed(0)
        network = nn.Embedding(process.states, process.vocabulary, dtype=torch.float64)
        model = TokenDenoiser(network, process)
        between = expected_loss(model, x, Linear(4.0, -4.0), *gauss(40)).detach()
        total = between + process.prior(x, -4.0) + process.reconstruction(x, 4.0)
        assert (-total).exp().sum() < 1, kind
        if kind == "mask":
            assert (-between).exp().sum() > (-total).exp().sum()


def test_a_network_is_trained():
    torch.manual_seed(0)
    log_p, x = pairs()
    network = nn.Sequential(
        nn.Embedding(4, 16), nn.Flatten(), nn.Linear(32, 6), nn.Unflatten(1, (2, 3))
    )
    model = TokenDenoiser(network, Masked(3))
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    schedule = Truncated(Logistic(scale=1.0), 12.0, -12.0)  # α = 1 − t
    for _ in range(150):
        batch = x[torch.multinomial(log_p.exp(), 256, replacement=True)]
        loss = weighted_elbo(model, batch, schedule=schedule).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        bound = expected_loss(model, x, ENDS, *gauss(60))
    excess = (log_p.exp() * (bound + log_p)).sum()
    assert excess < 0.1 < (log_p.exp() * -log_p).sum()


def test_what_does_not_fit_tokens_is_refused():
    model, x = three()
    with pytest.raises(InvalidValue, match="argument 'decoder' must be left out for tokens"):
        elbo(model, x, schedule=ENDS, decoder=Categorical(3))
    with pytest.raises(InvalidValue, match="argument 'estimator'"):
        elbo(model, x, schedule=ENDS, steps=4, estimator=MonteCarlo())
    loss = Spline(learn_ends=False, follow_variance=False)
    for learned in LearnedLinear(), Spline(), MultivariateSpline([3], learn_ends=False), loss:
        with pytest.raises(InvalidValue, match="no trained parameters"):
            weighted_elbo(model, x, schedule=learned)
        with pytest.raises(InvalidValue, match="no trained parameters"):
            elbo(model, x, schedule=learned)
    with pytest.raises(InvalidValue, match="no trained parameters"):
        weighted_elbo(model, x, schedule=Spline(learn_ends=False), steps=4)
    with pytest.raises(InvalidValue, match="be one time per example"):
        weighted_elbo(model, x, schedule=Spline(learn_ends=False), t=torch.rand(27, 3))
    adaptive = Adaptive(12.0, -12.0, bins=10)
    assert weighted_elbo(model, x, schedule=adaptive).shape == (27,)
    with pytest.raises(InvalidType, match="argument 'x' must be integer tokens"):
        weighted_elbo(model, x.float(), schedule=ENDS)
    with pytest.raises(InvalidValue, match="the mask is no value of the data"):
        weighted_elbo(model, x + 1, schedule=ENDS)
    with pytest.raises(InvalidValue, match="argument 'data'"):
        elbo(model, x + 1, schedule=ENDS)


def test_an_objective_trains_tokens():
    model, x = three()
    objective = Objective(model, schedule=ENDS, loss=Weighted(Sigmoid(1.0), steps=4))
    t, eps = torch.full((27,), 0.5, dtype=torch.float64), torch.rand(27, 3, dtype=torch.float64)
    expected = weighted_elbo(
        model, x, schedule=ENDS, weighting=Sigmoid(1.0), steps=4, t=t, eps=eps
    )
    torch.testing.assert_close(objective(x, t=t, eps=eps), expected)
    assert objective.bound(x).bits_per_token.shape == (27,)
    with pytest.raises(InvalidType, match="integer tokens"):
        objective(x.float())
    with pytest.raises(InvalidValue, match="no trained parameters"):
        Objective(model, schedule=Spline(), loss=Weighted(Sigmoid(1.0)))(x)


def test_bits_per_token_of_the_records():
    log_p = -torch.tensor([r["minus_log_p"] for r in NUMBERS["masked_K3_L3"]]).double()
    model, x = three()
    each, generator = 2000, torch.Generator().manual_seed(1)
    rows = torch.multinomial(log_p.exp(), each, replacement=True, generator=generator)
    bound = elbo(model, x[rows], schedule=ENDS, generator=generator)
    bits = bound.bits_per_token
    entropy = -(log_p.exp() * log_p).sum() / (3 * math.log(2))
    assert abs(bits.mean() - entropy) < 4 * bits.std() / each**0.5


class Float64(TorchDispatchMode):
    """The most numbers of a float64 tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and one.dtype == torch.float64:
                self.most = max(self.most, one.untyped_storage().nbytes() // 8)
        return made


def test_a_masked_loss_makes_no_float64_of_the_logits():
    model = TokenDenoiser(nn.Embedding(101, 100), Masked(100))
    x = torch.randint(0, 100, (4, 6))
    weighted_elbo(model, x, schedule=ENDS)  # checks the schedule
    with Float64() as made:
        weighted_elbo(model, x, schedule=ENDS).sum().backward()
    assert made.most <= 4 * 6

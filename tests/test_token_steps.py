"""Sampling over tokens: exact laws of chains, prompts, and the steps that only tokens have."""

import itertools
from functools import partial

import pytest
import torch
from registry import COUNTED, PROCESSES, TOKEN_STEPS
from tokens import Conditionals, distribution, expected_loss, pairs

from vdiff import Objective, sample, trajectory
from vdiff.denoiser import logsnr_time
from vdiff.discrete import LeaveOneOut, Masked, Posterior, TokenDenoiser, Uniform
from vdiff.discrete._draw import draw, uniform_noise
from vdiff.errors import InvalidValue
from vdiff.gaussian import Step
from vdiff.objective import Weighted
from vdiff.sampling import (
    Counted,
    Guided,
    Tempered,
    ancestral,
    confidence,
    per_sample_generators,
    tau_leaping,
    trailing,
    uniform,
)
from vdiff.schedule import Linear, LogLinear

N = 20_000
SHORT = Linear(3.0, -2.5)  # whose ends matter


class OfFields(Conditionals):
    """Exact conditionals where each token has its own λ, the same in all rows: of all states once
    a call."""

    def marginal(self, z, logsnr):
        alpha = logsnr.sigmoid().view(len(z), -1)
        drawn = self.process.pi(logsnr).view(len(z), -1, self.process.states).expand(*z.shape, -1)
        drawn = (1 - alpha) * drawn.gather(-1, z[..., None])[..., 0]
        return alpha[:, None] * (z[:, None] == self.x) + drawn[:, None]

    def __call__(self, z, logsnr=None):
        states, length = self.process.states, z.shape[1]
        every = torch.tensor(list(itertools.product(range(states), repeat=length)))
        level = torch.zeros(1, dtype=torch.float64) if logsnr is None else logsnr[:1].double()
        assert logsnr is None or (logsnr == logsnr[:1]).all()
        table = self.at(every, level.expand(len(every), *level.shape[1:]))
        return table[(z * states ** torch.arange(length - 1, -1, -1)).sum(1)]


def of_pairs(kind, *, leave_one_out=False):
    log_p, x = pairs()
    process = PROCESSES[kind]()
    network = OfFields(log_p, x, process, leave_one_out)
    target = LeaveOneOut() if leave_one_out else Posterior()
    return TokenDenoiser(network, process, target, time=logsnr_time, field=True)


def three():
    log_p, x = distribution("masked_K3_L3")
    return TokenDenoiser(OfFields(log_p, x, Masked(3)), Masked(3)), log_p, x


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def p_value(made, p, vocabulary=3):
    """Of Pearson's chi-squared, for samples of sequences with probabilities p in order."""
    place = vocabulary ** torch.arange(made.shape[1] - 1, -1, -1)
    counts = torch.bincount((made * place).sum(1), minlength=len(p)).double()
    expected = len(made) * p
    assert counts[p > 0].sum() == len(made)
    terms = ((counts - expected).square() / expected)[p > 0]
    half = torch.tensor([(len(terms) - 1) / 2, terms.sum() / 2], dtype=torch.float64)
    return torch.special.gammaincc(*half).item()


def values_of(process):
    return [value for value in range(process.vocabulary) if value != process.mask]


def chain(process, network, levels):
    """p(z₀) of two tokens over all states, and all states: by Bayes' rule, written anew."""
    pi, alpha = process.pi(levels), levels.sigmoid()
    values = torch.eye(process.states, dtype=torch.float64)[values_of(process)]
    marginal = [a * values + (1 - a) * p for a, p in zip(alpha, pi, strict=True)]  # q(z | x)
    z = torch.tensor(list(itertools.product(range(process.states), repeat=2)))
    each = marginal[0].mean(0)
    law = (each[:, None] * each).flatten()
    for t in range(len(levels) - 1):
        s, stays = t + 1, alpha[t] / alpha[t + 1]
        jump = (1 - alpha[t]) * pi[t] - stays * (1 - alpha[s]) * pi[s]
        kernel = stays * torch.eye(process.states) + jump  # q(z_t | z_s), rows z_s
        joint = marginal[s][..., None] * kernel  # x, z_s, z_t
        reverse = torch.nan_to_num(joint / marginal[t][:, None])
        p_x = network.at(z, levels[t].expand(len(z))).exp()[..., values_of(process)]
        p_s = torch.einsum("nix,xsni->nis", p_x, reverse[:, :, z])
        law = law @ (p_s[:, 0, :, None] * p_s[:, 1, None]).flatten(1)
    return law, z


def decoded(law, z, network, level):
    """The distribution of x for the network's p(x | z₀)."""
    p = network.at(z, level.expand(len(z))).exp()[..., values_of(network.process)]
    return law @ (p[:, 0, :, None] * p[:, 1, None]).flatten(1)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("kind", PROCESSES)
def test_samples_are_those_of_the_chain(kind, leave_one_out):
    """Also far from the data's distribution: three steps between ends with some noise and some
    signal."""
    model = of_pairs(kind, leave_one_out=leave_one_out)
    exact = Conditionals(*pairs(), model.process)
    levels = uniform(SHORT, 3)
    p = decoded(*chain(model.process, exact, levels), exact, levels[-1])
    torch.testing.assert_close(p.sum(), torch.ones_like(p[0]))
    made = sample(model, (N, 2), schedule=SHORT, steps=3, generator=seeded())
    assert p_value(made, p) > 1e-3
    assert p_value(made, pairs()[0].exp()) < 1e-3


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_bound_is_of_this_chain(kind):
    """−log p(x) of its start, its steps and the process's own decoder is below every bound."""
    (log_p, x), process = pairs(), PROCESSES[kind]()
    exact, steps = Conditionals(log_p, x, process), 5
    model = TokenDenoiser(exact, process, time=logsnr_time)
    law, z = chain(process, exact, uniform(SHORT, steps))
    likelihood = process.log_likelihood(z, torch.full((len(z),), 3.0)).exp()
    likelihood = likelihood[..., values_of(process)]
    share = likelihood / likelihood.sum(-1, keepdim=True)
    nll = -(law @ (share[:, 0, :, None] * share[:, 1, None]).flatten(1)).log()
    t, weights = (torch.arange(steps) + 1) / steps, torch.full((steps,), 1 / steps)
    between = expected_loss(model, x, SHORT, t.double(), weights, steps=steps)
    bound = between + process.prior(x, -2.5) + process.reconstruction(x, 3.0)
    assert (bound > nll).all()
    assert (log_p.exp() * (bound - nll)).sum() < 0.3


@pytest.mark.parametrize("kind", PROCESSES)
def test_many_steps_give_the_data(kind):
    made = sample(of_pairs(kind), (N, 2), steps=150, generator=seeded())
    assert p_value(made, pairs()[0].exp()) > 1e-3


def test_many_steps_of_masks_give_the_data():
    model, log_p, _ = three()
    made = sample(model, (N, 3), steps=100, generator=seeded())
    assert made.dtype == torch.long
    assert p_value(made, log_p.exp()) > 1e-3


def test_one_token_after_another_gives_the_data():
    model, log_p, _ = three()
    order = torch.tensor([2, 0, 1])
    levels = torch.where(torch.arange(4)[:, None, None] > order, 20.0, -20.0)
    made = sample(model, (N, 3), levels=levels, generator=seeded())
    assert p_value(made, log_p.exp()) > 1e-3
    assert [(z[0] == 3).tolist() for z, _ in trajectory(model, (1, 3), levels=levels)] == [
        [True] * 3, [True, False, True], [True, False, False], [False] * 3,
    ]  # fmt: skip


def test_masks_that_are_left_are_drawn_from_the_network():
    """From one level, all tokens: each on its own."""
    model, log_p, x = three()
    made = sample(model, (N, 3), levels=[-9.0], generator=seeded())
    each = torch.stack([log_p.exp() @ (x == value).double() for value in range(3)])
    assert p_value(made, each[x, torch.arange(3)].prod(1)) > 1e-3


@pytest.mark.parametrize("kind", ["mask", "uniform", "gidd"])
def test_a_prompt_stays_and_the_rest_follows_it(kind):
    log_p, x = pairs()
    model, mask = of_pairs(kind), torch.tensor([True, False])
    for value in range(3):
        prompt = torch.tensor([-7, value]).expand(N, 2)  # what is sampled is not read
        made = sample(model, (N, 2), steps=5, mask=mask, given=prompt, generator=seeded())
        assert (made[:, 1] == value).all()
        rest = torch.where(x[:, 1] == value, log_p.exp(), 0.0)
        assert p_value(made, rest / rest.sum()) > 1e-3


@pytest.mark.parametrize("step", TOKEN_STEPS.values(), ids=TOKEN_STEPS)
@pytest.mark.parametrize("kind", ["mask", "mask of the vocabulary", "any order"])
def test_every_step_leaves_no_mask_and_keeps_the_prompt(kind, step):
    process = (PROCESSES | COUNTED)[kind]()
    model = TokenDenoiser(lambda z: torch.zeros(*z.shape, process.vocabulary), process)
    given, mask = torch.randint(3, (4, 2, 5), generator=seeded()), torch.arange(5) > 1
    options = {"mask": mask.expand(2, 5), "given": given, "step": step, "generator": seeded()}
    states = [z for z, _ in trajectory(model, (4, 2, 5), steps=4, **options)]
    assert all(torch.equal(z[..., :2], given[..., :2]) for z in states)
    assert (states[0][..., 2:] == process.mask).all()
    gone = [(z == process.mask).sum() for z in states]
    assert gone == sorted(gone, reverse=True)
    made = sample(model, (4, 2, 5), steps=4, **options)
    assert torch.equal(made[..., :2], given[..., :2])
    assert not (made == process.mask).any()
    assert 0 <= made.min() <= made.max() < 3


def test_a_prompt_is_in_every_state_and_prediction():
    model, _, _ = three()
    given, mask = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[1, 0, 0], [1, 1, 0]]).bool()
    for z, prediction in trajectory(model, (2, 3), steps=4, mask=mask, given=given):
        assert torch.equal(z[~mask], given[~mask])
        known = prediction.posterior.exp()[~mask]
        assert torch.equal(known, torch.eye(3, dtype=known.dtype)[given[~mask]])


def test_padding_changes_nothing():
    """The rest has its marginal distribution, and padding is 0."""
    (log_p, x), absent = pairs(), torch.tensor([False, True])
    padded = {"absent": absent, "mask": ~absent, "given": torch.full((N, 2), -7)}
    for kind in "mask", "uniform":
        made = sample(of_pairs(kind), (N, 2), steps=5, generator=seeded(), **padded)
        assert (made[:, 1] == 0).all()
        p = torch.stack([log_p.exp()[x[:, 0] == value].sum() for value in range(3)])
        assert p_value(made[:, :1], p) > 1e-3


def test_states_may_be_given():
    model = of_pairs("uniform")
    z = torch.tensor([[2, 1]]).int()
    [(first, _), (last, _)] = trajectory(model, z, levels=[20.0, 21.0], generator=seeded())
    assert first.dtype == torch.long
    assert first.tolist() == last.tolist() == [[2, 1]]
    assert sample(model, z, levels=[20.0], generator=seeded()).tolist() == [[2, 1]]


def test_the_network_is_called_once_a_level():
    counted = Counted(three()[0])
    sample(counted, (2, 3), steps=7)
    assert counted.evaluations == 8
    sample(counted, (2, 3), levels=trailing(LogLinear(), 7))
    assert counted.evaluations == 8 + 7


def test_an_objective_has_its_schedule():
    model = three()[0]
    made = [
        sample(model, (5, 3), schedule=SHORT, steps=3, generator=seeded()),
        sample(Objective(model, schedule=SHORT, loss=Weighted()), (5, 3), steps=3,
               generator=seeded()),
    ]  # fmt: skip
    assert torch.equal(*made)


def test_a_sample_depends_on_its_own_generator():
    model = of_pairs("gidd")
    options = {"steps": 5, "step": tau_leaping}
    made = sample(model, (4, 2), generator=per_sample_generators(0, range(4)), **options)
    alone = sample(model, (1, 2), generator=per_sample_generators(0, [2]), **options)
    assert torch.equal(made[2:3], alone)


def test_a_draw_has_float64_noise():
    """Probabilities below 2⁻²⁴ are drawn where they are due, and 0 never."""
    assert uniform_noise(torch.zeros(1, 1), None).dtype == torch.float64
    log_p = torch.tensor([0.0, 1e-9, 0.0, 1 - 1e-9]).log()

    def drawn(u):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vdiff.discrete._draw.uniform_noise", lambda z, g: u)
            return draw(log_p.expand(len(u), -1), torch.zeros(len(u)), None).tolist()

    u = [0.0, 0.9e-9, 1.1e-9, 0.5, 1 - 2**-53]
    assert drawn(torch.tensor(u, dtype=torch.float64)) == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_leap_is_the_exact_step_to_second_order(kind):
    model = of_pairs(kind)
    z = torch.tensor(list(itertools.product(range(model.process.states), repeat=2)))
    level = torch.full((len(z),), -0.3, dtype=torch.float64)
    now, errors = model(z, level), []
    for delta in 1e-2, 1e-3:
        step = Step(level, torch.full_like(level, delta))
        leap = now.leap(step).exp()
        torch.testing.assert_close(leap.sum(-1), torch.ones_like(leap[..., 0]))
        errors.append((leap - now.reverse(step).exp()).abs().max().item())
    assert errors[0] < 0.1 * 1e-2
    assert 80 < errors[0] / errors[1] < 125


@pytest.mark.parametrize("step", [ancestral, confidence, tau_leaping])
def test_logits_that_are_nan_are_refused_by_each_step(step):
    model = TokenDenoiser(lambda z: torch.full((*z.shape, 3), torch.nan), Masked(3))
    with pytest.raises(InvalidValue, match=r"predict a distribution; got NaN .* in step 1"):
        sample(model, (1, 4), steps=2, step=step)


def test_the_most_confident_come_first():
    """One token a step, in the order of their certainty, each with its likeliest value."""
    sharp = torch.tensor([3.0, 12.0, 6.0, 9.0])
    values = torch.tensor([2, 0, 1, 1])
    network = sharp[:, None] * torch.eye(3)[values]
    model = TokenDenoiser(lambda z: network.expand(len(z), 4, 3), Masked(3))
    path = trajectory(model, (1, 4), steps=4, step=confidence, generator=seeded())
    masked = torch.stack([z[0] == 3 for z, _ in path])
    assert masked.sum(1).tolist() == [4, 3, 2, 1, 0]
    assert [int(i) for i in masked.int().diff(dim=0).argmin(1)] == [1, 3, 2, 0]


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_how_many_are_masked(steps):
    """n (1 − α), of the modelled tokens."""
    model = TokenDenoiser(lambda z: torch.zeros(*z.shape, 3), Masked(3))
    given, mask = torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 3:6] = False
    masks = {"mask": mask, "given": given, "absent": torch.arange(9) == 8}
    path = trajectory(model, (2, 9), steps=steps, step=confidence, **masks)
    n = torch.tensor([8, 5])
    for i, (z, _) in enumerate(path):
        left = ((z == 3) & mask)[:, :8].sum(1)
        assert left.tolist() == (n * (1 - i / steps)).round().tolist()


def test_one_confident_token_a_step_is_close_to_the_data():
    """It is not exact: what is drawn decides the order. Its samples are likelier."""
    model, log_p, x = three()
    made = sample(model, (N, 3), steps=3, step=confidence, generator=seeded())
    place = (made * torch.tensor([9, 3, 1])).sum(1)
    assert torch.equal(x[place], made)
    entropy = -(log_p.exp() * log_p).sum()
    assert -log_p[place].mean() < entropy - 0.05
    random = partial(confidence, randomness=1e6)  # then the order does not depend on the draws
    made = sample(model, (N, 3), steps=3, step=random, generator=seeded())
    assert p_value(made, log_p.exp()) > 1e-3


def test_temperature_and_nucleus():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    model = TokenDenoiser(lambda z: p.log().expand(*z.shape, 3), Masked(3))
    z, level = torch.tensor([[3, 1]]), torch.zeros(1)

    def tempered(*args, **options):
        prediction = Tempered(model, *args, **options)(z, level)
        assert prediction.posterior[0, 1].exp().tolist() == [0, 1, 0]
        return prediction.posterior[0, 0].exp()

    torch.testing.assert_close(tempered(), p)
    torch.testing.assert_close(tempered(0.5), p**2 / (p**2).sum())
    assert tempered(0).tolist() == [1, 0, 0]
    torch.testing.assert_close(tempered(top_p=0.6), torch.tensor([0.625, 0.375, 0.0]).double())
    torch.testing.assert_close(tempered(0.5, top_p=0.6), torch.tensor([1.0, 0, 0]).double())
    assert tempered(top_p=1e-6).tolist() == [1, 0, 0]
    greedy = Tempered(Tempered(model, 2.0, top_p=0.9), 0)
    assert greedy.protocol == {"temperature": "2, top-p 0.9, then 0"}
    assert sample(greedy, (2, 5), steps=3).tolist() == [[0] * 5] * 2


def test_guidance_is_the_same_for_both_posteriors():
    """And it is log p_u + scale (log p_c − log p_u), of which samples are drawn."""
    log_p, x = pairs()
    process = Uniform(3)

    def model(leave_one_out):
        nets = [OfFields(p, x, process, leave_one_out) for p in (log_p, log_p.flip(0))]

        def network(z, time, label):
            a, b = (net(z, time) for net in nets)
            return torch.where(label.view(-1, 1, 1) == 1, a, b)

        target = LeaveOneOut() if leave_one_out else Posterior()
        return TokenDenoiser(network, process, target, time=logsnr_time, field=True)

    z, level, label = torch.tensor([[2, 1]]), torch.tensor([-0.4]).double(), torch.tensor([1])
    made = [
        Guided(model(loo), 2.5, {"label": 0})(z, level, label=label).posterior
        for loo in (False, True)
    ]
    torch.testing.assert_close(*made)
    with_, without = (model(False)(z, level, label=label * i).posterior for i in (1, 0))
    torch.testing.assert_close(made[0], (without + 2.5 * (with_ - without)).log_softmax(-1))
    label = torch.ones(4, dtype=torch.long)
    guided = Guided(model(False), 2.5, {"label": 0})
    assert sample(guided, (4, 2), steps=3, condition={"label": label}).shape == (4, 2)


def test_guidance_leaves_out_what_the_condition_excludes():
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.0, 0.4]]).log()
    model = TokenDenoiser(lambda z, label: rows[label][:, None], Masked(3))
    guided = Guided(model, 3.0, {"label": 1})
    made = guided(torch.tensor([[3]]), torch.zeros(1), label=torch.tensor([0])).posterior[0, 0]
    assert torch.isfinite(made).tolist() == [True, True, False]

"""Exactly k masks: the bound of independent masks for any network and schedule, with less
variance; a mask within the vocabulary."""

import itertools
import math

import pytest
import torch
from tokens import Conditionals, distribution, gauss
from torch import nn

from vdiff import elbo, weighted_elbo
from vdiff.discrete import AnyOrder, Masked, TokenDenoiser
from vdiff.errors import InvalidValue
from vdiff.schedule import Cosine, Linear, LogLinear, PerDimension, Spline
from vdiff.weighting import Sigmoid

LOG_P, X = distribution("masked_K3_L3")
N = 3
ENDS = 20.0, -20.0  # beyond them lies 2e-9 of the bound
ORDERS = torch.tensor(list(itertools.permutations(range(N))))


def exact(process):
    return TokenDenoiser(Conditionals(LOG_P, X, process), process)


def wrong(process):
    """A network that is exact nowhere."""
    generator = torch.Generator().manual_seed(0)
    shape = process.states, process.vocabulary
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return TokenDenoiser(lambda z: weights[z] + 0.5 * weights[z.roll(1, 1)], process)


def integral(model, schedule, **arguments):
    """∫₀¹ E over all orders dt for every x, by a rule on each interval of one k."""
    log_odds = torch.tensor([math.log(2), -math.log(2)])
    cuts = [0.0, *schedule.inverse(log_odds.double()).tolist(), 1.0]
    rules = [gauss(60, low, high) for low, high in itertools.pairwise(cuts)]
    t, weights = (torch.cat(v) for v in zip(*rules, strict=True))
    total = torch.zeros(len(X), dtype=torch.float64)
    for order in ORDERS:
        eps = ((order + 0.5) / N).double().expand(len(X) * len(t), N)
        each = X.repeat_interleave(len(t), 0)
        loss = weighted_elbo(
            model, each, schedule=schedule, t=t.repeat(len(X)), eps=eps, **arguments
        )
        total += (loss.view(len(X), -1) * weights).sum(1) / len(ORDERS)
    return total.detach()


def by_hand(model):
    """n E_k (1/k) Σ_{masked} −log p(x_i | z), written anew."""
    total = torch.zeros(len(X), dtype=torch.float64)
    for k in range(1, N + 1):
        subsets = list(itertools.combinations(range(N), k))
        for subset in subsets:
            z = X.clone()
            z[:, subset] = model.process.mask
            log_p = model(z, torch.zeros(len(X))).posterior.gather(-1, X[..., None])[..., 0]
            total -= log_p[:, subset].sum(1) / k / len(subsets)
    return total


@pytest.mark.parametrize("make", [exact, wrong])
@pytest.mark.parametrize(
    "schedule",
    [LogLinear(*ENDS), Linear(*ENDS), Cosine(*ENDS), Spline(*ENDS).requires_grad_(False)],
)
def test_its_integral_is_the_bound_of_any_order(schedule, make):
    model = make(AnyOrder(3))
    torch.testing.assert_close(integral(model, schedule), by_hand(model), rtol=0, atol=1e-7)
    if make is exact:
        torch.testing.assert_close(by_hand(model), -LOG_P)


def test_a_weighting_weights_each_number_of_masks():
    """w at k is its mean over the α of k."""
    model, weighting = wrong(AnyOrder(3)), Sigmoid(1.0)
    schedules = LogLinear(*ENDS), Cosine(*ENDS)
    first, second = (integral(model, s, weighting=weighting) for s in schedules)
    torch.testing.assert_close(first, second, rtol=1e-7, atol=0)
    assert not torch.allclose(first, integral(model, schedules[0]), rtol=0.1)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_the_number_of_masks_is_that_of_alpha_and_each_set_is_as_likely(n):
    process, rows = AnyOrder(5), 4000
    x = torch.randint(5, (rows, n))
    alpha = torch.rand(rows, dtype=torch.float64)
    logsnr = torch.logit(alpha)
    z = process.corrupt(x, process.noise(x, None, None), logsnr)
    masked = z == process.mask
    assert torch.equal(masked.sum(1), (n * (1 - alpha)).ceil().long().clamp(min=1))
    assert torch.equal(z[~masked], x[~masked])
    expected = masked.sum().item() / n
    deviation = (masked.sum(0) - expected).abs().max()
    assert deviation < 5 * math.sqrt(rows / 4)


def test_tokens_that_do_not_count_are_not_masked_nor_counted():
    process, x = AnyOrder(3), torch.zeros(50, 8, dtype=torch.long)
    mask = torch.arange(8) < torch.arange(50)[:, None] % 9
    noise = process.noise(x, None, None, mask)
    masked = process.corrupt(x, noise, torch.zeros(50)) == process.mask
    assert not (masked & ~mask).any()
    assert torch.equal(masked.sum(1), (mask.sum(1) / 2).ceil().long())


def test_a_prompt_has_the_bound_of_the_rest():
    """With one token given, E over draws is −log p(rest | prompt)."""
    model, mask = exact(AnyOrder(3)), torch.tensor([False, True, True])
    given = torch.zeros(len(X), dtype=torch.float64)
    for j in range(3):
        rows = X[:, 0] == j
        given[rows] = LOG_P[rows].logsumexp(0)
    draws = 4000
    losses = weighted_elbo(model, X.repeat(draws, 1), schedule=LogLinear(), mask=mask)
    losses = losses.view(draws, len(X))
    error = losses.std(0) / math.sqrt(draws)
    assert ((losses.mean(0) - (given - LOG_P)).abs() < 4.5 * error + 1e-5).all()


def chain():
    """The tokens 0000011111 of a Markov chain that keeps its token with probability 0.9, and its
    exact conditionals."""
    x = torch.tensor(list(itertools.product([0, 1], repeat=10)))
    kept = (x[:, 1:] == x[:, :-1]).double()
    log_p = math.log(0.5) + (kept * math.log(0.9) + (1 - kept) * math.log(0.1)).sum(1)
    return log_p, x, torch.tensor([0] * 5 + [1] * 5)


class Table:
    """A network that is computed once for each set of masks of one x."""

    def __init__(self, network, x, mask):
        n, self.mask = len(x), mask
        hidden = torch.tensor(list(itertools.product([0, 1], repeat=n))).bool()
        self.place = 2 ** torch.arange(n - 1, -1, -1)
        self.values = network(torch.where(hidden, mask, x))

    def __call__(self, z):
        return self.values[((z == self.mask) * self.place).sum(1)]


@pytest.mark.parametrize(
    ("process", "draws", "least", "most"),
    [(AnyOrder(2), 1, 8.35, 8.70), (AnyOrder(2), 10, 4.20, 4.38)],
)
def test_variance_of_a_call(process, draws, least, most):
    """Exactly 8.5270 and, one call for each k, 4.2895."""
    log_p, every, x = chain()
    model = TokenDenoiser(Table(Conditionals(log_p, every, process), x, 2), process)
    rows = 40_000
    bound = elbo(
        model, x.expand(rows, -1), schedule=LogLinear(20.0, -20.0), draws=draws,
        t=None if draws > 1 else torch.rand(rows, dtype=torch.float64),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert least < draws * bound.total.var() < most
    error = (bound.total.var() / rows).sqrt()
    assert (bound.total.mean() - 3.83861640).abs() < 4 * error


def test_variance_of_independent_masks_has_no_limit():
    """One mask at t = 1 − α has the weight 1/t and the probability n t: the variance rises with
    the logarithm of where t is cut. It is 21.92 at 2e-6."""
    log_p, every, x = chain()
    table = Table(Conditionals(log_p, every, Masked(2)), x, 2)
    hidden = torch.tensor(list(itertools.product([0, 1], repeat=10))).bool()
    nll = -table.values.gather(-1, x.expand(1024, -1)[..., None])[..., 0]
    total, k = (nll * hidden).sum(1), hidden.sum(1)
    variances = []
    for cut in 1e-4, 2e-6, 1e-8:
        log_t, weights = gauss(200, math.log(cut), 0.0)
        t = log_t.exp()[:, None]
        p = t**k * (1 - t) ** (10 - k)
        mean, square = ((p * (total / t) ** i).sum(1) @ (weights * t[:, 0]) for i in (1, 2))
        variances.append((square - mean**2).item())
    torch.testing.assert_close(variances, [18.0500, 21.8988, 27.1123], rtol=1e-4, atol=0)
    each = (nll[hidden.sum(1) == 1] * hidden[hidden.sum(1) == 1]).square().sum().item()
    torch.testing.assert_close(
        variances[2] - variances[0], each * math.log(1e4), rtol=1e-3, atol=0
    )


def test_what_has_no_any_order_form_is_refused():
    model, x = exact(AnyOrder(3)), X
    with pytest.raises(InvalidValue, match="Masked has a chain"):
        elbo(model, x, schedule=LogLinear(), steps=10)
    with pytest.raises(InvalidValue, match="one λ for an example"):
        weighted_elbo(
            model, x, schedule=PerDimension([LogLinear(), Cosine(15, -15), Linear(15, -15)])
        )


def test_a_mask_within_the_vocabulary():
    """LLaDA's tokenizer has a token for the mask: its logit is ignored, data do not have it."""
    inside, after = Masked(4, mask=1), Masked(3)
    values = torch.tensor([0, 2, 3])
    weights = torch.randn(4, 4, dtype=torch.float64)
    network = nn.Embedding.from_pretrained(weights)
    order = torch.tensor([0, 2, 3, 1])
    moved = nn.Embedding.from_pretrained(weights[order][:, order])
    eps = torch.rand(X.shape, dtype=torch.float64)
    arguments = {"schedule": LogLinear(), "eps": eps, "t": torch.linspace(0.01, 1, len(X))}
    found = elbo(TokenDenoiser(network, inside), values[X], **arguments)
    expected = elbo(TokenDenoiser(moved, after), X, **arguments)
    for part in "prior", "diffusion", "reconstruction":
        torch.testing.assert_close(getattr(found, part), getattr(expected, part))
    with pytest.raises(InvalidValue, match="hold no mask"):
        elbo(TokenDenoiser(network, inside), X, **arguments)
    with pytest.raises(InvalidValue, match="at most 4"):
        Masked(4, mask=5)
    assert repr(inside) == "Masked(4, mask=1)"


def test_what_is_absent_may_be_filled_with_the_mask():
    """Padding is often 0, and so may the mask's id be."""
    model = TokenDenoiser(nn.Embedding(4, 4), Masked(4, mask=0))
    x, absent = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([[0, 0, 1], [0, 1, 1]]).bool()
    bound = elbo(model, x, schedule=LogLinear(), absent=absent)
    assert bound.dims.tolist() == [2, 1]
    assert torch.isfinite(bound.total).all()

"""The T-step chain whole: estimators of its steps, learned variances, the hybrid loss."""

import math

import pytest
import torch
from torch import nn

from vdiff import Denoiser, elbo, hybrid_loss, weighted_elbo
from vdiff.chain import vlb
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.gaussian import Step
from vdiff.nn import MLP
from vdiff.parameterization import Eps, X
from vdiff.prediction import Prediction
from vdiff.profile import Profile
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw, reverse_kl, reverse_log_ratio
from vdiff.schedule import Linear, Tabulated
from vdiff.variance import (
    AnalyticVariance,
    FixedLarge,
    FixedSmall,
    LearnedLogVariance,
    LearnedRange,
    LearnedVariance,
    ReverseVariance,
)

from .reference import gauss3d, gmm1d

SCHEDULE = Linear(6.0, -5.0)
HEADS = [LearnedRange(), LearnedLogVariance(), LearnedVariance()]


class TwoHeads(nn.Module):
    """A network with as many outputs for the variance as for the mean."""

    def __init__(self, dims=2):
        super().__init__()
        self.mean, self.spread = MLP(dims, width=16), MLP(dims, width=16)

    def forward(self, z, logsnr):
        return torch.cat([self.mean(z, logsnr), self.spread(z, logsnr)], 1)


def kernel_by_hand(prediction, x, z, step):
    """log q(z_s | z_t, x) and log p(z_s | z_t) as two normal densities."""
    var_q = step.variance[:, None]
    u = prediction.variance.log_variance_ratio(step, prediction.variance_output)
    u = u if isinstance(u, float) or u.ndim == 2 else u[:, None]
    var_p = var_q * (u.exp() if isinstance(u, torch.Tensor) else math.exp(u))
    q = torch.distributions.Normal(step.mean(z, x), var_q.sqrt())
    return q, torch.distributions.Normal(step.mean(z, prediction.x), var_p.sqrt())


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), *HEADS], ids=repr)
@pytest.mark.parametrize("target", [Eps(), X()], ids=repr)
def test_the_kernel_is_two_normals(variance, target):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    step = Step(
        torch.linspace(-6, 8, 9, dtype=torch.float64),
        torch.linspace(0.05, 2.0, 9, dtype=torch.float64),
    )
    x, eps, noise = draw(9, 3), draw(9, 3), draw(9, 3)
    z = (
        step.logsnr_t.sigmoid().sqrt()[:, None] * x
        + (-step.logsnr_t).sigmoid().sqrt()[:, None] * eps
    )
    head = (
        step.variance.log()[:, None] + draw(9, 3)
        if isinstance(variance, LearnedLogVariance)
        else draw(9, 3)
    )
    prediction = Prediction(
        z, step.logsnr_t, draw(9, 3), target, variance, head if variance.learned else None
    )
    q, p = kernel_by_hand(prediction, x, z, step)
    assert torch.allclose(
        reverse_kl(prediction, x, eps, step),
        torch.distributions.kl_divergence(q, p).sum(1),
        rtol=1e-9,
    )
    z_s = q.mean + q.stddev * noise
    by_hand = (q.log_prob(z_s) - p.log_prob(z_s)).sum(1)
    assert torch.allclose(
        reverse_log_ratio(prediction, x, eps, step, noise), by_hand, rtol=1e-8, atol=1e-9
    )


def test_the_raw_term_is_the_log_ratio_the_derivation_starts_from():
    """log q(z_t | z_s) − log p(z_s | z_t), written out with densities; other means by step, the
    sum lower by the entropy gained."""
    oracle, steps, n = gauss3d(), 5, 200_000
    generator = torch.Generator().manual_seed(1)
    x = oracle.sample(1).expand(n, -1)
    gap, spread = torch.zeros(()), torch.zeros(())
    for i in range(1, steps + 1):
        t = torch.full((n,), i / steps, dtype=torch.float64)
        step = Step(SCHEDULE(t), SCHEDULE.delta(t, steps))
        eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        a, s = step.logsnr_t.sigmoid().sqrt()[:, None], (-step.logsnr_t).sigmoid().sqrt()[:, None]
        z = a * x + s * eps
        prediction = oracle(z, step.logsnr_t)
        state = generator.get_state()
        raw = Raw()(prediction, x, eps, step, generator)
        generator.set_state(state)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        q, p = kernel_by_hand(prediction, x, z, step)
        z_s = q.mean + q.stddev * noise
        scale = a / step.logsnr_s.sigmoid().sqrt()[:, None]
        forward = torch.distributions.Normal(scale * z_s, step.forward_variance.sqrt()[:, None])
        assert torch.allclose(
            raw, (forward.log_prob(z) - p.log_prob(z_s)).sum(1), rtol=1e-7, atol=1e-8
        )
        difference = raw - RaoBlackwell()(prediction, x, eps, step)
        gap, spread = gap + difference.mean(), spread + difference.var() / n
    gained = (
        0.5 * 3 * math.log(torch.sigmoid(torch.tensor(5.0)) / torch.sigmoid(torch.tensor(-6.0)))
    )
    assert abs(gap + gained) < 4 * spread.sqrt()


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=repr)
def test_estimators_agree_in_the_mean_and_not_in_the_variance(variance):
    oracle = gmm1d()

    def model(z, logsnr):
        p = oracle(z, logsnr)
        return Prediction(z, logsnr, 0.9 * p.output, p.parameterization, variance)

    x, steps = oracle.sample(40_000), 20
    t = torch.randint(
        1, steps + 1, (len(x),), generator=torch.Generator().manual_seed(0)
    ) / torch.tensor(steps, dtype=torch.float64)
    eps = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"schedule": SCHEDULE, "decoder": Gaussian(), "steps": steps, "t": t, "eps": eps}
    closed = elbo(model, x, **options).diffusion
    sampled = elbo(
        model, x, **options, estimator=MonteCarlo(), generator=torch.Generator().manual_seed(2)
    ).diffusion
    assert abs((sampled - closed).mean()) < 4 * (sampled - closed).std() / len(x) ** 0.5
    assert sampled.var() > closed.var()
    if isinstance(
        variance, FixedSmall
    ):  # Var_MC = Var_RB + 2 E[K] per step; here each is scaled by T
        assert (sampled.var() - closed.var()).item() == pytest.approx(
            2 * steps * closed.mean().item(), rel=0.1
        )


def test_the_bound_with_the_posteriors_variance_is_the_weighted_loss():
    oracle = gmm1d()
    x = oracle.sample(64)
    t = torch.arange(1, 65, dtype=torch.float64) / 64
    eps = torch.randn(64, 1, dtype=torch.float64)
    bound = elbo(
        oracle, x, schedule=SCHEDULE, decoder=Gaussian(), steps=64, t=t, eps=eps
    ).diffusion
    assert torch.allclose(
        bound, weighted_elbo(oracle, x, schedule=SCHEDULE, steps=64, t=t, eps=eps), rtol=1e-12
    )


def test_gaussian_data_has_the_continuous_bound_at_every_t_with_its_best_variance():
    """And a profile of the model's own error gives that variance, to the width of its bins."""
    oracle = gmm1d().__class__([1.0], [[0.3]], [[0.25]])
    profile = Profile(logsnr_max=6.0, logsnr_min=-5.0, bins=2000)
    centers = profile.centers
    profile.update(centers, oracle.mmse(centers))
    limit = oracle.bound(6.0, -5.0).diffusion.item()
    for steps in (1, 3, 20):
        t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        step = Step(SCHEDULE(t), SCHEDULE.delta(t, steps))
        eps, zero = (
            oracle.mmse(step.logsnr_t).sqrt()[:, None],
            torch.zeros(steps, 1, dtype=torch.float64),
        )
        prediction = Prediction(
            zero, step.logsnr_t, zero, Eps(), AnalyticVariance(profile, dims=1)
        )
        assert reverse_kl(prediction, zero, eps, step).sum().item() == pytest.approx(
            limit, rel=1e-5
        )


def test_the_hybrid_loss_trains_the_mean_by_the_simple_loss_alone():
    torch.manual_seed(0)
    network, table = TwoHeads().double(), Tabulated.linear_betas()
    model = Denoiser(network, Eps(), variance=LearnedRange())
    x, eps = torch.randn(32, 2, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64)
    t = torch.randint(1, 1000, (32,)) / torch.tensor(999.0, dtype=torch.float64)
    options = {"schedule": table, "steps": 999, "t": t, "eps": eps}
    loss = hybrid_loss(model, x, **options)
    prediction = model(*noisy(x, eps, table(t)))
    step = Step(table(t), table.delta(t, 999))
    kl = reverse_kl(prediction, x, eps, step)
    expected = (prediction.eps - eps).square().mean(1) + 0.001 * 999 * kl / 2
    assert torch.allclose(loss, expected, rtol=1e-9)

    def gradients(value):
        return torch.autograd.grad(
            value, [*network.mean.parameters(), *network.spread.parameters()], allow_unused=True
        )

    total = gradients(loss.mean())
    simple = gradients(hybrid_loss(model, x, **options, bound_weight=0.0).mean())
    half = len(list(network.mean.parameters()))
    for with_bound, without in zip(total[:half], simple[:half], strict=True):
        assert torch.allclose(with_bound, without, rtol=1e-9, atol=1e-12)
    bound = gradients(
        (0.001 * 999 * reverse_kl(model(*noisy(x, eps, table(t))), x, eps, step) / 2).mean()
    )
    for mixed, alone in zip(total[half:], bound[half:], strict=True):
        assert torch.allclose(mixed, alone, rtol=1e-9, atol=1e-12)


def noisy(x, eps, logsnr):
    return logsnr.sigmoid().sqrt()[:, None] * x + (-logsnr).sigmoid().sqrt()[:, None] * eps, logsnr


@pytest.mark.parametrize("variance", HEADS, ids=repr)
def test_a_learned_variance_is_trained_by_the_bound_of_its_chain_alone(variance):
    torch.manual_seed(0)
    network = TwoHeads(dims=1)
    model = Denoiser(network, Eps(), variance=variance)
    levels = torch.randint(0, 17, (16, 1))
    elbo(
        model, levels, schedule=SCHEDULE, decoder=Categorical(17), steps=10
    ).total.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.spread.parameters())
    with pytest.raises(
        ValueError,
        match=(
            r"weighted_elbo: argument 'model' must have no learned reverse variance: it would "
            r"get no gradient; got .* hybrid"
        ),
    ):
        weighted_elbo(model, torch.randn(16, 1), schedule=SCHEDULE)
    with pytest.raises(ValueError, match="it would get no gradient"):
        elbo(model, levels, schedule=SCHEDULE, decoder=Categorical(17))
    with torch.no_grad():  # for a validation curve the mean is enough
        assert weighted_elbo(model, torch.randn(16, 1), schedule=SCHEDULE).shape == (16,)


def test_bad_variances_are_named():
    z, logsnr = torch.zeros(4, 2), torch.zeros(4)
    with pytest.raises(
        ValueError,
        match=(
            r"return twice the channels of z, mean and variance, \(4, 4\); got \(4, 2\) \(a "
            r"learned variance needs a second half"
        ),
    ):
        Denoiser(lambda z, t: z, Eps(), variance=LearnedRange())(z, logsnr)
    with pytest.raises(
        ValueError,
        match=(
            r"twice the channels, as with a learned variance: Denoiser\(…, "
            r"variance=LearnedRange\(\)\)"
        ),
    ):
        Denoiser(lambda z, t: torch.cat([z, z], 1), Eps())(z, logsnr)
    with pytest.raises(
        ValueError, match=r"^argument 'variance_output' must come with the prediction; got None"
    ):
        LearnedRange().log_variance_ratio(Step(torch.zeros(4), torch.ones(4)))
    with pytest.raises(
        ValueError,
        match=r"hybrid_loss: argument 'model' must learn its reverse variance; got FixedSmall\(\)",
    ):
        hybrid_loss(Denoiser(lambda z, t: z, Eps()), z, schedule=SCHEDULE, steps=10)
    with pytest.raises(
        ValueError,
        match=(
            r"AnalyticVariance: argument 'profile' must have a finite squared error in every "
            r"bin; got 3 bins without"
        ),
    ):
        AnalyticVariance(Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=3), dims=2)


def test_every_variance_is_here():
    here = {type(v).__name__ for v in [FixedSmall(), FixedLarge(), *HEADS]} | {"AnalyticVariance"}
    import vdiff.variance

    assert here == {
        name
        for name in vdiff.variance.__all__
        if issubclass(getattr(vdiff.variance, name), ReverseVariance)
    } - {"ReverseVariance"}


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_one_term_of_a_chain_of_three_steps_written_out(index):
    """DDPM's term L_i of one example by its densities: n = T + 1 of them with a decoder, the first
    its own, n = T without."""
    schedule, levels, eps = (
        Linear(6.0, -5.0),
        torch.tensor([[0, 3]]),
        torch.tensor([[0.7, -1.2]], dtype=torch.float64),
    )
    decoder = DiscretizedGaussian(5, uses_network=True)
    x = torch.tensor([[-1.0, 0.5]], dtype=torch.float64)  # of five levels from −1 to 1
    level = 6.0 - 11.0 * index / 3
    signal, noise = (1 / (1 + math.exp(-sign * level)) for sign in (1, -1))
    z = math.sqrt(signal) * x + math.sqrt(noise) * eps
    guess, head = 0.3 * z + 0.1, 0.2 * z - 0.1
    clean = (z - math.sqrt(noise) * guess) / math.sqrt(signal)
    model = Denoiser(
        lambda z, logsnr: torch.cat([0.3 * z + 0.1, 0.2 * z - 0.1], 1),
        Eps(),
        variance=LearnedRange(),
    )
    normal, simple = torch.distributions.Normal, (eps - guess).square().sum()
    if index == 0:
        below = normal(clean, math.exp(-3.0)).cdf(torch.stack([x - 0.25, x + 0.25]))
        probability = torch.stack(
            [below[1, 0, 0], below[1, 0, 1] - below[0, 0, 1]]
        )  # the first bin has no lower end
        term = -probability.log().sum()
    else:
        less = level + 11.0 / 3
        signal_s, noise_s = (1 / (1 + math.exp(-sign * less)) for sign in (1, -1))
        share = 1 - math.exp(level - less)
        v = (head + 1) / 2
        log_variance = v * math.log(share * noise) + (1 - v) * math.log(share * noise_s)
        means = [
            math.sqrt(signal / signal_s) * noise_s / noise * z + math.sqrt(signal_s) * share * one
            for one in (x, clean)
        ]
        q, p = (
            normal(means[0], math.sqrt(share * noise_s)),
            normal(means[1], (0.5 * log_variance).exp()),
        )
        term = torch.distributions.kl_divergence(q, p).sum()
    options = {
        "schedule": schedule,
        "steps": 3,
        "t": torch.tensor([index / 3], dtype=torch.float64),
        "eps": eps.float(),
    }
    with_decoder = hybrid_loss(model, levels, decoder=decoder, bound_weight=0.1, **options)
    assert with_decoder.item() == pytest.approx((simple + 0.1 * 4 * term).item() / 2, rel=1e-4)
    bound = vlb(model, levels, decoder=decoder, **options)
    assert (bound.diffusion.item(), bound.reconstruction.item()) == pytest.approx(
        (0.0, 4 * term.item()) if index == 0 else (4 * term.item(), 0.0), rel=1e-4
    )
    assert bound.dims == 2
    assert bound.prior.item() == pytest.approx(
        torch.distributions.kl_divergence(
            normal(
                math.exp(-2.5) * x / math.sqrt(1 + math.exp(-5.0)), (1 + math.exp(-5.0)) ** -0.5
            ),
            normal(0.0, 1.0),
        )
        .sum()
        .item(),
        rel=1e-4,
    )
    if index:
        alone = hybrid_loss(model, x, bound_weight=0.1, **(options | {"eps": eps}))
        assert alone.item() == pytest.approx((simple + 0.1 * 3 * term).item() / 2, rel=1e-9)

"""Tables whose last level is pure noise, λ = −∞: Lin et al., arXiv:2305.08891, and diffusers'
`rescale_betas_zero_snr`."""

import math

import numpy as np
import pytest
import torch
from registry import objective_of
from torch import nn

from vdiff import Denoiser, Objective, elbo, hybrid_loss, sample, weighted_elbo
from vdiff.chain import path_bound, vlb
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.denoiser import ScheduleTime, TableStep
from vdiff.describe import describe
from vdiff.likelihood import compare, evaluate, ode_likelihood
from vdiff.objective import Weighted
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, Score, V, X
from vdiff.recipes import Recipe
from vdiff.resampling import LossSecondMoment
from vdiff.sampling import (
    adams_bashforth,
    ancestral,
    ddim,
    heun,
    invert,
    leading,
    trailing,
    uniform,
)
from vdiff.schedule import Shifted, Tabulated
from vdiff.weighting import MSE, MinSNR, Sigmoid, TruncatedSNR, loss_factor

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
DECODER = DiscretizedGaussian(256)


def rescale_zero_terminal_snr(betas):
    """diffusers' function, as it stands there."""
    alphas = 1.0 - betas
    alphas_cumprod = torch.cumprod(alphas, dim=0)
    alphas_bar_sqrt = alphas_cumprod.sqrt()
    alphas_bar_sqrt_0 = alphas_bar_sqrt[0].clone()
    alphas_bar_sqrt_T = alphas_bar_sqrt[-1].clone()
    alphas_bar_sqrt -= alphas_bar_sqrt_T
    alphas_bar_sqrt *= alphas_bar_sqrt_0 / (alphas_bar_sqrt_0 - alphas_bar_sqrt_T)
    alphas_bar = alphas_bar_sqrt**2
    alphas = alphas_bar[1:] / alphas_bar[:-1]
    alphas = torch.cat([alphas_bar[0:1], alphas])
    return 1 - alphas


THEIRS = rescale_zero_terminal_snr(BETAS)
TABLE = Tabulated.linear_betas(zero_terminal_snr=True)


class Unet(nn.Module):
    """Looks its step up."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.steps = nn.Parameter(torch.randn(1000, 3, generator=generator).to(dtype) / 4)
        self.mix = nn.Parameter(torch.randn(3, 3, generator=generator).to(dtype) / 2)
        self.told = None

    def forward(self, z, step):
        self.told = step
        return torch.tanh(z @ self.mix) + self.steps[step]


def model(parameterization, dtype=torch.float64):
    return Denoiser(Unet(dtype), parameterization, time=TableStep(TABLE, integer=True))


def batch(dtype=torch.float64, n=999):
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(n, 3, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)
    return x, torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)


def written_out(network, parameterization, x, eps, steps):
    """‖o − ô‖² at integer steps of diffusers' table, as a trainer has it."""
    alphas_cumprod = torch.cumprod(1 - THEIRS, 0)
    a = alphas_cumprod[steps].sqrt()[:, None].to(x.dtype)
    s = (1 - alphas_cumprod[steps]).sqrt()[:, None].to(x.dtype)
    target = {"V": a * eps - s * x, "X": x, "Eps": eps, "Flow": eps - x, "Score": -eps / s}[
        type(parameterization).__name__
    ]
    z = a * x + s * eps
    z = z / (a + s) if isinstance(parameterization, Flow) else z
    return (network(z, steps) - target).square().sum(1)


def test_the_table_is_that_of_diffusers():
    assert THEIRS[-1] == 1
    made = (
        Tabulated.from_betas(THEIRS),
        Tabulated.from_alphas_cumprod(torch.cumprod(1 - THEIRS, 0)),
        TABLE,
    )
    made += (
        Tabulated.from_betas(BETAS, zero_terminal_snr=True),
        Tabulated.from_betas(THEIRS, zero_terminal_snr=True),
    )
    for table in made:
        assert (table.table[-1], table.logsnr_min, len(table.table), table.steps) == (
            -math.inf,
            -math.inf,
            1000,
            999,
        )
        torch.testing.assert_close(table.table[:-1], TABLE.table[:-1], rtol=1e-8, atol=1e-8)
        assert table.check() is table
    plain = Tabulated.linear_betas()
    assert TABLE.logsnr_max == pytest.approx(plain.logsnr_max, rel=1e-12)
    signal = torch.sigmoid(Tabulated.cosine_betas(50).table)
    betas = 1 - signal / torch.cat([torch.ones(1), signal[:-1]])
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    cosine = Tabulated.cosine_betas(50, zero_terminal_snr=True)
    torch.testing.assert_close(torch.sigmoid(cosine.table), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [[3.0, -math.inf, -5.0], [-math.inf, 1.0], [math.inf, 1.0, -math.inf], [3.0, math.nan]],
)
def test_only_the_last_level_may_be_pure_noise(wrong):
    with pytest.raises(
        ValueError, match="Tabulated: argument 'logsnr' must be finite, or −∞ at the last level"
    ):
        Tabulated(wrong)
    with pytest.raises(ValueError, match="β = 1 leaves pure noise: it is the last"):
        Tabulated.from_betas([0.1, 1.0, 0.2])
    with pytest.raises(ValueError, match="ᾱ = 0 is pure noise: it is the last"):
        Tabulated.from_alphas_cumprod([0.9, 0.0, 0.0])


def test_a_network_is_told_the_terminal_step():
    levels = TABLE.table[[0, 500, 998, 999]]
    assert TableStep(TABLE)(levels).tolist() == [0, 500, 998, 999]
    assert TableStep(TABLE, integer=True)(levels.float()).tolist() == [0, 500, 998, 999]
    assert ScheduleTime(TABLE)(levels)[-1] == 1
    times = torch.tensor([0.0, 998 / 999, 1.0], dtype=torch.float64)
    assert TABLE(times)[-1] == -math.inf
    torch.testing.assert_close(TABLE(times)[:2], TABLE.table[[0, 998]], rtol=1e-9, atol=0)
    torch.testing.assert_close(TABLE.inverse(TABLE(times)), times, rtol=1e-9, atol=0)
    assert TABLE.density(torch.tensor([-math.inf, 0.0])).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("target", [V(), X(), Eps(), Flow(), Score()], ids=repr)
def test_a_plain_loss_is_the_published_one_at_every_level(target, dtype):
    (x, eps), one = batch(dtype), model(target, dtype)
    steps = torch.arange(1, 1000)
    if isinstance(target, Score):
        x, eps, steps = x[1:], eps[1:], steps[1:]
    t = steps.double() / 999
    options = {
        "schedule": TABLE,
        "weighting": MSE(TABLE, target, steps=999),
        "steps": 999,
        "t": t,
        "eps": eps,
    }
    ours = weighted_elbo(one, x, **options)
    assert torch.equal(one.network.told, steps)
    expected = 0.999 * written_out(one.network, target, x, eps, steps)
    precision = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours, expected, rtol=precision, atol=precision)
    assert ours[-1].item() == pytest.approx(
        expected[-1].item(), rel=1e-12 if dtype == torch.float64 else 1e-5
    )
    gradients = [
        torch.autograd.grad(loss.sum(), list(one.parameters())) for loss in (ours, expected)
    ]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=100 * precision, atol=100 * precision)


def test_the_mean_over_drawn_steps_is_the_mean_over_all():
    (x, eps), one = batch(n=4), model(V())
    objective = Objective(
        one, schedule=TABLE, loss=Weighted(MSE(TABLE, V(), steps=999), steps=999)
    )
    whole = (
        torch.stack(
            [written_out(one.network, V(), x, eps, torch.full((4,), i)) for i in range(1, 1000)]
        ).mean()
        * 0.999
    )
    t = torch.arange(1, 1000, dtype=torch.float64) / 999
    ours = torch.stack([objective(x, t=time.expand(4), eps=eps).mean() for time in t]).mean()
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=0)
    assert torch.isfinite(objective(x)).all()
    few = Objective(one, schedule=TABLE, loss=Weighted(MSE(TABLE, V(), steps=3), steps=3))
    assert torch.isfinite(few(x)).all()


@pytest.mark.parametrize(
    "weighting",
    [
        Sigmoid(2.0),
        MSE(TABLE, V(), steps=999) * MinSNR(5.0),
        lambda logsnr: torch.sigmoid(-logsnr),
    ],
)
def test_other_finite_weights_are_taken(weighting):
    """w·T·expm1(Δ)/2κ² → ½ w T SNR_s for v."""
    (x, eps), one = batch(n=2), model(V())
    t = torch.ones(2, dtype=torch.float64)
    loss = weighted_elbo(one, x, schedule=TABLE, weighting=weighting, steps=999, t=t, eps=eps)
    noise = torch.full((2,), -600.0, dtype=torch.float64)
    factor = 0.5 * weighting(noise) * 999 * TABLE.table[998].exp()
    if not isinstance(weighting, MSE | Sigmoid) and hasattr(weighting, "base"):
        factor = torch.full((2,), 0.999, dtype=torch.float64)
    torch.testing.assert_close(
        loss,
        factor * written_out(one.network, V(), x, eps, torch.full((2,), 999)),
        rtol=1e-9,
        atol=0,
    )
    assert torch.isfinite(loss_factor(weighting, TABLE, V(), steps=999)(TABLE(t))).all()


def test_the_factor_of_a_loop_is_one():
    factor = loss_factor(MSE(TABLE, V(), steps=999), TABLE, V(), steps=999)
    t = torch.arange(1, 1000, dtype=torch.float64) / 999
    torch.testing.assert_close(factor(TABLE(t)), torch.full_like(t, 0.999), rtol=1e-9, atol=0)
    assert MSE(TABLE, V(), steps=999)(TABLE(t)).isfinite().all()


@pytest.mark.parametrize(
    ("target", "weighting"),
    [
        (Eps(), None),
        (Eps(), Sigmoid()),
        (V(), MSE(TABLE, V(), steps=999) * TruncatedSNR()),
        (Score(), None),
    ],
    ids=["ε", "ε, sigmoid", "v, truncated SNR", "score"],
)
def test_an_infinite_weight_is_refused(target, weighting):
    x, eps = batch(n=2)
    options = {} if weighting is None else {"weighting": weighting}
    with pytest.raises(
        ValueError,
        match=(
            r"weighted_elbo: argument 'weighting' must be finite .* at λ = −∞; got an infinite "
            r"weight for"
        ),
    ):
        weighted_elbo(
            model(target), x, schedule=TABLE, steps=999, t=torch.ones(2), eps=eps, **options
        )
    loss = weighted_elbo(
        model(target), x, schedule=TABLE, steps=999, t=torch.full((2,), 0.5), eps=eps, **options
    )
    assert torch.isfinite(loss).all()


def test_what_needs_a_finite_end_refuses_it():
    one, x = model(V()), batch(n=2)[0]
    data = torch.randint(0, 256, (2, 3))
    chain = {"schedule": TABLE, "steps": 999}
    looking = DiscretizedGaussian(256, uses_network=True)
    calls = {
        "elbo": lambda: elbo(one, data, decoder=DECODER, **chain),
        "evaluate": lambda: evaluate(one, data, decoder=DECODER, **chain),
        "compare": lambda: compare(one, model(V()), data, decoder=DECODER, **chain),
        "path_bound": lambda: path_bound(one, data, decoder=DECODER, **chain),
        "vlb": lambda: vlb(one, data, decoder=looking, **chain),
        "hybrid_loss": lambda: hybrid_loss(one, x, bound_weight=0.0, **chain),
        "ode_likelihood": lambda: ode_likelihood(one, x, schedule=TABLE),
        "invert": lambda: invert(one, x, schedule=TABLE),
        "Objective": lambda: objective_of(one, decoder=DECODER, **chain),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError,
            match=f"{name}: argument 'schedule' must have a finite λ_min; got λ = −∞",
        ):
            call()
    with pytest.raises(ValueError, match="must have a finite λ_min"):
        objective_of(one, decoder=DECODER, resampling=LossSecondMoment(999), **chain)
    with pytest.raises(ValueError, match="must have a finite λ_min"):
        elbo(one, data, decoder=DECODER, schedule=Shifted(TABLE, 1.0), steps=999)
    for call in (weighted_elbo, lambda one, x, schedule: Objective(one, schedule=schedule)):
        with pytest.raises(
            ValueError,
            match="argument 'steps' must be given where λ_min is −∞; got None",
        ):
            call(one, x, schedule=TABLE)
    with pytest.warns(UserWarning, match=r"and not t = 0, .* \(a sampler .*trailing"):
        trained = objective_of(
            one, weighting=MSE(TABLE, V(), steps=999), decoder=Categorical(256), **chain
        )
    assert torch.isfinite(trained(data)).all()
    with pytest.raises(ValueError, match="elbo: argument 'schedule' must have a finite λ_min"):
        trained.bound(data)


def test_a_shifted_table_ends_there_too():
    shifted = Shifted(TABLE, -1.0)
    assert (shifted.logsnr_min, shifted.reaches_noise) == (-math.inf, True)
    assert shifted(torch.ones(1)).item() == -math.inf
    assert shifted.check() is shifted
    (x, eps), one = batch(n=2), model(V())
    weighting = MSE(shifted, V(), steps=999)
    loss = weighted_elbo(
        one, x, schedule=shifted, weighting=weighting, steps=999, t=torch.ones(2), eps=eps
    )
    expected = 0.999 * written_out(one.network, V(), x, eps, torch.full((2,), 999))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_samplers_start_there():
    assert trailing(TABLE, 20)[0] == leading(TABLE, 1000)[0] == uniform(TABLE, 3)[0] == -math.inf
    oracle = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [[0.1, 0.1], [0.1, 0.1]])
    z = torch.randn(512, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Exact(nn.Module):
        def forward(self, z, step):
            self.told = step
            if (step == 999).all():
                return -oracle.weights @ oracle.means + 0 * z  # v̂ = −x̂
            return oracle(z, TABLE.table[step]).v

    exact = Denoiser(Exact(), V(), time=TableStep(TABLE, integer=True))
    for step in (ddim, ancestral, adams_bashforth):
        made = sample(
            exact,
            z,
            levels=trailing(TABLE, 50),
            step=step,
            generator=torch.Generator().manual_seed(0),
        )
        assert made.mean(0).tolist() == pytest.approx([0.0, 0.25], abs=0.2)
        assert torch.isfinite(sample(exact, z, schedule=TABLE, steps=9, step=step)).all()
    with pytest.raises(ValueError, match="heun"):
        sample(exact, z, schedule=TABLE, steps=9, step=heun)
    with pytest.raises(ValueError, match="sample: argument 'levels' must start where"):
        sample(model(Eps()), torch.randn(2, 3), schedule=TABLE, steps=3, step=ddim)


def test_a_state_brings_the_end_and_a_description_is_finite():
    table = Tabulated([3.0, 1.0, -2.0])
    table.load_state_dict(Tabulated([3.0, 1.0, -math.inf]).state_dict())
    assert table.reaches_noise
    table.reset_parameters()
    assert not table.reaches_noise
    shifted = Shifted(Tabulated([3.0, 1.0, -math.inf]), 1.0)
    shifted.load_state_dict(Shifted(Tabulated([3.0, 1.0, -math.inf]), 1.0).state_dict())
    described = str(describe(Recipe("v", TABLE, V(), MSE(TABLE, V(), steps=999), steps=999)))
    assert "nan" not in described
    assert np.isfinite(MSE(TABLE, V(), steps=999).peak)
    assert MSE(TABLE, V(), steps=999).check()

"""Steps: their orders, what they have in common, and what they do not depend on."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from registry import ORACLES, TARGETS

from vdiff import Denoiser, Prediction, sample, trajectory
from vdiff.gaussian import Step, alpha, sigma
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.reverse import reverse_mean
from vdiff.sampling import (
    STEPS,
    Clipped,
    Counted,
    Memory,
    adams_bashforth,
    ancestral,
    ddim,
    dpmpp_2m,
    encode,
    few_steps,
    heun,
    leading,
    ode,
    per_sample_generators,
    start,
    trailing,
    uniform,
)
from vdiff.schedule import Cosine, Karras, LearnedLinear, Linear, OptimalTransport, Tabulated
from vdiff.variance import FixedLarge, FixedSmall

GAUSSIAN = Gaussian([0.3], [0.25])
MIXTURE = ORACLES["mixture"]()
PLANE = GaussianMixture(
    [0.2, 0.5, 0.3],
    [[-1.0, 0.4], [0.5, 0.9], [0.3, -1.1]],
    [[0.04, 0.1], [0.09, 0.02], [0.1, 0.3]],
)
VELOCITIES = [TARGETS[name] for name in ("x", "eps", "v", "v of scale ½", "flow")]
ORDER = {"ddim": (ddim, 1), "heun": (heun, 2), "dpmpp_2m": (dpmpp_2m, 2)} | {
    f"adams_bashforth {order} {target!r}": (
        partial(adams_bashforth, order=order, target=target),
        order,
    )
    for order in (1, 2, 3)
    for target in VELOCITIES
}


def noise(n=64, dims=1, seed=0):
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def level(value, n=64):
    return torch.full((n,), float(value), dtype=torch.float64)


def end(model, z, step, schedule, steps):
    *_, (z, _) = trajectory(model, z, schedule=schedule, steps=steps, step=step)
    return z


def transported(data, z, high, low):
    """The exact end of the probability-flow ODE in one dimension, F_high⁻¹(F_low(z)) of q(z), by
    bisection."""

    def cdf(value, logsnr):
        scale = (alpha(logsnr) ** 2 * data.variances + sigma(logsnr) ** 2).sqrt()
        return (
            data.weights[:, None]
            * torch.special.ndtr((value.T - alpha(logsnr) * data.means) / scale)
        ).sum(0)

    wanted = cdf(z, torch.tensor(low, dtype=torch.float64))
    below, above = torch.full_like(z, -9.0), torch.full_like(z, 9.0)
    for _ in range(60):
        middle = 0.5 * (below + above)
        low_side = (cdf(middle, torch.tensor(high, dtype=torch.float64)) < wanted)[:, None]
        below, above = torch.where(low_side, middle, below), torch.where(low_side, above, middle)
    return 0.5 * (below + above)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("name", ORDER)
def test_the_order_of_convergence(name, data):
    """At numbers of steps where the first step, which is of first order, does not count yet."""
    step, order = ORDER[name]
    z, schedule = noise(), Linear(6.0, -5.0)
    exact = transported(data, z, 6.0, -5.0)
    errors = [
        (end(data, z, step, schedule, n + 1) - exact).square().mean().sqrt().item()
        for n in (32, 64)
    ]
    assert errors[0] / errors[1] > 2 ** (order - 0.25)
    if order == 1:
        assert errors[0] / errors[1] < 2**1.25


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_velocity_at_the_data_scale_is_exact_for_gaussian_data_in_one_step(std, order):
    z = noise()
    got = end(
        Gaussian([0.0], [std**2]),
        z,
        partial(adams_bashforth, order=order, target=V(std)),
        Linear(8.0, -8.0),
        2,
    )
    exact = z * math.sqrt(
        (std**2 + math.exp(-8.0))
        / (1 + math.exp(-8.0))
        / ((std**2 * math.exp(-8.0) + 1) / (math.exp(-8.0) + 1))
    )
    torch.testing.assert_close(got, exact, rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("target", [X(), Eps(), Flow()], ids=repr)
def test_a_first_order_exponential_step_is_ddim(target):
    z = noise(dims=2)
    for low, high in ((-9.0, -8.9), (-5.0, 3.0), (2.0, 12.0)):
        one, other = (
            step(PLANE, z, level(low), level(high))
            for step in (partial(adams_bashforth, order=1, target=target), ddim)
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_first_order_step_in_v_is_ddim_but_for_its_second_order():
    z = noise(dims=2)
    gap = [
        (
            adams_bashforth(PLANE, z, level(0.0), level(h), order=1, target=V())
            - ddim(PLANE, z, level(0.0), level(h))
        )
        .abs()
        .max()
        for h in (0.2, 0.1)
    ]
    assert 3.5 < gap[0] / gap[1] < 4.5


def test_the_plain_rule_on_the_rectified_path():
    """Adams–Bashforth of order 3 with equal steps in t = σ/(α + σ): (23 u₀ − 16 u₁ + 5 u₂)/12."""
    schedule, steps = OptimalTransport(9.0, -9.0), 12
    levels = uniform(schedule, steps)
    t = torch.sigmoid(-0.5 * levels)
    y, velocities = noise(dims=2) / (alpha(levels[0]) + sigma(levels[0])), []
    for i, (logsnr, now) in enumerate(zip(levels[:-1], t[:-1], strict=True)):
        prediction = PLANE(y * (alpha(logsnr) + sigma(logsnr)), logsnr.expand(len(y)))
        velocities.insert(0, prediction.eps - prediction.x)
        rule = {0: (1.0,), 1: (1.5, -0.5)}.get(i, (23 / 12, -16 / 12, 5 / 12))
        y = y + (t[i + 1] - now) * sum(w * u for w, u in zip(rule, velocities, strict=False))
    got = end(PLANE, noise(dims=2), partial(adams_bashforth, target=Flow()), schedule, steps)
    torch.testing.assert_close(
        got, y * (alpha(levels[-1]) + sigma(levels[-1])), rtol=1e-10, atol=1e-12
    )


def test_ddim_over_two_half_steps_and_over_one():
    """The two differ by the square of the step; on data that is one point, whose x̂ does not move,
    not at all."""
    z = noise(dims=2)

    def gap(data, h):
        half = ddim(data, ddim(data, z, level(0.0), level(h / 2)), level(h / 2), level(h))
        return (half - ddim(data, z, level(0.0), level(h))).abs().max()

    assert 3.6 < gap(PLANE, 0.2) / gap(PLANE, 0.1) < 4.4
    point = GaussianMixture([1.0], [[0.7, -0.2]], [[0.0, 0.0]])
    assert gap(point, 5.0) < 1e-14


def test_eta_one_is_ancestral_sampling_and_eta_zero_draws_nothing():
    z, generator = noise(dims=2), torch.Generator()
    for low, high in ((-8.0, -7.9), (-1.0, 0.5), (-5.0, 13.0)):
        one = ddim(
            PLANE, z, level(low), level(high), Memory((), generator.manual_seed(1)), eta=1.0
        )
        torch.testing.assert_close(
            one,
            ancestral(PLANE, z, level(low), level(high), Memory((), generator.manual_seed(1))),
            rtol=1e-9,
            atol=1e-12,
        )
    before = generator.manual_seed(1).get_state()
    for step in (ddim, heun, dpmpp_2m, adams_bashforth):
        step(PLANE, z, level(0.0), level(1.0), Memory((), generator))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_the_moments_of_ddim_with_some_noise(eta):
    """Its mean is α_s x̂ + σ_s √(1 − η²c) ε̂ and its spread η √c σ_s."""
    z, t, s = (
        torch.full((200_000, 1), 0.4, dtype=torch.float64),
        level(-1.0, 200_000),
        level(0.6, 200_000),
    )
    now = MIXTURE(z[:1], t[:1])
    c = 1 - math.exp(-1.6)
    mean = alpha(s[:1]) * now.x + sigma(s[:1]) * math.sqrt(1 - eta**2 * c) * now.eps
    spread = eta * math.sqrt(c) * sigma(s[:1]).item()
    drawn = ddim(MIXTURE, z, t, s, Memory((), torch.Generator().manual_seed(0)), eta=eta)
    assert abs(drawn.mean() - mean).item() < 4 * spread / math.sqrt(len(z))
    assert abs(drawn.std() / spread - 1).item() < 4 / math.sqrt(2 * len(z))


def test_ancestral_sampling_takes_every_reverse_variance():
    z, t, s = noise(), level(-1.0), level(0.5)
    own, small, large = (
        ancestral(
            MIXTURE, z, t, s, Memory((), torch.Generator().manual_seed(0)), variance=variance
        )
        for variance in (None, FixedSmall(), FixedLarge())
    )
    mean = reverse_mean(MIXTURE(z, t), Step(t, s - t))
    assert torch.equal(own, small)
    ratio = torch.full_like(z, math.sqrt((1 + math.exp(0.5)) / (1 + math.exp(-1.0))))  # σ_t/σ_s
    torch.testing.assert_close((large - mean) / (small - mean), ratio, rtol=1e-9, atol=0.0)


EVERY = STEPS | {
    "ancestral, large variance": partial(ancestral, variance=FixedLarge()),
    "ddim, some noise": partial(ddim, eta=0.5),
    "adams_bashforth in x": partial(adams_bashforth, target=X()),
    "adams_bashforth in v": partial(adams_bashforth, target=V(0.5), order=2),
    "adams_bashforth in ε": partial(adams_bashforth, target=Eps()),
}


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_the_same_samples_whatever_the_model_predicts(step):
    """The same (x̂, ε̂) in every parameterization, from the same noise."""

    def made(model):
        generator = torch.Generator().manual_seed(1)
        return sample(
            model,
            noise(dims=2),
            schedule=Cosine(9.0, -9.0),
            steps=12,
            step=step,
            generator=generator,
        )

    reference = made(PLANE)
    for target in TARGETS.values():

        def as_target(z, logsnr, target=target):
            return Prediction(z, logsnr, PLANE(z, logsnr).read(target), target)

        torch.testing.assert_close(made(as_target), reference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_the_same_samples_whatever_the_model_was_trained_with(step):
    """A model is given λ alone: nothing of a training schedule reaches a sampler."""
    network = torch.nn.Linear(2, 2).double()

    class Told(torch.nn.Module):
        def forward(self, z, time):
            return network(z) * time[:, None]

    z, made = noise(dims=2), []
    for schedule in (
        Linear(9.0, -9.0),
        Cosine(),
        LearnedLinear(8.0, -8.0),
        Tabulated.linear_betas(),
    ):
        model = Denoiser(Told(), V(), time=lambda logsnr: torch.sigmoid(logsnr))
        assert (
            len(list(trajectory(model, z, schedule=schedule, steps=4, step=ddim))) == 4
        )  # any schedule is a grid
        generator = torch.Generator().manual_seed(1)
        made.append(sample(model, z, schedule=Karras(), steps=9, step=step, generator=generator))
    assert all(torch.equal(one, made[0]) for one in made)


@pytest.mark.parametrize(
    "schedule",
    [Karras(), Cosine(), few_steps(), OptimalTransport(), Tabulated.cosine_betas()],
    ids=lambda s: type(s).__name__,
)
def test_any_grid_leads_to_the_same_end(schedule):
    z = noise(dims=2)
    levels = uniform(schedule, 200)
    *_, (got, _) = trajectory(PLANE, z, levels=levels, step=adams_bashforth)
    exact = ode(PLANE, z, levels[:1].expand(64), levels[-1:].expand(64), rtol=1e-9, atol=1e-9)
    assert (got - exact).square().mean().sqrt() < 1e-3


def test_grids():
    schedule = Linear(10.0, -10.0)
    assert uniform(schedule, 1).tolist() == [-10.0]
    assert uniform(schedule, 5).tolist() == [-10.0, -5.0, 0.0, 5.0, 10.0]
    assert trailing(schedule, 5).tolist() == pytest.approx([-10.0, -6.0, -2.0, 2.0, 6.0])
    assert leading(schedule, 5).tolist() == pytest.approx([-6.0, -2.0, 2.0, 6.0, 10.0])
    torch.testing.assert_close(
        torch.exp(-0.5 * uniform(Karras(), 18)), Karras().sigmas(18), rtol=1e-12, atol=0.0
    )
    table = Tabulated.linear_betas()
    torch.testing.assert_close(uniform(table, 1000), table.table.flip(0), rtol=1e-12, atol=1e-12)


def test_the_step_to_data_is_the_exact_limit():
    """x̂ at the last level is where a deterministic step to λ → ∞ leads."""
    z, n = noise(dims=2), 64
    *_, (_, last) = trajectory(PLANE, z, schedule=Linear(2.0, -8.0), steps=5, step=ddim)
    for target in VELOCITIES:
        seen = Prediction(last.z, last.logsnr, last.read(target), target)
        there = ddim(
            lambda z, logsnr, seen=seen: seen,
            last.z,
            last.logsnr,
            torch.full((n,), torch.inf, dtype=torch.float64),
        )
        torch.testing.assert_close(there, last.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("step", "evaluations"),
    [(ancestral, 18), (ddim, 18), (dpmpp_2m, 18), (adams_bashforth, 18), (heun, 35)],
)
def test_steps_count_levels_and_evaluations_are_counted_apart(step, evaluations):
    model = Counted(PLANE)
    visited = list(trajectory(model, noise(dims=2), schedule=Karras(), steps=18, step=step))
    assert (len(visited), model.evaluations) == (18, evaluations)
    assert [p.logsnr[0].item() for _, p in visited] == pytest.approx(
        uniform(Karras(), 18).tolist()
    )


def test_one_step_is_the_mean_of_the_data():
    one = sample(PLANE, noise(dims=2), schedule=Linear(10.0, -20.0), steps=1)
    torch.testing.assert_close(
        one, (PLANE.weights @ PLANE.means).expand(64, 2), rtol=0.0, atol=5e-4
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_is_the_same_in_any_batch(name):
    """An adaptive solver's steps are the batch's: of those a fixed one is asked."""
    options = {
        "schedule": Karras(),
        "steps": 10,
        "step": EVERY[name] if name != "ode" else partial(ode, method="rk4"),
    }
    together = sample(
        PLANE,
        start((2,), per_sample_generators(7, range(9)), torch.float64),
        generator=per_sample_generators(7, range(9)),
        **options,
    )
    apart = [
        sample(
            PLANE,
            start((2,), per_sample_generators(7, numbers), torch.float64),
            generator=per_sample_generators(7, numbers),
            **options,
        )
        for numbers in (range(4), range(4, 5), range(5, 9))
    ]
    # each sample's noise is its own to the last bit; sums over a batch of another size are rounded
    # in another order
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(
        together,
        sample(
            PLANE,
            start((2,), per_sample_generators(8, range(9)), torch.float64),
            generator=per_sample_generators(8, range(9)),
            **options,
        ),
    )


def test_noise_of_its_own_goes_to_each_sample_at_each_step():
    seen = []

    def step(model, z, logsnr_t, logsnr_s, memory):
        there = ancestral(model, z, logsnr_t, logsnr_s, memory)
        seen.append(there - z)
        return there

    z = torch.zeros(3, 2, dtype=torch.float64)
    sample(
        PLANE,
        z,
        schedule=Linear(),
        steps=4,
        step=step,
        generator=per_sample_generators(0, [0, 1, 0]),
    )
    assert all(
        torch.allclose(moved[0], moved[2]) and not torch.allclose(moved[0], moved[1])
        for moved in seen
    )
    assert not torch.allclose(seen[0][0], seen[1][0])


def test_an_adaptive_solver_moves_a_sample_as_its_batch_does_within_its_own_error():
    """About 1e-5 on this mixture, at the default tolerances, and rarely much more; none where they
    are tight."""
    z, moved = noise(dims=2), {}
    for tolerance, method in ((1e-5, "dopri5"), (1e-9, "dopri8")):
        options = {
            "schedule": few_steps(),
            "steps": 2,
            "step": partial(ode, method=method, rtol=tolerance, atol=tolerance),
        }
        alone = torch.cat([sample(PLANE, one[None], **options) for one in z[:6]])
        moved[tolerance] = (sample(PLANE, z, **options)[:6] - alone).abs().max().item()
    assert 1e-6 < moved[1e-5] < 1.5e-4
    assert moved[1e-9] < 1e-7


def test_encoding_returns_to_its_start():
    z0, schedule, step = (
        noise(dims=2, seed=3),
        Linear(9.0, -9.0),
        partial(ode, rtol=1e-9, atol=1e-9),
    )
    z1 = encode(PLANE, z0, schedule=schedule, step=step)
    torch.testing.assert_close(step(PLANE, z1, level(-9.0), level(9.0)), z0, rtol=0.0, atol=1e-6)
    assert (z1 - z0).abs().max() > 0.1


def test_a_solver_stays_between_its_ends():
    """torchdiffeq's own first guess is a step far beyond the other end where the velocity in λ is
    small."""
    seen = []

    def model(z, logsnr):
        seen.append(logsnr[0].item())
        return PLANE(z, logsnr)

    ode(model, noise(dims=2), level(-10.0), level(10.0))
    assert -10.0 <= min(seen) < -9.99
    assert 9.99 < max(seen) <= 10.0


@pytest.mark.parametrize("method", ["rk4", "dopri5", "midpoint", "heun3"])
def test_any_solver_is_a_step(method):
    z = noise(dims=2)
    *_, (got, _) = trajectory(
        PLANE, z, schedule=few_steps(9.0, -9.0), steps=40, step=partial(ode, method=method)
    )
    exact = ode(PLANE, z, level(-9.0), level(9.0), rtol=1e-9, atol=1e-9)
    assert (got - exact).square().mean().sqrt() < 5e-3


def test_the_past_is_handed_to_a_step_newest_last():
    handed = []

    def step(model, z, logsnr_t, logsnr_s, memory):
        handed.append([p.logsnr[0].item() for p in memory.past])
        return ddim(model, z, logsnr_t, logsnr_s)

    sample(PLANE, noise(dims=2), schedule=Linear(10.0, -10.0), steps=7, step=step)
    levels = uniform(Linear(10.0, -10.0), 7).tolist()
    assert handed == [levels[max(0, i - 4) : i] for i in range(6)]


def test_a_half_precision_start_is_sampled_in_float32():
    made = sample(PLANE, noise(dims=2).to(torch.bfloat16), schedule=Linear(), steps=4, step=ddim)
    assert made.dtype == torch.float32


def test_levels_are_any_array_of_numbers():
    z, wanted = (
        noise(dims=2),
        sample(
            PLANE,
            noise(dims=2),
            levels=torch.tensor([-9.1, -0.3, 4.7], dtype=torch.float64),
            step=ddim,
        ),
    )
    for levels in ([-9.1, -0.3, 4.7], (-9.1, -0.3, 4.7), np.array([-9.1, -0.3, 4.7])):
        assert torch.equal(sample(PLANE, z, levels=levels, step=ddim), wanted)


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_what_a_trajectory_yields_can_be_changed(step):
    """Neither the next steps nor the user's own noise see it."""

    class Kept(torch.nn.Module):
        def forward(self, z, logsnr):
            self.last = PLANE(z, logsnr)
            return self.last

    model, z = Kept(), noise(dims=2)
    options = {"schedule": Cosine(9.0, -9.0), "steps": 6, "step": step}
    wanted = sample(PLANE, z, generator=torch.Generator().manual_seed(1), **options)
    for state, prediction in trajectory(
        model, z, generator=torch.Generator().manual_seed(1), **options
    ):
        made = prediction.x.clone()
        for tensor in (state, prediction.z, prediction.out, prediction.logsnr):
            tensor.zero_()
        assert model.last.out.abs().min() > 0
    assert torch.equal(z, noise(dims=2))
    path = trajectory(PLANE, z, generator=torch.Generator().manual_seed(1), **options)
    z.zero_()
    *_, (_, last) = path
    assert torch.equal(last.x, wanted)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Counted, Clipped, lambda model: Clipped(Counted(model))]
)
def test_a_model_is_in_evaluation_mode_meanwhile(wrap):
    """As in an evaluation: dropout is off, and on again afterwards, also between the levels of a
    trajectory."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).double()

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, z, time):
            return self.network(z)

    model = wrap(Denoiser(Told(), V()))
    z, options = noise(dims=2), {"schedule": Linear(9.0, -9.0), "steps": 4, "step": heun}
    network.eval()
    wanted, back = sample(model, z, **options), encode(model, z, schedule=Linear(9.0, -9.0))
    network.train()
    for _ in range(2):
        assert torch.equal(sample(model, z, **options), wanted)
    assert torch.equal(encode(model, z, schedule=Linear(9.0, -9.0)), back)
    for _ in trajectory(model, z, **options):
        assert network[1].training
    assert all(module.training for module in network.modules())


def test_steps_that_need_no_driver():
    z = noise(dims=2)
    by_hand = z
    for t, s in itertools.pairwise(uniform(Karras(), 8)):
        by_hand = heun(PLANE, by_hand, t.expand(64), s.expand(64))
    torch.testing.assert_close(by_hand, end(PLANE, z, heun, Karras(), 8), rtol=1e-12, atol=0.0)

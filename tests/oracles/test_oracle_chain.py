"""The reverse kernel of a chain: its KL with any variance, its one-sample estimate, the bounds
that the best variances give."""

from functools import partial

import torch
from oracle_nodes import gauss_hermite, mmse, nodes, nodes_given
from oracle_records import assert_meets, denoiser, of, oracle, schedule_of, vector

from vdiff import Prediction, elbo
from vdiff.chain import path_bound
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step, diffuse, prior_kl
from vdiff.likelihood.importance import chain_log_prob
from vdiff.parameterization import Eps
from vdiff.reverse import reverse_kl, reverse_log_ratio, reverse_mean, reverse_sample
from vdiff.schedule import Linear
from vdiff.variance import FixedLarge, FixedSmall, LearnedRange, ReverseVariance


class Given(ReverseVariance):
    """u as a function of the step."""

    def __init__(self, excess):
        self.excess_of = excess

    def log_variance_ratio(self, step, variance_output=None):
        return self.excess_of(step)


def with_variance(model, variance):
    """The same model with another reverse variance."""

    def changed(z, logsnr):
        p = model(z, logsnr)
        return Prediction(z, logsnr, p.output, p.parameterization, variance)

    return changed


def steps_of(schedule, steps):
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return Step(schedule(t), schedule.delta(t, steps))


def kl_of(squared_error, step, variance, variance_output=None):
    """The kernel's KL in one dimension where (ε − ε̂)² is given: ε = e, ε̂ = 0."""
    eps, zero = squared_error.sqrt()[:, None], torch.zeros(len(squared_error), 1)
    return reverse_kl(
        Prediction(zero, step.logsnr_t, zero, Eps(), variance, variance_output), zero, eps, step
    )


@of("learned_range_kl_per_dim")
def test_learned_range(record):
    p = record["params"]
    step = Step(vector([p["lam_t"]]), vector([p["lam_s"]]) - p["lam_t"])
    v, e2 = vector([[p["v"]]]).requires_grad_(), vector([p["e2"]])
    kl = kl_of(e2, step, LearnedRange(), 2 * v - 1)
    (slope,) = torch.autograd.grad(kl.sum(), v)
    best = torch.log1p(step.snr_gain * e2) / step.log_variance_ratio
    u = LearnedRange().log_variance_ratio(step, 2 * best[:, None] - 1)
    assert torch.allclose(
        kl_of(e2, step, LearnedRange(), 2 * best[:, None] - 1), 0.5 * u[:, 0], rtol=1e-13
    )  # at its least, K = u/2

    n, mass = gauss_hermite(5)
    zero, eps = torch.zeros(5, 1), e2.sqrt().expand(5, 1)
    many = Step(step.logsnr_t.expand(5), step.delta.expand(5))
    ratio = reverse_log_ratio(
        Prediction(zero, many.logsnr_t, zero, Eps(), LearnedRange(), (2 * v - 1).expand(5, 1)),
        zero,
        eps,
        many,
        n[:, None],
    )
    assert torch.allclose(mass @ ratio, kl, rtol=1e-12)
    assert_meets(
        record,
        {
            "kl": kl.detach(),
            "dkl_dv": slope,
            "v_star": best,
            "mc_cond_var": (mass @ (ratio - kl).square()).detach(),
        },
    )


@of("L_T_optimal_fixed_variance")
def test_the_best_variance_by_step(record):
    schedule, case = schedule_of(record), record["case"]
    best = Given(lambda step: torch.log1p(step.snr_gain * mmse(case, step.logsnr_t)))
    got = {}
    for steps in record["value"]:
        step = steps_of(schedule, int(steps))
        got[steps] = kl_of(mmse(case, step.logsnr_t), step, best).sum()
    assert_meets(record, got)


@of("L_T_optimal_state_variance")
def test_the_best_variance_by_state(record):
    case = record["case"]
    data, total = oracle(case), 0.0
    step = steps_of(schedule_of(record), record["params"]["T"])
    for i in range(len(step.delta)):
        x, eps, weight = (v[0] for v in nodes(case, step.logsnr_t[i : i + 1]))
        one = Step(step.logsnr_t[i].expand(len(x)), step.delta[i].expand(len(x)))
        z = diffuse(x, eps, one.logsnr_t)
        p = data(z, one.logsnr_t)
        # Var(ε | z) of a mixture: within components and between them
        level = one.logsnr_t[0]
        total_variance = torch.sigmoid(level) * data.variances[:, 0] + torch.sigmoid(-level)
        log_share = data.weights.log() - 0.5 * (
            (z - torch.sigmoid(level).sqrt() * data.means[:, 0]).square() / total_variance
            + total_variance.log()
        )
        share = log_share.softmax(1)
        means = (
            torch.sigmoid(-level).sqrt()
            * (z - torch.sigmoid(level).sqrt() * data.means[:, 0])
            / total_variance
        )
        spread = (
            share
            * (
                torch.sigmoid(level) * data.variances[:, 0] / total_variance
                + (means - p.eps).square()
            )
        ).sum(1)
        best = Given(lambda s, spread=spread: torch.log1p(s.snr_gain * spread)[:, None])
        total += weight @ reverse_kl(
            Prediction(z, one.logsnr_t, p.output, p.parameterization, best), x, eps, one
        )
    assert_meets(record, total)


def sampled_moments(model, x, eps, weight, step):
    """Mean of a step, its variance in closed form and with z_s sampled, over (x, ε) at nodes and
    z_s by Gauss–Hermite."""
    n, mass = gauss_hermite(5)
    z = diffuse(x, eps, step.logsnr_t)
    prediction = model(z, step.logsnr_t)
    draws = torch.stack([reverse_log_ratio(prediction, x, eps, step, k.expand_as(x)) for k in n])
    kl = reverse_kl(prediction, x, eps, step)
    mean = mass @ draws @ weight
    assert torch.allclose(mean, kl @ weight, rtol=1e-9)
    return (
        mean,
        kl.square() @ weight - mean.square(),
        mass @ draws.square() @ weight - mean.square(),
    )


def every_step(at, model, schedule, levels, steps):
    t = vector(levels) / steps
    logsnr, delta = schedule(t), schedule.delta(t, steps)
    found = []
    for i in range(len(levels)):
        x, eps, weight = (v[0] for v in at(logsnr[i : i + 1]))
        one = Step(logsnr[i].expand(len(x)), delta[i].expand(len(x)))
        found.append(torch.stack(sampled_moments(model, x, eps, weight, one)))
    return dict(zip(("mean", "var_rb", "var_mc"), torch.stack(found, 1), strict=True))


@of("rb_mc_variance_by_t")
def test_variance_of_a_sampled_step(record):
    case, value = record["case"], record["value"]
    got = every_step(
        partial(nodes, case), oracle(case), schedule_of(record), value["i"], record["params"]["T"]
    )
    assert_meets(record, {"i": value["i"]} | got)


@of("rb_mc_variance_by_t_given_x")
def test_variance_of_a_sampled_step_at_given_x(record):
    steps = record["params"]["T"]
    at = partial(nodes_given, vector(record["params"]["x"]))
    assert_meets(
        record,
        every_step(at, oracle(record["case"]), schedule_of(record), range(1, steps + 1), steps),
    )


@of("ancestral_final_variance")
def test_ancestral_sampling_of_a_gaussian(record):
    """Steps are linear in z: variance is carried by the kernel's own slope and spread."""
    case, steps = record["case"], record["params"]["T"]
    schedule, data = schedule_of(record), oracle(case)
    best = Given(lambda step: torch.log1p(step.snr_gain * data.mmse(step.logsnr_t)))
    got = {
        "target_q_z0": torch.sigmoid(vector(13.3)) * data.variances[0, 0]
        + torch.sigmoid(vector(-13.3))
    }
    for name, variance in {
        "posterior": FixedSmall(),
        "upper": FixedLarge(),
        "optimal": best,
    }.items():
        spread, chain = torch.ones(()), steps_of(schedule, steps)
        for i in reversed(range(steps)):
            step = Step(chain.logsnr_t[i : i + 1], chain.delta[i : i + 1])
            prediction = with_variance(data, variance)(torch.ones(1, 1), step.logsnr_t)
            slope = reverse_mean(prediction, step)
            noise = reverse_sample(prediction, step, torch.ones(1, 1)) - slope
            spread = (slope.square() * spread + noise.square()).squeeze()
        got[name] = spread
    assert_meets(record, got)


@of("hierarchical_model")
def test_bound_and_likelihood_of_a_chain_at_given_x(record):
    case, steps, x = record["case"], record["params"]["T"], vector(record["value"]["x"])[:, None]
    model = with_variance(
        oracle(case),
        {"posterior": FixedSmall(), "upper": FixedLarge()}[record["params"]["variance"]],
    )
    schedule = Linear(6.0, -5.0)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    u = torch.arange(-100, 101, dtype=torch.float64) * 0.09
    mass = torch.exp(-0.5 * u.square())
    mass = mass / mass.sum()
    total = []
    for one in x:
        rows = len(t) * len(u)
        bound = elbo(
            model, one.expand(rows, 1), schedule=schedule, decoder=Gaussian(), steps=steps,
            t=t.repeat_interleave(len(u)), eps=u.repeat(len(t))[:, None],
        )  # fmt: skip
        diffusion = (bound.diffusion.view(len(t), len(u)) @ mass).mean()
        total.append(-(prior_kl(one[None], -5.0) + diffusion + bound.reconstruction[0]).squeeze())
    got = {
        "elbo_x": total,
        "log_p_x": chain_log_prob(model, x, schedule=schedule, steps=steps, decoder=Gaussian()),
        "log_q_x": oracle(case).log_prob(x),
    }
    assert_meets(record, {"x": x.squeeze(1)} | got)


@of("path_estimator")
def test_variance_along_one_path(record):
    """By drawn paths: mean and variances within four of their own standard errors."""
    p = record["params"]
    n = 20_000 if p["T"] <= 100 else 4_000
    x = torch.full((n, 1), p["x"], dtype=torch.float64)
    model = denoiser(
        record["case"], f"eps_scale_{p['eps_scale']}" if p["eps_scale"] != 1.0 else "opt"
    )
    path = path_bound(
        model,
        x,
        schedule=schedule_of(record),
        decoder=Gaussian(),
        steps=p["T"],
        generator=torch.Generator().manual_seed(0),
    )
    value = record["value"]
    for estimate, variance in (
        (path.log_ratio, value["var_mc_path"]),
        (path.rao_blackwell, value["var_rb_path"]),
    ):
        assert abs(estimate.mean() - value["mean"]) < 4 * (variance / n) ** 0.5
        square = (estimate - value["mean"]).square()
        assert abs(square.mean() - variance) < 4 * square.std() / n**0.5
    assert_meets(
        record | {"value": {"nll_x": value["nll_x"]}},
        {"nll_x": -oracle(record["case"]).log_prob(x[:1]).squeeze()},
    )

"""The numbers of `docs/errata.md` on the essay and on the slides, in the order of each entry."""

import math

import torch
from errata_values import (
    BETA,
    DDPM,
    KEPT,
    MASS,
    NODE,
    UNIT,
    ddpm,
    f64,
    same,
    unit_step,
    whole_bound,
)
from torch.distributions import Normal, kl_divergence

from vdiff.describe import describe
from vdiff.gaussian import Step, alpha, sigma, step_kl
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.recipes import recipe
from vdiff.reverse import reverse_kl, reverse_log_ratio
from vdiff.schedule import Linear, OptimalTransport
from vdiff.schedule.law import HyperbolicSecant
from vdiff.weighting import EDM, MSE, P2, MinSNR, Sigmoid


def variance_reductions():
    for steps in (1000, 100):
        for level in (8.0, 0.0, -4.0):
            delta = 18.3 / steps
            x, eps, noise, weight, step, said = unit_step(level, delta)
            kl = reverse_kl(said, x, eps, step)
            ratio = reverse_log_ratio(said, x, eps, step, noise)
            sampled, closed = (weight @ v**2 - (weight @ v) ** 2 for v in (ratio, kl))
            yield same(sampled / closed, 1 + 2 * (1 + math.exp(-level)) / math.expm1(delta))


def path_variances():
    """Both are quadratic in the path's 101 normals: Var = ½ tr H² + ‖g‖²."""
    lam = Linear(13.3, -5.0)(torch.linspace(0, 1, 101, dtype=torch.float64))
    a, s, x = alpha(lam), sigma(lam), 0.5
    step = Step(lam[1:], lam[:-1] - lam[1:])

    def path(noise):
        z = [a[0] * x + s[0] * noise[0]]
        for i in range(100):
            z.append(a[i + 1] / a[i] * z[-1] + step.forward_variance[i].sqrt() * noise[i + 1])
        return torch.stack(z)

    def kls(noise):
        eps = (path(noise)[1:] - a[1:] * x) / s[1:]
        return step_kl(step.snr_gain, (eps - s[1:] * path(noise)[1:]) ** 2).sum()

    def log_ratio(noise):
        z = path(noise)
        mean = step.mean(z[1:, None], a[1:, None] * z[1:, None])[:, 0]
        back = Normal(mean, step.variance.sqrt())
        forward = Normal(a[1:] / a[:-1] * z[:-1], step.forward_variance.sqrt())
        decoder = Normal(z[0] / a[0], torch.exp(-lam[0] / 2)).log_prob(f64(x)).sum()
        ends = Normal(a[0] * x, s[0]).log_prob(z[0]) - Normal(0.0, 1.0).log_prob(z[-1])
        return (forward.log_prob(z[1:]) - back.log_prob(z[:-1])).sum() + ends - decoder

    for function in (kls, log_ratio):
        zero = torch.zeros(101, dtype=torch.float64)
        slope = torch.autograd.functional.jacobian(function, zero)
        curve = torch.autograd.functional.hessian(function, zero)
        yield 0.5 * (curve**2).sum() + slope @ slope


def raising_the_bound_may_widen_the_gap():
    q, x, bounds, gaps = Normal(f64(0.5), f64(0.3**0.5)), 2.0, [], []
    for theta in (0.5, 1.0):
        expected = MASS @ Normal(theta * (q.mean + q.stddev * NODE), 1.0).log_prob(f64(x))
        bounds.append(expected - kl_divergence(q, Normal(f64(0), f64(1))))
        spread = 1 + theta**2
        gap = Normal(0.0, spread**0.5).log_prob(f64(x)) - bounds[-1]
        posterior = Normal(f64(theta * x / spread), f64(spread**-0.5))
        gaps.append(same(kl_divergence(q, posterior), gap))
    return *bounds, *gaps


def line_two():
    x, eps, noise, weight, step, said = unit_step(7.803, 0.183)
    z_s = step.mean(said.z, x) + step.variance.sqrt()[:, None] * noise
    back = Normal(step.mean(said.z, said.x), step.variance.sqrt()[:, None])
    shrink = (alpha(step.logsnr_t) / alpha(step.logsnr_s))[:, None]
    forward = Normal(shrink * z_s, step.forward_variance.sqrt()[:, None])
    mean = weight @ (forward.log_prob(said.z) - back.log_prob(z_s))[:, 0]
    kl = weight @ reverse_kl(said, x, eps, step)
    return kl, same(mean, kl - 0.5 * step.log_variance_ratio[0])


def variance_over_what():
    x, eps, _, weight, step, said = unit_step(-4.0, 0.5)
    kl, weight = reverse_kl(said, x, eps, step).view(7, 49), weight.view(7, 49)
    of_x = weight.sum(1)
    first, second = ((weight * kl**p).sum(1) / of_x for p in (1, 2))
    total = (weight * kl**2).sum() - (weight * kl).sum() ** 2
    return of_x @ (second - first**2), total


def posterior_variance():
    beta, before, now = BETA[1], KEPT[0], KEPT[1]
    truth = 1 / ((1 - beta) / beta + 1 / (1 - before))
    return same(ddpm(2).variance[0], truth), beta * (1 - before.sqrt()) / (1 - now)


def first_variances():
    before = torch.cat([torch.ones(1, dtype=torch.float64), KEPT[:-1]])
    return (BETA * (1 - before) / (1 - KEPT))[:2]


def edm_is_no_mixture_of_bounds():
    """½∫w m dλ over w(λ_min), and the mixture of bounds of each level, no weight negative."""
    w, low, high = EDM(), -5.0, 8.0
    lam = torch.linspace(low, high, 200_001, dtype=torch.float64)
    bound = 0.5 * torch.cumulative_trapezoid(UNIT.mmse(lam), lam)  # from λ_min to each λ
    bound, weight = torch.cat([f64(0), bound]), w(lam) / w(lam[:1])
    mixtures = [
        (fall * (bound[1:] + bound[:-1]) / 2).sum() + weight[-1] * bound[-1]
        for fall in (-weight.diff(), (-weight.diff()).clamp(min=0))
    ]
    whole = 0.5 * torch.trapezoid(weight * UNIT.mmse(lam), lam)
    return same(mixtures[0], whole), mixtures[1]


def constants_of_the_weightings():
    lam = f64(-5.0, 0.0, 5.0)
    sech, cosine = 1 / torch.cosh(lam / 2), MSE(HyperbolicSecant(), Eps())
    yield (cosine(lam) / sech).mean()
    shape = Normal(2.4, 2.4).log_prob(lam).exp() * (torch.exp(-lam) + 0.25)
    trained = 2 * recipe("edm").schedule.density(lam) * (1 + 4 * torch.exp(-lam))  # 2 p σ² c_x
    yield same(trained / shape, 8.0 + 0 * lam).mean()
    indi = MSE(OptimalTransport().law, X())(lam)
    yield same(indi * torch.exp(lam) * torch.cosh(lam / 4) ** 2, 0.25 + 0 * lam)[0]
    yield same((cosine * P2(gamma=1.0))(lam) * (1 + lam.exp()) / sech, 1 / math.pi + 0 * lam)[0]
    clipped = (5 * torch.exp(-lam)).clamp(max=1)
    yield same((cosine * MinSNR(5.0))(lam) / (sech * clipped), 1 / math.pi + 0 * lam)[0]


def cosine_with_an_offset():
    lam, s = f64(6.0, 8.0, 10.0, 12.0), 0.008
    kept = math.cos(math.pi * s / (2 * (1 + s))) ** 2 * torch.sigmoid(lam)
    right = 2 * (1 + s) / math.pi * torch.sigmoid(-lam) * (kept / (1 - kept)).sqrt()
    return same(recipe("iddpm").weighting(lam), right) * math.pi * torch.cosh(lam / 2)


LAM, SHAPE = f64(-5.0, 0.0, 5.0), f64(2.0, 2.0, 2.0)
NUMBERS = {
    "section Variance Evolution, and the conclusion": variance_reductions,
    "section The Hidden Variance Reduction": path_variances,
    "section The Evidence Lower Bound": raising_the_bound_may_widen_the_gap,
    "section But Why?": line_two,
    "section Variance Evolution, step 2": variance_over_what,
    "Background: DDPM, σ_q²(t)": posterior_variance,
    "eq. 1": lambda: (
        same(alpha(DDPM.table[99]), (1 - BETA[:100]).sqrt().prod()), (KEPT[99] * KEPT[98]).sqrt()
    ),
    "eq. 5": first_variances,
    "the introduction": edm_is_no_mixture_of_bounds,
    "the table of weightings, row IDDPM": cosine_with_an_offset,
    "eq. 5, 7 and 10": lambda: whole_bound()[:2],
    "the table of weightings, “Implied weighting w(λ)”": lambda: same(
        MSE(HyperbolicSecant(), V())(LAM) / MSE(OptimalTransport().law, Flow())(LAM),
        SHAPE / math.pi
    )[:1],
    "the table of weightings, its other rows": constants_of_the_weightings,
    "proof part 2": lambda: (
        describe("vdm").augmentation(f64(13.3)), Sigmoid(2.0)(f64(10.0)) / Sigmoid(2.0)(f64(-10.0))
    ),
}  # fmt: skip

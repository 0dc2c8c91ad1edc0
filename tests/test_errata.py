"""`docs/errata.md`: its pointers lead somewhere, and its numbers are computed again.

An entry of the page is a heading and three items. `NUMBERS` computes the numbers in bold of each,
in their order; where a formula of the library gives a number, `same` wants a second route to it.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from registry import ORACLES
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vdiff.chain import hybrid_loss
from vdiff.decoder import DiscretizedGaussian, log_normal_interval
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.denoiser import Denoiser
from vdiff.describe import describe
from vdiff.gaussian import Step, alpha, prior_kl, sigma, step_kl
from vdiff.loss import elbo, predict_at
from vdiff.oracle import Gaussian, Lattice
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.prediction import Prediction
from vdiff.recipes import recipe
from vdiff.reverse import reverse_kl, reverse_log_ratio
from vdiff.schedule import Cosine, Linear, OptimalTransport, Tabulated
from vdiff.schedule.law import HyperbolicSecant
from vdiff.theorems.integral import average_noise, expected_loss, panels, squared
from vdiff.theorems.paths import GaussianPath
from vdiff.variance import LearnedRange
from vdiff.weighting import EDM, ELBO, MSE, P2, MinSNR, Sigmoid

PAGE = Path(__file__).parents[1] / "docs" / "errata.md"
BOOK, CHAPTER = "Foundations of Diffusion Models", "DDPM from a Variational Derivation"
# the subsections of each section of the book, and the numbered equations of each chapter
SUBSECTIONS = {"1.1": 6, "1.2": 4, "1.3": 4, "1.4": 3, "2.1": 2, "2.2": 2, "2.3": 5, "3.1": 2}
SUBSECTIONS |= {"3.2": 4, "1.5": 0, "2.4": 0, "6.1": 0, "6.2": 0}
SUBSECTIONS |= {f"{chapter}.{part}": 0 for chapter in (4, 5) for part in range(1, 7)}
EQUATIONS = {1: 30, 2: 41, 3: 11, 4: 7, 5: 8, 6: 4}
HEADINGS = {
    "The Hidden Variance Reduction": "The Evidence Lower Bound|But Why?"
    "|The Hidden Variance Reduction|Variance Evolution",
    "The DDPM Simple Loss": "the claim|The Simple Loss Drops the Weight|Why the Reweighting Helps",
}


def parsed() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The numbers' text of each entry, and (source, pointer) of every entry and misprint."""
    entries, pointers = {}, []
    for chapter in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        source = chapter.split("\n")[0]
        for entry in chapter.split("\n### ")[1:]:
            where, *body = entry.split("\n\n")[0].split("\n")
            text = " ".join(line.strip() for line in body)
            assert re.match(r"- (Printed: .* - Right|Read as: .* - What holds): ", text), where
            entries[where] = text.split("- Numbers: ")[1]
            right = re.split("- Right: |- What holds: ", text)[1].split("- Numbers")[0]
            pointers.append((source, f"{where}; {right}"))
        rows = re.findall(r"^\| (?!where)([^|]+) \|", chapter, re.MULTILINE)
        pointers += [(source, row) for row in rows]
    return entries, pointers


ENTRIES, POINTERS = parsed()


def numbers_after(words: str, text: str) -> list[str]:
    found = re.findall(rf"{words} ((?:\d+(?:\.\d+)*(?:, | and | to )?)+)", text)
    return re.findall(r"\d+(?:\.\d+)*", " ".join(found))


def exists(source: str, section: str) -> bool:
    if source.startswith(CHAPTER):
        return section in {f"14.5.{i}" for i in range(1, 7)}
    chapter, part, *below = section.split(".")
    have = SUBSECTIONS.get(f"{chapter}.{part}", -1)
    return have >= 0 and all(int(n) <= have for n in below)


@pytest.mark.parametrize(("source", "text"), POINTERS, ids=lambda text: text[:40])
def test_what_a_row_points_to_exists(source, text):
    if source.startswith((BOOK, CHAPTER)):
        assert all(exists(source, section) for section in numbers_after("sections?", text))
    where = text.split("; ")[0]
    if source.startswith(BOOK):
        numbers = [n.split(".") for n in numbers_after("eq\\.", where)]
        assert all(int(n) <= EQUATIONS[int(chapter)] for chapter, n in numbers)
    if source.startswith("Slides"):
        assert all(1 <= int(n) <= 13 and n != "6" for n in numbers_after("eq\\.", where))
    for name, headings in HEADINGS.items():
        if source.startswith(name):
            assert re.search(headings, where)


def test_a_pointer_that_leads_nowhere_is_seen():
    assert numbers_after("sections?", "sections 3.1 and 3.1.1") == ["3.1", "3.1.1"]
    assert numbers_after("eq\\.", "eq. 1.22, 1.23 and 5.8; eq. 3.5") == [
        "1.22",
        "1.23",
        "5.8",
        "3.5",
    ]
    assert not exists(BOOK, "6.4")
    assert not exists(BOOK, "3.2.5")


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(left, right, rel: float = 1e-6):
    """One number by two routes."""
    pair = [torch.as_tensor(v, dtype=torch.float64) for v in (left, right)]
    torch.testing.assert_close(pair[0].expand_as(pair[1]), pair[1], rtol=rel, atol=1e-300)
    return pair[1]


NODE, MASS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
MASS = MASS / MASS.sum()
UNIT, LINE = Gaussian([0.0], [1.0]), Gaussian([0.3], [0.25])
MIXTURE = ORACLES["mixture"]()
DDPM, BETA = Tabulated.linear_betas(), torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = torch.cumprod(1 - BETA, 0)  # ᾱ_t
X0 = 0.4  # data of the short chain


def ddpm(*t: int) -> Step:
    """DDPM's steps that end at its levels t = 2 … 1000."""
    at = torch.tensor(t) if t else torch.arange(2, 1001)
    return Step(DDPM.table[at - 1], DDPM.table[at - 2] - DDPM.table[at - 1])


def integral(function, low: float, high: float, n: int = 400) -> Tensor:
    node, width = panels(torch.linspace(low, high, n + 1, dtype=torch.float64), 8)
    return function(node) @ width


def linear_chain(steps: int, high: float = 6.0, low: float = -5.0) -> Step:
    schedule, t = Linear(high, low), torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return Step(schedule(t), schedule.delta(t, steps))


def unit_step(level: float, delta: float):
    """(data, ε, n) nodes, their masses, the step and the exact prediction of N(0, 1)."""
    node, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(7))
    x, eps, noise = (v[:, None] for v in torch.cartesian_prod(node, node, node).T)
    weight = torch.cartesian_prod(*3 * [mass / mass.sum()]).prod(1)
    step = Step(f64(level).expand(len(x)), f64(delta).expand(len(x)))
    z = alpha(step.logsnr_t)[:, None] * x + sigma(step.logsnr_t)[:, None] * eps
    return x, eps, noise, weight, step, UNIT(z, step.logsnr_t)


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


def whole_bound():
    diffusion = 0.5 * integral(MIXTURE.mmse, -3.0, 4.0, 14)
    x, _, weight = MIXTURE.nodes(4.0)
    ends = weight @ (prior_kl(x, -3.0) + GaussianDecoder().expected_nll(x, 4.0))
    bound = same(MIXTURE.bound(4.0, -3.0).total[0], ends + diffusion)
    w = MSE(Cosine(4.0, -3.0), Eps())
    simple = 0.5 * integral(lambda lam: w(lam) * MIXTURE.mmse(lam), -3.0, 4.0, 14)
    return bound, diffusion, ends + simple


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


def prior_of_the_walk():
    x = torch.ones(1, 1, dtype=torch.float64)
    own = kl_divergence(Normal(f64(1.0), f64(1000**0.5)), Normal(f64(0), f64(1001**0.5)))
    fixed = kl_divergence(Normal(f64(1.0), f64(1000**0.5)), Normal(f64(0), f64(1)))
    return fixed, same(prior_kl(x, -math.log(1000)), own)


def falling_betas():
    table = Tabulated.from_betas(0.5 ** torch.arange(1, 51, dtype=torch.float64)).table
    k = torch.arange(-5, 6, dtype=torch.float64)
    euler = (torch.cos(torch.pi * k) * 2 ** (-k * (3 * k - 1) / 2)).sum()
    return [same(alpha(table[-1]) ** 2, euler)]


def rescaled_betas():
    for n in (1000, 4000, 10_000):
        moved = Tabulated.linear_betas(levels=n, rescale_from=1000).logsnr_max
        yield same(moved, DDPM.logsnr_max + math.log(n / 1000), rel=1e-4)


def chain_terms(eps=NODE, mass=MASS):
    """Prior, steps and reconstruction of a chain of 6 steps on N(0.3, ¼) at x = 0.4."""
    x = torch.full((len(eps), 1), X0, dtype=torch.float64)
    bound = elbo(
        LINE, x, schedule=Linear(4.0, -3.0), decoder=GaussianDecoder(), steps=6, draws=6,
        eps=eps[:, None],
    )  # fmt: skip
    return tuple(mass @ part for part in (bound.prior, bound.diffusion, bound.reconstruction))


def mean_over_the_first_level():
    """At x₀ = 1, DDPM's step t = 2, the noise of x_1 fixed at 1 and averaged over three nodes."""

    def of(x, eps, level):
        step = Step(level, ddpm(2).delta.expand(len(level)))
        said = predict_at(LINE, x, eps, level, {})
        ratios = [
            reverse_log_ratio(said, x, eps, step, torch.full_like(x, n))
            for n in (1.0, -(3**0.5), 0.0, 3**0.5)
        ]
        std = step.variance.sqrt()[:, None]
        posterior, model = (Normal(step.mean(said.z, v), std) for v in (x, said.x))
        return torch.stack([*ratios, kl_divergence(posterior, model)[:, 0]])

    one, *three, kl = average_noise(1.0, ddpm(2).logsnr_t, of)[:, 0]
    return one, same(f64(1 / 6, 2 / 3, 1 / 6) @ torch.stack(three), kl)


def completed_square():
    beta, before = BETA[99], KEPT[98]
    a = (1 - beta) / beta + 1 / (1 - before)
    b = 2 * (1 - beta).sqrt() / beta + 2 * before.sqrt() / (1 - before)
    one = torch.ones(1, 1, dtype=torch.float64)
    return same(ddpm(100).mean(one, one)[0, 0], b / (2 * a)), -b / (2 * a)


def reverse_of_two_points():
    (low, high), at = f64(-1.0, 2.0)[:, None], f64(0.0, 0.5, 0.9)
    step, signs, zero = Step(low, high - low), f64(1.0, -1.0)[:, None], f64(0.0)

    def marginal(z, level):
        return Normal(signs * alpha(level), sigma(level)).log_prob(z).exp().mean(0)

    means, variance = step.mean(zero.expand(2, 1), signs), step.variance
    mixed = Normal(means, variance.sqrt()).log_prob(at).exp().mean(0)
    forward = Normal(alpha(low) / alpha(high) * at, step.forward_variance.sqrt())
    bayes = forward.log_prob(zero).exp() * marginal(at, high) / marginal(zero, low)
    matched = Normal(zero, (variance + (means**2).mean()).sqrt())
    return *same(mixed, bayes), *matched.log_prob(at).exp()


def one_random_step():
    chain = linear_chain(6, 4.0, -3.0)
    kls = step_kl(chain.snr_gain, average_noise(X0, chain.logsnr_t, squared(LINE)))
    return kls.mean(), same(chain_terms()[1], kls.sum())


def kl_of_log_variances():
    q, p = Normal(f64(0.3), f64(0.1)), Normal(f64(0.1), f64(0.02**0.5))
    truth = integral(lambda z: q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), -0.9, 1.5)
    library = step_kl(f64(1.0), f64(0.04 / 0.01), f64(math.log(2)))[0]
    return same(library, truth), 0.5 * (math.log(0.5) - 1 + 2 + 0.04 / 0.01)


def tanh_distribution():
    for x in f64(-3.0, -4.0, -5.0, -6.0):
        truth = integral(lambda v: Normal(0.0, 1.0).log_prob(v).exp(), x.item() - 30, x.item())
        same(log_normal_interval(f64(-40.0), x[None]).exp()[0], truth)
        yield 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / truth


GRID, HALF = 2 * torch.arange(256).double() / 255 - 1, 1 / 255


def levels_of_the_decoder():
    for mean, std in ((0.9, 0.3), (0.98, 0.02), (-1.0, 0.05)):
        upper, lower = (torch.special.ndtr((GRID - mean + side) / std) for side in (HALF, -HALF))
        inner = torch.where(GRID - mean > 0.999, 1 - lower, upper - lower)
        yield torch.where(GRID - mean < -0.999, upper, inner).sum()
        decoder = DiscretizedGaussian(256, variance=std**2)
        x_hat = torch.full((256, 1), mean, dtype=torch.float64)
        right = decoder.log_prob(torch.arange(256)[:, None], x_hat, 0.0).exp().sum()
        same(right, 1.0)
    yield right


def bins_that_end():
    edges = torch.cat([f64(-1.0), GRID[:-1] + HALF, f64(1.0)])
    return [torch.special.ndtr((edges - 0.9) / 0.3).diff().sum()]


def clamped_probability():
    std, found = 5.4532e-5**0.5, []
    for level in (136, 140):
        away = (GRID[level] - GRID[128]).item()
        law = Normal(f64(0.0), f64(std))
        near = law.log_prob(f64(away))  # a unit for the integral, which underflows
        mass = integral(lambda v: (law.log_prob(v) - near).exp(), away - HALF, away + HALF)  # noqa: B023
        decoder = DiscretizedGaussian(256, variance=std**2)
        library = decoder.log_prob(torch.tensor([[level]]), GRID[128].view(1, 1), 0.0)
        found.append(same(library[0], near[0] + mass.log()))
    return found[0], math.log(1e-12), found[1]


def variance_gradient(variance: float, by_log: bool) -> Tensor:
    value = f64(math.log(variance) if by_log else variance).requires_grad_()
    log = value if by_log else value.log()
    step_kl(f64(1.0), f64(0.05 / 0.01), log - math.log(0.01)).sum().backward()
    slope = 0.5 * (1 / variance - (0.01 + 0.05) / variance**2)
    return same(value.grad[0], slope * variance if by_log else slope)


def best_variances(data, steps: int = 5) -> tuple[Tensor, Step]:
    """log Σ/β̃ of the best Σ, at which the mean KL's derivative is zero."""
    step = linear_chain(steps)
    best = torch.log1p(step.snr_gain * data.mmse(step.logsnr_t)).requires_grad_()
    step_kl(step.snr_gain, data.mmse(step.logsnr_t), best).sum().backward()
    assert best.grad.abs().max() < 1e-9
    return best.detach(), step


def variance_bounds():
    for data in (Gaussian([0.0], [4.0]), MIXTURE):
        best, step = best_variances(data)
        yield (step.log_variance_ratio - best).min()


def fixed_variance():
    best, step = best_variances(MIXTURE)
    m = MIXTURE.mmse(step.logsnr_t)
    return step_kl(step.snr_gain, m).sum(), step_kl(step.snr_gain, m, best).sum()


def hybrid_losses(says, weights=(0.0, 0.001)):
    """Of each weight of the bound: the loss of 20 steps at x = 0.7 and ε = 0.4."""
    t, one = torch.arange(1, 21, dtype=torch.float64) / 20, torch.ones(20, 1, dtype=torch.float64)
    model = Denoiser(lambda z, lam: torch.cat(says(z, lam), 1), Eps(), variance=LearnedRange())
    return [
        hybrid_loss(
            model, 0.7 * one, schedule=Linear(6.0, -5.0), steps=20, t=t, eps=0.4 * one,
            bound_weight=weight,
        )
        for weight in weights
    ]  # fmt: skip


def weight_of_the_hybrid_loss():
    simple, both = hybrid_losses(lambda z, lam: [LINE(z, lam).eps, 0 * z])
    step = linear_chain(20)
    z = (0.7 * alpha(step.logsnr_t) + 0.4 * sigma(step.logsnr_t))[:, None]
    error = (0.4 - LINE(z, step.logsnr_t).eps[:, 0]) ** 2
    kl = step_kl(step.snr_gain, error, 0.5 * step.log_variance_ratio)
    return same((both - simple).mean(), 0.001 * kl.sum()), 0.001 * kl.mean()


def mean_of_the_hybrid_loss():
    for i in (1, 0):
        eps = torch.full((20, 1), 0.1, dtype=torch.float64, requires_grad=True)
        loss = hybrid_losses(lambda z, lam: [eps, 0.3 + 0 * z])[i]  # noqa: B023
        (gradient,) = torch.autograd.grad(loss.sum(), eps)
        yield same(gradient, torch.full((20, 1), 2 * (0.1 - 0.4), dtype=torch.float64))[0, 0]


def best_slopes():
    """ε̂ = c z on N(0, 1): the vertex of a parabola through three losses, and a mean of σ."""
    schedule = Cosine(4.0, -3.0)
    for w in (ELBO(), MSE(schedule, Eps())):
        zero, half, one = (
            expected_loss(lambda z, lam: Prediction(z, lam, c * z, Eps()), UNIT, schedule, w)  # noqa: B023
            for c in (0.0, 0.5, 1.0)
        )
        top, mass = (
            integral(lambda lam: w(lam) * sigma(lam) ** p, -3.0, 4.0)  # noqa: B023
            for p in (1, 0)
        )
        yield same((3 * zero - 4 * half + one) / (4 * (zero - 2 * half + one)), top / mass)


def large_variance():
    step = ddpm(2)
    shift = (step.variance * step.snr_gain * 0.7).sqrt()
    truth = kl_divergence(
        Normal(0 * shift, step.variance.sqrt()), Normal(shift, step.forward_variance.sqrt())
    )
    whole = same(step_kl(step.snr_gain, f64(0.7), step.log_variance_ratio), truth)
    return whole[0], (whole - shift**2 / (2 * step.forward_variance))[0]


def unit_kls():
    """The steps' mean KLs of N(0, 1), E‖e‖² = ᾱ_t: DDPM's weight from β, and the library's."""
    t = torch.tensor([2, 100, 1000])
    every = step_kl(ddpm().snr_gain, UNIT.mmse(ddpm().logsnr_t))
    beta, before, now = BETA[t - 1], KEPT[t - 2], KEPT[t - 1]
    weight = beta**2 / (2 * beta * (1 - before) / (1 - now) * (1 - beta) * (1 - now))
    return *same(every[t - 2], weight * now), every.mean()


def reconstruction_of_levels():
    decoder = DiscretizedGaussian(256, uses_network=True, variance=1e-4)
    level, lam = torch.arange(120, 136), DDPM.logsnr_max
    oracle = Lattice(decoder.level_values[level], torch.full((16,), 1 / 16, dtype=torch.float64))
    steps = step_kl(ddpm().snr_gain, oracle.mmse(ddpm().logsnr_t)).sum()
    data, eps = level.repeat_interleave(60)[:, None], NODE.repeat(16)[:, None]
    at = f64(lam).expand(len(data))
    said = oracle(alpha(at)[:, None] * decoder.level_values[data] + sigma(at)[:, None] * eps, at).x
    first = -(decoder.log_prob(data, said, lam).view(16, 60) @ MASS).mean()
    prior = prior_kl(decoder.level_values[level][:, None], DDPM.logsnr_min).mean()
    return first, first + steps + prior


def longer_chains():
    x = torch.ones(1, 1, dtype=torch.float64)
    for n in (1000, 4000):
        beta = torch.linspace(1e-4, 0.02, n, dtype=torch.float64) * 1000 / n
        kept = (1 - beta).log().sum().exp()
        table = Tabulated.linear_betas(levels=n, rescale_from=1000)
        prior = kl_divergence(Normal(kept.sqrt(), (1 - kept).sqrt()), Normal(f64(0), f64(1)))
        yield same(prior_kl(x, table.logsnr_min)[0], prior[0], rel=1e-4)


def weights_of_the_steps():
    w = 0.5 * ddpm().snr_gain
    t = torch.arange(2, 1001)
    same(w, BETA[t - 1] / (2 * (1 - BETA[t - 1]) * (1 - KEPT[t - 2])))
    assert w.argmin() == 348
    return *w[[0, 8, 98, 348, 998]], w[998] / w.min()


def factor_of_t():
    t = torch.arange(2, 1001)
    weight = 2 * (1 - BETA[t - 1]) * (1 - KEPT[t - 2]) / BETA[t - 1]  # 1/w of DDPM's eq. 12
    kl = step_kl(ddpm().snr_gain, UNIT.mmse(ddpm().logsnr_t))
    return same((weight * kl).mean(), KEPT[1:].mean()), (weight * kl / 999).mean()


def first_level():
    """N(0, 1), whose E‖ε − ε̂‖² is ᾱ_t: the simple loss, and its part without the decoder."""
    kept = torch.cumprod(1 - f64(1e-4, 0.1, 0.2, 0.3, 0.4), 0)
    table = Tabulated.from_betas(f64(1e-4, 0.1, 0.2, 0.3, 0.4)).table
    step = Step(table[1:], table[:-1] - table[1:])
    kl = step_kl(step.snr_gain, UNIT.mmse(step.logsnr_t))
    steps = (kl / (5 * 0.5 * step.snr_gain)).sum()
    same(steps + UNIT.mmse(table[:1])[0] / 5, kept.mean())
    return kept.mean(), steps


def no_bound():
    bound, _, simple = whole_bound()
    return MIXTURE.entropy(), bound, simple


def more_steps():
    coin, schedule = Lattice([-1.0, 1.0], [0.5, 0.5]), Linear(12.0, -6.0)
    for steps in (2, 3, 4):
        step = linear_chain(steps, 12.0, -6.0)
        kls = step_kl(step.snr_gain, coin.mmse(step.logsnr_t)).sum()
        yield same(expected_loss(coin, coin, schedule, steps=steps), kls)
    yield 0.5 * integral(coin.mmse, -6.0, 12.0, 36)


def weights(*levels: int) -> Tensor:
    """½ (SNR_{t−1} − SNR_t) of DDPM's table, from log-SNR and from ᾱ."""
    t, snr = torch.tensor(levels), KEPT / (1 - KEPT)
    found = 0.5 * ddpm(*levels).logsnr_t.exp() * ddpm(*levels).snr_gain
    return same(found, 0.5 * (snr[t - 2] - snr[t - 1]))


def mean_weights():
    inverse = 1 / ddpm().variance
    least, most = inverse.min(), inverse.max()
    return least / 2, most / 2, least, most


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
    "section 1.2.4": prior_of_the_walk,
    "Hypothesis 2": falling_betas,
    "eq. 1.25 and before it": rescaled_betas,
    "from eq. 2.2 to eq. 2.3": lambda: (
        -(MASS @ (NODE / 2).exp()).log(), MASS @ NODE, (MASS @ (-NODE / 2).exp()).log()
    ),
    "eq. 2.5": lambda: (-GaussianPath(LINE, 4.0, -3.0, 6).given(X0)[0], sum(chain_terms())),
    "eq. 2.22": mean_over_the_first_level,
    "eq. 2.22 and 2.24": lambda: (sum(chain_terms()), sum(chain_terms()) - 2 * chain_terms()[2]),
    "eq. 2.24": lambda: (sum(chain_terms(f64(0.0), f64(1.0))), sum(chain_terms())),
    "eq. 2.35": completed_square,
    "section 3.1": reverse_of_two_points,
    "Algorithm 1": one_random_step,
    "section 3.2.2": lambda: (3 * sum(chain_terms()),
    3 * sum(chain_terms()) - 2 * chain_terms()[1]),
    "eq. 3.7": kl_of_log_variances,
    "eq. 3.9": tanh_distribution,
    "Algorithm 2, lines 2, 5 and 7": levels_of_the_decoder,
    "section 3.2.4": bins_that_end,
    "Algorithm 2, last line": clamped_probability,
    "section 4.2": lambda: (variance_gradient(1e-3, False), variance_gradient(1e-4, False)),
    "section 4.3": lambda: (variance_gradient(1e-4, True), variance_gradient(1e-4, False)),
    "section 4.5": mean_weights,
    "section 5.3": lambda: weights(2, 7, 10, 50),
    "section 6.2 and figure 6.4": variance_bounds,
    "section 6.2; also section 6.1": lambda: [best_variances(MIXTURE)[0].max()],
    "Hypothesis 4": fixed_variance,
    "eq. 6.1": weight_of_the_hybrid_loss,
    "section 6.2, the result": mean_of_the_hybrid_loss,
    "the end of section 14.5.4": best_slopes,
    "section 14.5.4, the KL": large_variance,
    "section 14.5.4, L_{t−1}": unit_kls,
    "section 14.5.5; also the note": longer_chains,
    "section 14.5.5, L₀": reconstruction_of_levels,
    "The Simple Loss Drops the Weight": weights_of_the_steps,
    "the claim, and The Simple Loss Drops the Weight": factor_of_t,
    "the claim, “+ const”": first_level,
    "Why the Reweighting Helps; also": no_bound,
    "Why the Reweighting Helps": lambda: unit_kls()[:3],
    "of the number of steps": more_steps,
}  # fmt: skip


def of(where: str):
    """The function of an entry: that with the longest name that its heading begins with."""
    return NUMBERS[max((name for name in NUMBERS if where.startswith(name)), key=len)]


@pytest.mark.parametrize("where", ENTRIES, ids=lambda where: where[:40])
def test_the_numbers_of_the_page(where):
    shown = [text.replace("−", "-") for text in re.findall(r"\*\*(.*?)\*\*", ENTRIES[where])]
    values = [float(value) for value in of(where)()]
    assert len(values) == len(shown) > 0
    for text, value in zip(shown, values, strict=True):
        mantissa, _, exponent = text.partition("e")
        last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        assert abs(float(text) - value) <= 0.501 * last, (values, shown)


def test_every_entry_has_a_function_of_its_own():
    assert sorted(map(id, map(of, ENTRIES))) == sorted(map(id, NUMBERS.values()))
    assert len(ENTRIES) == 51

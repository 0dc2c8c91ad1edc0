"""From noise to data: the flow and the diffusion that share their marginals, their steps,
guidance, and the likelihood along the flow."""

import itertools
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from vdiff.flow import angle
from vdiff.gaussian import Step, alpha, diffuse, per_example, sigma
from vdiff.likelihood import Exact, ode_likelihood
from vdiff.likelihood.trace import Trace
from vdiff.loss import predict_at
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.reverse import reverse_sample
from vdiff.sampling import Guided, History, ancestral, ddim, trajectory
from vdiff.schedule import Linear
from vdiff.theorems.integral import average, slope
from vdiff.theorems.scores import gradient_of_log_density
from vdiff.theorems.subject import HIGH, LOW, ORACLE, Subject, f64, normal
from vdiff.theorems.theorem import Sides, equal, sampled, theorem

SDE, DDIM = "Score SDE, arXiv:2011.13456", "DDIM, arXiv:2010.02502"
LAMBDA = f64([-2.0, 0.0, 1.5])


def flow(z: Tensor, lam: Tensor) -> Tensor:
    """The flow's dz/dλ of the exact denoiser: v̂ = dz/dφ in the solver's angle, times dφ/dλ."""
    found: Tensor = slope(angle, lam)[:, None] * ORACLE(z, lam).v
    return found


@theorem(f"{SDE}, eq. 13", without={"the drift has one half of ε̂": {"share": 1.0}})
def flow_has_the_marginals(share: float = 0.5) -> Sides:
    """The flow dz/dλ = ½ σ (σ z − ε̂) carries the density of the noisy data along: ∂q/∂λ = −∂(v
    q)/∂z."""
    points = torch.linspace(-2, 2, 17, dtype=torch.float64)
    z, lam = points.repeat(len(LAMBDA))[:, None], LAMBDA.repeat_interleave(len(points))

    def density(by: Tensor) -> Tensor:
        return ORACLE.noisy_log_prob(z, lam + by).exp()

    def current(by: Tensor) -> Tensor:
        drift = flow(z + by, lam) - (share - 0.5) * sigma(lam)[:, None] * ORACLE(z + by, lam).eps
        moved: Tensor = ORACLE.noisy_log_prob(z + by, lam).exp() * drift[:, 0]
        return moved

    left, right = slope(density, f64(0.0)), -slope(current, f64(0.0))
    return equal(left, right, rel=1e-6, atol=1e-8, why="difference quotients of fourth order")


@theorem(f"{SDE}, eq. 6", without={"the noise is there": {"noise": 0.0}})
def reverse_diffusion_has_the_marginals(noise: float = 1.0) -> Sides:
    """Ancestral steps are the reverse SDE dz = (½ σ² z − σ ε̂) dλ + σ dW: as they shrink, their
    moments change as those of the noisy data do."""

    def moments(*draws: Tensor) -> Tensor:
        z = torch.stack(draws)[..., 0]
        return torch.stack([z**2, z**3, torch.cos(z)]).mean(1)

    def changes(h: float) -> Tensor:
        def of(x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
            said = predict_at(ORACLE, x, eps, level, {})
            step = Step(level, torch.full_like(level, h))
            draws = [reverse_sample(said, step, torch.full_like(x, n)) for n in (-noise, noise)]
            after = moments(*draws), moments(diffuse(x, eps, level + h))
            return (torch.cat(after) - moments(said.z).repeat(2, 1)) / h

        return average(ORACLE, LAMBDA, of)

    fine, coarse = changes(5e-4), changes(1e-3)
    left, right = (2 * fine - coarse).chunk(2)
    return equal(left, right, rel=1e-4, atol=1e-6, why="the second order in the step's length")


@theorem(f"{DDIM}, eq. 14", without={"the coordinates are z/α over σ/α": {"exploding": False}})
def ddim_is_eulers_step(subject: Subject, exploding: bool = True) -> Sides:
    """A DDIM step is Euler's step of the flow, exactly, in the coordinates z/α over σ/α, whatever
    the network predicts."""
    z, t, s = _between(subject, "ddim")
    if exploding:  # d(z/α)/d(σ/α) = ε̂
        length = per_example(torch.exp(-0.5 * s) - torch.exp(-0.5 * t), z)
        scaled = z / per_example(alpha(t), z) + length * subject.model(z, t).eps
        right = per_example(alpha(s), z) * scaled
    else:  # dz/dλ = −½ α σ v̂
        right = z - 0.5 * per_example((s - t) * alpha(t) * sigma(t), z) * subject.model(z, t).v
    return equal(ddim(subject.model, z, t, s), right, rel=1e-8, atol=1e-9)


def _between(subject: Subject, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy data at λ_t, λ_t and a higher λ_s."""
    x, eps, u = subject.drawn(name, 64)
    t = LOW + (HIGH - LOW - 2) * u
    return diffuse(x, eps, t), t, t + 2 * u.flip(0)


@theorem(f"{DDIM}, eq. 16", without={"η = 1": {"eta": 0.5}})
def ddim_with_noise_is_ancestral(subject: Subject, eta: float = 1.0) -> Sides:
    """DDIM's step is α_s x̂ + σ_s (√(1 − η²c) ε̂ + η √c n), c = 1 − e^{λ_t − λ_s}, and with η = 1
    it is ancestral sampling."""
    z, t, s = _between(subject, "eta")
    said, c = subject.model(z, t), 1 - torch.exp(t - s)
    noise = torch.randn(z.shape, generator=subject.generator("noise"), dtype=torch.float64)
    left, right = [], []
    for e in (eta, 0.3):
        history = History(generator=subject.generator("noise"))
        left.append(ddim(subject.model, z, t, s, history, eta=e))
        kept, new = sigma(s) * (1 - e**2 * c).sqrt(), sigma(s) * e * c.sqrt()
        signal = per_example(alpha(s), z) * said.x
        right.append(signal + per_example(kept, z) * said.eps + per_example(new, z) * noise)
    right[0] = ancestral(subject.model, z, t, s, History(generator=subject.generator("noise")))
    return equal(torch.stack(left), torch.stack(right), rel=1e-7, atol=1e-9)


@theorem(
    "from affine Gaussian kernels", without={"the number of steps is the chain's": {"claimed": 64}}
)
def ancestral_samples_have_the_chains_law(claimed: int = 4) -> Sides:
    """Ancestral samples have the mean and the variance of the chain's own law; its variance at few
    steps is less than that of the data."""
    m, v, schedule = 0.3, 0.25, Linear(HIGH, LOW)
    mean, variance = f64(0.0), f64(1.0)
    lam = schedule(torch.linspace(1, 0, claimed + 1, dtype=torch.float64))
    for t, s in itertools.pairwise(lam):  # q(z_s | z_t, x) by Bayes' rule, at x = E[x | z_t]
        shrink, var_t, var_s = alpha(t) / alpha(s), torch.sigmoid(-t), torch.sigmoid(-s)
        new = var_t - shrink**2 * var_s
        total = alpha(t) ** 2 * v + var_t
        of_x = new * alpha(s) / var_t
        slope = shrink * var_s / var_t + of_x * alpha(t) * v / total
        mean, variance = (
            slope * mean + of_x * m * var_t / total,
            slope**2 * variance + var_s * new / var_t,
        )
    z, generator = normal("start", 40_000, 1), torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"schedule": schedule, "steps": 4, "generator": generator}
    *_, (last, _) = trajectory(Gaussian([m], [v]), z, **options)
    draws = torch.cat([last, (last - mean).square()], 1)
    return sampled(draws, torch.stack([mean, variance]))


CLASSES = [
    GaussianMixture([0.5, 0.5], [[-0.6], [0.6]], [[0.2], [0.2]]),
    Gaussian([-0.6], [0.2]),
    Gaussian([0.6], [0.2]),
]


def labelled(z: Tensor, logsnr: Tensor, label: Tensor) -> Prediction:
    """The exact denoiser of one of two classes (1, 2), or of both (0)."""
    of_each = torch.stack([model(z, logsnr).eps for model in CLASSES])
    return Prediction(z, logsnr, of_each[label, torch.arange(len(z))], Eps())


@theorem(
    "Classifier-free guidance, arXiv:2207.12598, eq. 6",
    without={"the scale is 1 + w": {"scale": 2.0}},
)
def guidance_sharpens_the_posterior(scale: float = 3.0) -> Sides:
    """Guidance by w, a scale of 1 + w, follows the score of q(z | c) q(c | z)^w at each λ; here w
    = 2."""
    (z, lam), label = (f64([[-0.4], [0.9]]), f64([0.5, -1.0])), torch.tensor([1, 2])
    guided = Guided(labelled, scale, {"label": 0})(z, lam, label=label)
    of_both, *of_one = (gradient_of_log_density(model, z, lam) for model in CLASSES)
    given = torch.stack(of_one)[label - 1, torch.arange(2)]
    posterior = given - of_both  # ∇ log q(c | z)
    return equal(guided.score, given + 2.0 * posterior, rel=1e-9)


class Nothing(Trace):
    """No divergence at all."""

    exact = True

    def directions(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        return torch.zeros_like(z)[None]


EXACT = Exact()


@theorem(f"{SDE}, eq. 39", without={"the divergence is counted": {"trace": Nothing()}})
def likelihood_along_the_flow(trace: Trace = EXACT) -> Sides:
    """log q(z) along the flow changes by −div v: the exact density, from the noisy end and an
    integral. By `ode_likelihood`, where its solver is installed, and by Runge-Kutta."""
    steps, high, low = 400, 3.0, -4.0
    lam = torch.linspace(high, low, steps + 1, dtype=torch.float64)
    x = f64([[-1.2], [0.1], [0.7], [1.5]])
    z = alpha(lam[0]) * x
    truth = ORACLE.noisy_log_prob(z, lam[:1].expand(4)) + alpha(lam[0]).log()
    gained = torch.zeros(4, dtype=torch.float64)

    def both(at: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            v = flow(at, level.expand(4))
            divergence = trace.divergence(v, at, trace.directions(at, [torch.Generator()] * 4))
        return v.detach(), divergence[:, 0].detach()

    for now, after in itertools.pairwise(lam):
        h = after - now
        v1, d1 = both(z, now)
        v2, d2 = both(z + 0.5 * h * v1, now + 0.5 * h)
        v3, d3 = both(z + 0.5 * h * v2, now + 0.5 * h)
        v4, d4 = both(z + h * v3, after)
        z = z + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        gained = gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    left = [ORACLE.noisy_log_prob(z, lam[-1:].expand(4)) + gained + alpha(lam[0]).log()]
    if find_spec("torchdiffeq"):
        options: dict[str, Any] = {
            "schedule": Linear(high, low),
            "prior": ORACLE,
            "tolerance": 1e-9,
        }
        left.append(-ode_likelihood(ORACLE, x, trace=trace, **options).nats)
    return equal(torch.stack(left), truth, rel=1e-6, atol=1e-6, why="the solver's tolerance")

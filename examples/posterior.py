"""p(θ | x) on the two-moons benchmark of simulation-based inference: log-density, samples, C2ST.

The simulator (Greenberg et al., arXiv:1905.07488; in the benchmark of Lueckmann et al.,
arXiv:2101.04653, section T.8): θ ~ U(−1, 1)², and

    x = p + (−|θ₁ + θ₂|, θ₂ − θ₁)/√2,   p = (r cos a + ¼, r sin a),
    a ~ U(−π/2, π/2),   r ~ N(0.1, 0.01²).

A turn keeps areas, so p(x | θ) is the density of p, N(r; 0.1, 0.01²)/(π r) on u = p₁ − ¼ > 0, and
the posterior is half of it on each of two crescents, where these lie in the prior's square. (The
benchmark's own `_likelihood` lacks the 1/(π r); its reference samples have it.)

A network of (z, λ, x) learns the posterior of every x at once, from a million simulations. The
log-density is that of the probability-flow ODE, with its solver's error. (With less noise than
half the moons' width at λ_max, or with fewer simulations, the flow leads one θ in a thousand
away from all data. Its log-density is then very low, and the solver's error is large.)

Two to four minutes on one core:

    python examples/posterior.py            # C2ST 0.50 to 0.53, KL 0.11 to 0.17 nats
    python examples/posterior.py --quick    # seconds: too few steps for a good posterior

C2ST is the accuracy of a classifier of exact and drawn samples, 0.5 at best; its standard error
is 0.005 with 5,000 of each. Needs the extras `train` (scikit-learn) and `ode`.
"""

import math

import torch
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import vdiff
from vdiff.cli.parser import Parser
from vdiff.likelihood import ode_likelihood
from vdiff.nn import MLP
from vdiff.parameterization import V
from vdiff.sampling import ddim
from vdiff.schedule import Linear
from vdiff.terminal import replace_unencodable, say

OBSERVED = torch.tensor([[0.0, 0.0], [-0.4, 0.2], [0.1, -0.5]])
RADIUS, WIDTH, OFFSET = 0.1, 0.01, 0.25

# ---- the problem: simulator, exact posterior


def turn(theta: Tensor) -> Tensor:
    """((θ₁ + θ₂)/√2, (θ₂ − θ₁)/√2)."""
    return torch.stack([theta.sum(1), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)


def crescent(n: int) -> Tensor:
    angle, radius = math.pi * (torch.rand(n) - 0.5), RADIUS + WIDTH * torch.randn(n)
    return torch.stack([radius * angle.cos() + OFFSET, radius * angle.sin()], 1)


def simulate(theta: Tensor) -> Tensor:
    """x, (n, 2), one for each θ."""
    turned = turn(theta)
    return crescent(len(theta)) + torch.stack([-turned[:, 0].abs(), turned[:, 1]], 1)


def exact_sample(x: Tensor, n: int) -> Tensor:
    """n draws of θ from the exact posterior of one x, (1, 2)."""
    off = crescent(n) - x
    first = off[:, 0] * torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    return torch.stack([first + off[:, 1], first - off[:, 1]], 1) / math.sqrt(2)


def exact_log_prob(theta: Tensor, x: Tensor) -> Tensor:
    """log p(θ | x), nats, of an x whose two crescents lie in the prior's square."""
    turned = turn(theta)
    u, v = (x - torch.stack([-turned[:, 0].abs() + OFFSET, turned[:, 1]], 1)).unbind(1)
    radius = torch.hypot(u, v)
    of_radius = torch.distributions.Normal(RADIUS, WIDTH).log_prob(radius)
    return torch.where(u > 0, of_radius - torch.log(2 * math.pi * radius), -torch.inf)


# ---- the posterior with vdiff: training, samples, log-density

SCHEDULE = Linear(10.6, -6.0)  # log-SNR: from noise of 0.005, half the moons' width, to 20


def train(simulations: int, steps: int, batch: int = 512) -> vdiff.Denoiser:
    theta = 2 * torch.rand(simulations, 2) - 1
    x = simulate(theta)
    network = MLP(4, dims_out=2, width=128, depth=4)
    model = vdiff.Denoiser(
        network, V(0.58), call=lambda network, z, t, x: network(torch.cat([z, x], 1), t)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        rows = torch.randint(simulations, (batch,))
        condition = {"x": x[rows]}
        loss = vdiff.weighted_elbo(model, theta[rows], schedule=SCHEDULE, condition=condition)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        decay.step()
    return model


def sample(model: vdiff.Denoiser, x: Tensor, n: int) -> Tensor:
    condition = {"x": x.expand(n, 2)}
    options = {"schedule": SCHEDULE, "steps": 64, "step": ddim}
    return vdiff.sample(model, torch.randn(n, 2), condition=condition, **options)


def log_prob(model: vdiff.Denoiser, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(θ | x) of each θ, nats, and how much half the solver's tolerance changed it."""
    condition = {"x": x.expand_as(theta)}
    flow = ode_likelihood(
        model, theta, schedule=SCHEDULE, condition=condition, tolerance=1e-4, audit=True
    )
    return -flow.nats, flow.change


# ---- how good is it?


def c2st(exact: Tensor, drawn: Tensor) -> float:
    """The accuracy of the benchmark's classifier, by cross-validation in five parts."""
    points = torch.cat([exact, drawn]).sub(exact.mean(0)).div(exact.std(0))
    labels = [0] * len(exact) + [1] * len(drawn)
    classifier = MLPClassifier((20, 20), max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(classifier, points.numpy(), labels, cv=folds).mean())


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps and samples")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    model = train(1_000, 100) if quick else train(1_000_000, 12_000)
    n, points = (100, 8) if quick else (5000, 512)
    for x in OBSERVED.split(1):
        exact = exact_sample(x, n)
        drawn, others = sample(model, x, n), exact_sample(x, n)
        say(
            f"x = ({x[0, 0]:g}, {x[0, 1]:g}): C2ST {c2st(exact, drawn):.3f}, of exact samples "
            f"against others {c2st(exact, others):.3f}"
        )
        theta = exact[:points]
        found, change = log_prob(model, theta, x)
        known = exact_log_prob(theta, x)
        for i in range(3):
            say(
                f"    θ = ({theta[i, 0]:+.3f}, {theta[i, 1]:+.3f})  log p(θ | x) "
                f"{found[i]:.4f} ± {change[i].abs():.4f} (solver), exact {known[i]:.4f}"
            )
        off = known - found
        error = off.std() / math.sqrt(points)
        say(f"    KL(exact ‖ model) {off.mean():.3f} ± {error:.3f} nats over {points} θ")


if __name__ == "__main__":
    replace_unencodable()
    main()

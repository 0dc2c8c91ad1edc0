"""A whole diffusion model in one file: two moons, plain PyTorch, no library. Read it first.

Everything is a function of the log signal-to-noise ratio λ. Data x becomes the noisy z = α x + σ ε
with

    α² = sigmoid(λ),   σ² = sigmoid(−λ),   ε ~ N(0, I),

and a network that sees (z, λ) is trained by one weighted integral over λ,

    L_w(x) = ½ E_{t, ε}[ w(λ) · (−dλ/dt) · ‖ε − ε̂(z, λ)‖² ],   t ~ U(0, 1).

Three choices make a method: the schedule λ(t), what the network predicts, and the weighting w(λ).
The last lines compute the same loss with vdiff and print both numbers.

    python examples/tiny.py         # 30 seconds on a CPU; expect 1.92 nats, twice
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

LOGSNR_MAX, LOGSNR_MIN = 12.0, -12.0


# ---- data: two half circles, 2 numbers a point, about unit variance


def two_moons(n: int) -> Tensor:
    angle = math.pi * torch.rand(n)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    x = torch.where(torch.rand(n, 1) < 0.5, upper, lower) + 0.05 * torch.randn(n, 2)
    return (x - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.50])


# ---- 1. the schedule: where on the λ axis do we look? Cosine: λ = −2 log tan(πt/2)


def angle_at(t: Tensor) -> Tensor:
    start, stop = (math.atan(math.exp(-0.5 * end)) for end in (LOGSNR_MAX, LOGSNR_MIN))
    return start + (stop - start) * t


def logsnr_at(t: Tensor) -> Tensor:
    return -2 * torch.log(torch.tan(angle_at(t)))


def rate_at(t: Tensor) -> Tensor:
    """−dλ/dt."""
    return 4 * (angle_at(torch.ones(1)) - angle_at(torch.zeros(1))) / torch.sin(2 * angle_at(t))


# ---- 2. the target: what does the network predict? Here v = α ε − σ x


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    return logsnr.sigmoid().sqrt()[:, None], (-logsnr).sigmoid().sqrt()[:, None]


class Network(nn.Module):
    """(z, λ) to v̂."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(math.log(0.05), 0, 16)))
        self.layers = nn.Sequential(
            nn.Linear(2 + 32, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        waves = logsnr[:, None] * self.frequencies
        return self.layers(torch.cat([z, waves.sin(), waves.cos()], 1))


def x_and_eps(v: Tensor, z: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """What the network says of the data and of the noise."""
    alpha, sigma = alpha_sigma(logsnr)
    return alpha * z - sigma * v, sigma * z + alpha * v


# ---- 3. the weighting: which λ count? w = 1 is the evidence lower bound; this one is VDM++'s


def weight_at(logsnr: Tensor) -> Tensor:
    return torch.sigmoid(2 - logsnr)


# ---- the loss: one line, nats per point


def loss_of(network: nn.Module, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    logsnr = logsnr_at(t)
    alpha, sigma = alpha_sigma(logsnr)
    z = alpha * x + sigma * eps
    _, eps_hat = x_and_eps(network(z, logsnr), z, logsnr)
    return 0.5 * weight_at(logsnr) * rate_at(t) * (eps - eps_hat).square().sum(1)


def train(network: nn.Module, steps: int = 3000, batch: int = 512) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        # one t in each of `batch` equal strata, and each t by itself uniform: less variance
        t = (torch.arange(batch) / batch + torch.rand(1)) % 1
        loss = loss_of(network, two_moons(batch), t, torch.randn(batch, 2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---- sampling: DDIM. From λ to λ' the same x̂ and ε̂ are mixed anew


@torch.no_grad()
def sample(network: nn.Module, n: int, steps: int = 50) -> Tensor:
    times = torch.linspace(1, 0, steps + 1)
    z = torch.randn(n, 2)
    for t, s in pairwise(times):
        logsnr = logsnr_at(t.expand(n))
        x_hat, eps_hat = x_and_eps(network(z, logsnr), z, logsnr)
        alpha, sigma = alpha_sigma(logsnr_at(s.expand(n)))
        z = alpha * x_hat + sigma * eps_hat
    return z


def main() -> None:
    torch.manual_seed(0)
    network = Network()
    train(network)
    points, data = sample(network, 2000), two_moons(2000)
    print(f"mean of samples {points.mean(0).tolist()}, of data {data.mean(0).tolist()}")
    print(f"std  of samples {points.std(0).tolist()}, of data {data.std(0).tolist()}")

    # the same loss by the library: the three choices are three objects
    import vdiff
    from vdiff.schedule import Cosine

    x, t, eps = two_moons(4096), torch.rand(4096), torch.randn(4096, 2)
    model = vdiff.Denoiser(network, vdiff.parameterization.V())
    schedule, weighting = Cosine(LOGSNR_MAX, LOGSNR_MIN), vdiff.weighting.Sigmoid(bias=2)
    theirs = vdiff.weighted_elbo(model, x, schedule=schedule, weighting=weighting, t=t, eps=eps)
    print(f"this file {loss_of(network, x, t, eps).mean():.5f}, vdiff {theirs.mean():.5f} nats")


if __name__ == "__main__":
    main()

"""A time series whose entropy is known: bits per number of a one-dimensional U-Net against it.

The data is a Gaussian autoregressive process, a noisy oscillation,

    x_t = φ₁ x_{t−1} + φ₂ x_{t−2} + e_t,   e_t ~ N(0, s²),

in windows of 64 numbers. A window is Gaussian, so −log p(x) and the perfect denoiser are known
exactly (`vdiff.oracle.Gaussian`). The bounds of the trained network and of the perfect denoiser
are measured on the same windows, in bits per number of a density; their differences from −log p
have Monte Carlo errors.

    python examples/series.py            # three minutes on one core
    python examples/series.py --quick    # seconds: too few steps for a good model

Expect 0.002 bits above −log p for the perfect denoiser, the price of the noise at λ_max, and
0.01 for the network, each ± 0.002.
"""

import math

import torch
from torch import Tensor

import vdiff
from vdiff.cli.parser import Parser
from vdiff.decoder import Gaussian
from vdiff.likelihood import Estimate
from vdiff.nn import UNet1d
from vdiff.oracle import Gaussian as GaussianData
from vdiff.parameterization import V
from vdiff.schedule import Linear
from vdiff.terminal import replace_unencodable, say

PHI = 1.6, -0.8
STD = 0.2  # of x_t, which then lies in [−1, 1]
LENGTH = 64
SCHEDULE = Linear(13.3, -5.0)


def autocovariance(lags: int) -> Tensor:
    """E[x_t x_{t+k}] for k = 0 … lags − 1, by the recursion of the process (Yule–Walker)."""
    rho = [1.0, PHI[0] / (1 - PHI[1])]
    while len(rho) < lags:
        rho.append(PHI[0] * rho[-1] + PHI[1] * rho[-2])
    return STD**2 * torch.tensor(rho, dtype=torch.float64)


def process(length: int) -> GaussianData:
    """A window of the process: its covariance is a function of the lag."""
    t = torch.arange(length)
    return GaussianData(torch.zeros(length), autocovariance(length)[(t[:, None] - t).abs()])


def entropy_rate() -> float:
    """h = ½ log₂ 2πe s², bits per number: what one more number costs when the past is known."""
    covariance = autocovariance(3)
    innovation = covariance[0] - PHI[0] * covariance[1] - PHI[1] * covariance[2]
    return 0.5 * math.log2(2 * math.pi * math.e * innovation.item())


def train(data: GaussianData, steps: int, batch: int = 64) -> vdiff.Denoiser:
    model = vdiff.Denoiser(UNet1d(1, width=16, multipliers=(1, 2, 2)), V(STD))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        x = data.sample(batch)[:, None].float()
        loss = vdiff.weighted_elbo(model, x, schedule=SCHEDULE).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return model


def bits(model: torch.nn.Module, x: Tensor, tolerance: float) -> Estimate:
    """The bound of the model on the windows x, bits per number of a density."""
    return vdiff.evaluate(
        model, x, schedule=SCHEDULE, decoder=Gaussian(), tolerance=tolerance
    ).total


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, short windows")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    data = process(16 if quick else LENGTH)
    x = data.sample(64 if quick else 256)
    truth = -vdiff.bits_per_dim(data.log_prob(x), data.dims).mean().item()
    say(f"entropy rate {entropy_rate():.4f}, −log p of these windows {truth:.4f} bits per number")
    network = train(data, 100 if quick else 1500)
    models = {"perfect denoiser": (data, x), "UNet1d": (network, x[:, None].float())}
    for name, (model, windows) in models.items():
        found = bits(model, windows, 0.01 if quick else 0.002)
        above, error = found.value - truth, found.monte_carlo
        say(f"{name:<18}{found.value:.4f}, {above:.4f} ± {error:.4f} above −log p")


if __name__ == "__main__":
    replace_unencodable()
    main()

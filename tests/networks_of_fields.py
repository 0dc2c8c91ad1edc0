"""Networks that take a field of log-SNR, and data, noise and masks for them."""

import torch
from torch import Tensor, nn

from vdiff.parameterization import Eps
from vdiff.prediction import Prediction
from vdiff.schedule import Linear

N, D, T = 12, 2, 10
LINEAR = Linear(8.0, -6.0)


class Network(nn.Module):
    """Takes (batch,) times and fields; mixes the dimensions and their times."""

    def __init__(self, parts: int = 1, dtype: torch.dtype = torch.float32, dims: int = D) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(dims, parts * dims, dtype=dtype)
        self.parts = parts

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        time = time[:, None] if time.ndim == 1 else time
        gate = torch.sigmoid(time).to(z.dtype).expand_as(z)
        return self.layer(gate * z) * gate.repeat(1, self.parts)


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, N, D, dtype=dtype, generator=generator)
    return x, eps, (torch.arange(N).double() + 0.5) / N


def of_levels() -> Tensor:
    return torch.arange(N * D).view(N, D) % 17


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def told(z: Tensor, logsnr: Tensor) -> Prediction:
    """ε̂_i = ½ z_i + tanh(λ_i + the other's λ), whatever the shape of λ."""
    level = logsnr if logsnr.ndim == z.ndim else logsnr.view(-1, *[1] * (z.ndim - 1))
    level = level.expand_as(z)
    return Prediction(z, logsnr, 0.5 * z + torch.tanh(level + level.flip(-1)), Eps())

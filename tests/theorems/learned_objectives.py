"""Objectives of learned schedules, and draws of their losses."""

import torch
from torch import Tensor, nn

from vdiff.schedule import Monotone, Spline

LEVELS = 5
SHAPES = {
    "monotone": lambda **o: Monotone(6.0, -4.0, hidden=16, **o),
    "spline": lambda **o: Spline(6.0, -4.0, knots=7, **o),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        for p in self.parameters():
            p.data = 0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(torch.cat([z, 0.2 * logsnr[:, None]], 1))))
        return out


def draws(n: int = 24) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    t, eps = (
        torch.rand(n, generator=generator, dtype=torch.float64),
        torch.randn(n, 2, generator=generator, dtype=torch.float64),
    )
    return torch.randint(0, LEVELS, (n, 2), generator=generator), {"t": t, "eps": eps}

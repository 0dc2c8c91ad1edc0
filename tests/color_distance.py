"""How far apart two colors are to a reader with or without a color vision deficiency: ΔE2000 of
what the deficiency makes of them."""

import math

import torch
from torch import Tensor

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
DEFICIENCIES = {
    "none": torch.eye(3, dtype=torch.float64),
    "protanopia": torch.tensor(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        dtype=torch.float64,
    ),
    "deuteranopia": torch.tensor(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        dtype=torch.float64,
    ),
}
XYZ = torch.tensor(  # of linear sRGB, white D65
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    dtype=torch.float64,
)


def lab(color: str, deficiency: str = "none") -> tuple[float, ...]:
    """CIE L*a*b* of "#rrggbb"."""
    rgb = torch.tensor([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.float64) / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (DEFICIENCIES[deficiency] @ linear).clamp(0, 1)
    share: Tensor = XYZ @ seen / XYZ.sum(1)
    small = share / (3 * (6 / 29) ** 2) + 4 / 29
    x, y, z = torch.where(share > (6 / 29) ** 3, share ** (1 / 3), small).tolist()
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def delta_e_2000(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Sharma, Wu & Dalal 2005, equations 2 to 22."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    chroma = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(chroma**7 / (chroma**7 + 25**7)))
    c1, c2 = math.hypot((1 + g) * a1, b1), math.hypot((1 + g) * a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, (1 + g) * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    lightness, c = (l1 + l2) / 2, (c1 + c2) / 2
    h = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    t = 1 - sum(
        size * math.cos(math.radians(k * h + shift))
        for size, k, shift in ((0.17, 1, -30), (-0.24, 2, 0), (-0.32, 3, 6), (0.20, 4, -63))
    )
    off = (lightness - 50) ** 2
    parts = (
        (l2 - l1) / (1 + 0.015 * off / math.sqrt(20 + off)),
        (c2 - c1) / (1 + 0.045 * c),
        2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2)) / (1 + 0.015 * c * t),
    )
    rotation = -2 * math.sqrt(c**7 / (c**7 + 25**7))
    rotation *= math.sin(math.radians(60 * math.exp(-(((h - 275) / 25) ** 2))))
    return math.sqrt(sum(part**2 for part in parts) + rotation * parts[1] * parts[2])

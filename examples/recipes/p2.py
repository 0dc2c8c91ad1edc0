"""P2 weighting (γ = 1, k = 1) on CIFAR-10: the plain ε-loss under the cosine schedule over 1 +
SNR; on a U-Net of DDPM's size.

Reproduces:  the objective of Perception Prioritized Training of Diffusion Models
             (arXiv:2204.00227), whose results are on faces, flowers and rooms at 256×256. With
             Adam and the averages of `ddpm`.
Expect:      no published CIFAR-10 number.
Takes:       as `ddpm`.
"""

from dataclasses import replace

from recipes.min_snr import CONFIG as MIN_SNR
from recipes.min_snr import PLAIN

CONFIG = replace(
    MIN_SNR,
    weighting={"name": "Product", "base": PLAIN, "factor": {"name": "P2", "gamma": 1.0, "k": 1.0}},
)

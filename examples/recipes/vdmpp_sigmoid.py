"""VDM++'s sigmoid weighting on CIFAR-10: v-prediction, w = sigmoid(2 − λ), the density over λ
adaptive; on a U-Net of DDPM's size.

Reproduces:  the objective of Understanding Diffusion Objectives as the ELBO with Simple Data
             Augmentation (arXiv:2303.00848), whose results are on ImageNet. With Adam and the
             averages of `ddpm`.
Expect:      no published CIFAR-10 number; on ImageNet-64 the weighting took FID from 1.85 to 1.68.
Takes:       as `ddpm`.
"""

from dataclasses import replace

from recipes.ddpm import CONFIG as DDPM
from recipes.edm import CONFIG as EDM

CONFIG = replace(
    DDPM,
    network=EDM.network | {"dropout": 0.1},
    parameterization={"name": "V"},
    schedule={"name": "Adaptive", "logsnr_max": 15.0, "logsnr_min": -15.0, "first_moment": True},
    weighting={"name": "Sigmoid", "bias": 2.0},
    decoder=EDM.decoder,
    chain=None,
    bound_weight=None,
    variance=None,
)

"""DDPM on CIFAR-10: 1,000 noise levels, ε-prediction, the simple loss on every one of them.

Reproduces:  Denoising Diffusion Probabilistic Models (arXiv:2006.11239), L_simple, and the
             authors' released settings.
Expect:      FID 3.17 by its 1,000 steps; at most 3.75 bits/dim, since the simple loss is not the
             bound (training the bound: 3.70).
Takes:       800,000 steps; the authors: 10.6 hours on a TPU v3-8, 21 steps a second.

Of 1,000 levels 999 are ends of steps and the first is the decoder's, which looks at the network; a
bound_weight of 0 is the simple loss on all of them. Their gradients are clipped at 1 where the
loss is in nats per dimension; here it is in bits.
"""

import math

from vdiff.chain import first_variance
from vdiff.schedule import Tabulated
from vdiff.training import Config

STEPS = 999

CONFIG = Config(
    data="cifar10",
    shape=[3, 32, 32],
    network={"name": "DDPMUNet", "dropout": 0.1},
    parameterization={"name": "Eps"},
    schedule={"name": "Tabulated.linear_betas"},
    chain=STEPS,
    bound_weight=0.0,
    variance={"name": "FixedLarge"},
    decoder={
        "name": "DiscretizedGaussian",
        "levels": 256,
        "uses_network": True,
        "variance": first_variance(Tabulated.linear_betas(), STEPS),
    },
    level_head=False,
    augment="flip",
    steps=800_000,
    batch=128,
    lr=2e-4,
    warmup=5000,
    decay="constant",
    weight_decay=0.0,
    betas=[0.9, 0.999],
    clip=1.0 / math.log(2),
    ema=[0.9999],
    autocast=True,
    compile=True,
    channels_last=True,
)

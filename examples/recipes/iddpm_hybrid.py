"""iDDPM on CIFAR-10 by the hybrid loss: the simple loss for the mean, a thousandth of the bound
for a learned variance.

Reproduces:  Improved Denoising Diffusion Probabilistic Models (arXiv:2102.09672), L_hybrid, cosine
             table of 4,000 levels.
Expect:      3.17 bits/dim, FID 3.19.
Takes:       500,000 steps at batch 128; the authors give no time.

The weight is 0.001 on a bound in bits, as in the authors' code, so 0.001/ln 2 in nats.
"""

import math

from vdiff.chain import first_variance
from vdiff.schedule import Tabulated
from vdiff.training import Config

LEVELS, STEPS = 4000, 3999

CONFIG = Config(
    data="cifar10",
    shape=[3, 32, 32],
    network={"name": "IDDPMUNet", "dropout": 0.3},
    parameterization={"name": "Eps"},
    schedule={"name": "Tabulated.cosine_betas", "levels": LEVELS},
    chain=STEPS,
    bound_weight=0.001 / math.log(2),
    variance={"name": "LearnedRange"},
    decoder={
        "name": "DiscretizedGaussian",
        "levels": 256,
        "uses_network": True,
        "posterior_variance": first_variance(Tabulated.cosine_betas(LEVELS), STEPS),
    },
    level_head=False,
    steps=500_000,
    batch=128,
    lr=1e-4,
    warmup=0,
    decay="constant",
    weight_decay=0.0,
    betas=[0.9, 0.999],
    clip=None,
    ema=[0.9999],
    autocast=True,
    compile=True,
    channels_last=True,
)

"""VDM on CIFAR-10 without augmentation: λ linear in t between ends that are learned.

Reproduces:  Variational Diffusion Models (arXiv:2107.00630), table 1, and the authors' released
             settings.
Expect:      2.65 bits/dim (their released weights: 2.637); 2.72 after 2 million steps in a port,
             addtt/variational-diffusion-models.
Takes:       10 million steps; at 300 images a second, 49 days. Overfits towards the end: watch the
             gap.

Fixed ends are `vdm-fixed`, the learned shape γ_η `vdm-gamma`, an adaptive density `vdm-adaptive`.
"""

from vdiff.training import Config

CONFIG = Config(
    data="cifar10",
    shape=[3, 32, 32],
    network={"name": "VDMUNet", "dropout": 0.1, "logsnr_max": 13.3, "logsnr_min": -5.0},
    parameterization={"name": "Eps"},
    schedule={"name": "LearnedLinear", "logsnr_max": 13.3, "logsnr_min": -5.0},
    decoder={"name": "Categorical", "levels": 256},
    level_head=False,
    steps=10_000_000,
    batch=128,
    lr=2e-4,
    schedule_lr=2e-4,
    warmup=100,
    decay="constant",
    weight_decay=0.01,
    betas=[0.9, 0.99],
    clip=None,
    ema=[0.9999],
    autocast=True,
    compile=True,
    channels_last=True,
)

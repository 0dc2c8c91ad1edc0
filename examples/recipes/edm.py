"""EDM's objective on CIFAR-10: log σ normal, preconditioned for data of deviation ½; on a U-Net of
DDPM's size.

Reproduces:  the objective, optimizer, batch and duration of Elucidating the Design Space of
             Diffusion-Based Generative Models (arXiv:2206.00364), unconditional. Not its network
             (DDPM++, 56 M) nor its augmentation, here flips.
Expect:      with theirs, FID 1.97 at 35 evaluations of Heun's method; bits/dim is not what it
             trains.
Takes:       200 million images; the authors: two days on eight V100s.

The averages' half-life is half a million images; sample with `vdiff sample RUN --step heun --grid
karras --steps 17`.
"""

from vdiff.training import Config

BATCH = 512

CONFIG = Config(
    data="cifar10",
    shape=[3, 32, 32],
    network={
        "name": "UNet",
        "channels": 3,
        "width": 128,
        "multipliers": [1, 2, 2, 2],
        "blocks": 2,
        "attention": [1],
        "heads": 1,
        "dropout": 0.13,
        "embedding": 512,
        "groups": 32,
    },
    parameterization={"name": "V", "sigma_data": 0.5},
    schedule={"name": "Normal", "mean": 2.4, "std": 2.4},
    weighting={"name": "EDM"},
    decoder={"name": "Categorical", "levels": 256},
    level_head=False,
    augment="flip",
    steps=200_000_000 // BATCH,
    batch=BATCH,
    lr=1e-3,
    warmup=10_000_000 // BATCH,
    decay="constant",
    weight_decay=0.0,
    betas=[0.9, 0.999],
    clip=None,
    ema=[0.5 ** (BATCH / 500_000)],
    autocast=True,
    compile=True,
    channels_last=True,
)

"""VDM in small, for two CPU cores: a network of 0.2 million parameters and a schedule of fixed shape.

Reproduces:  nothing published; that the script works from end to end, on the patches of `--data patches`.
Expect:      TBD
Takes:       TBD
"""

from dataclasses import replace

from recipes.vdm import CONFIG as VDM

CONFIG = replace(
    VDM,
    data="patches",
    network=VDM.network | {"width": 32, "depth": 2, "heads": 0, "dropout": 0.0},
    schedule={"name": "Linear", "logsnr_max": 13.3, "logsnr_min": -5.0},
    steps=1000,
    batch=8,
    lr=2e-3,
    decay="cosine",
    clip=1.0,
    ema=[0.99],
    autocast=False,
    compile=False,
    channels_last=False,
)

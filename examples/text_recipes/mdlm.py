"""MDLM on OpenWebText: masked diffusion of GPT-2's tokens, 1,024 at a time.

Reproduces:  the settings of Sahoo et al., arXiv:2406.07524, and of the files in `configs` of
             their code, github.com/kuleshov-group/mdlm. From model/small.yaml: 12 blocks of width
             768 with 12 heads, dropout 0.1, 1,024 tokens. From config.yaml: no time for the
             network, batch 512, 1,000,000 steps, Adam with 3e-4, betas 0.9 and 0.999, no weight
             decay, clipped at 1, averages of decay 0.9999, bf16, α = 1 − (1 − 10⁻³) t for t from
             10⁻³ to 1 (`vdiff.recipe("mdlm")`). From lr_scheduler/constant_warmup.yaml: 2,500
             steps of warm-up.
Differs:     their clip is of the gradient of nats per token, that of `Config` of bits per token.
"""

import math

from vdiff import recipe
from vdiff.training import Config

PUBLISHED = recipe("mdlm")
ENDS = {"logsnr_max": PUBLISHED.schedule.logsnr_max, "logsnr_min": PUBLISHED.schedule.logsnr_min}

CONFIG = Config(
    network={
        "name": "Transformer", "vocabulary": 50257, "length": 1024, "width": 768, "depth": 12,
        "heads": 12, "dropout": 0.1,
    },
    process={"name": "Masked", "vocabulary": 50257},
    schedule={"name": "LogLinear", **ENDS},
    data="tokens/openwebtext.npy",
    data_options={"levels": 50257},
    shape=[1024],
    steps=1_000_000,
    batch=512,
    lr=3e-4,
    warmup=2500,
    decay="constant",
    weight_decay=0.0,
    betas=[0.9, 0.999],
    clip=1 / math.log(2),
    ema=[0.9999],
    autocast=True,
    compile=True,
)  # fmt: skip

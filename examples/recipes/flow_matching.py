"""Flow matching on CIFAR-10 along the straight (optimal transport) path, with the authors' size
and optimizer.

Reproduces:  Flow Matching for Generative Modeling (arXiv:2210.02747), table 1, FM with the OT
             path.
Expect:      2.99 bits/dim by the probability-flow ODE with uniform dequantisation (`vdiff evaluate
             RUN --ode` where there is one; the bound reported after training is another number),
             FID 6.35 at 142 evaluations.
Takes:       391,000 steps at batch 256, two GPUs.

Its learning rate decays polynomially after 45,000 steps of warm-up; here it falls as a cosine.
"""

from dataclasses import replace

from recipes.edm import CONFIG as EDM

CONFIG = replace(
    EDM,
    network=EDM.network | {"width": 256, "heads": 4, "dropout": 0.0, "embedding": 1024},
    parameterization={"name": "Flow"},
    schedule={"name": "OptimalTransport"},
    weighting={
        "name": "MSE",
        "schedule": {"name": "Logistic"},
        "parameterization": {"name": "Flow"},
    },
    augment="flip",
    steps=391_000,
    batch=256,
    lr=5e-4,
    warmup=45_000,
    decay="cosine",
    ema=[0.9999],
)

"""Min-SNR-γ weighting (γ = 5) on CIFAR-10: the plain ε-loss under the cosine schedule times min(1,
5/SNR); on a U-Net of DDPM's size.

Reproduces:  the objective of Efficient Diffusion Training via Min-SNR Weighting Strategy
             (arXiv:2303.09556), whose results are on CelebA and ImageNet. With Adam and the
             averages of `ddpm`.
Expect:      no published CIFAR-10 number.
Takes:       as `ddpm`.
"""

from dataclasses import replace

from recipes.vdmpp_sigmoid import CONFIG as SIGMOID

PLAIN = {
    "name": "MSE",
    "schedule": {"name": "HyperbolicSecant"},
    "parameterization": {"name": "Eps"},
}

CONFIG = replace(
    SIGMOID,
    parameterization={"name": "Eps"},
    schedule={"name": "Cosine"},
    weighting={"name": "Product", "base": PLAIN, "factor": {"name": "MinSNR", "gamma": 5.0}},
)

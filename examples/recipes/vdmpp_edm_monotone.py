"""VDM++'s monotone form of EDM's weighting on CIFAR-10: held at its peak towards noise, the
density over λ adaptive; as `vdmpp-sigmoid` else.

Reproduces:  the objective of arXiv:2303.00848, whose results are on ImageNet.
Expect:      no published CIFAR-10 number.
Takes:       as `ddpm`.
"""

from dataclasses import replace

from recipes.vdmpp_sigmoid import CONFIG as SIGMOID

CONFIG = replace(
    SIGMOID,
    parameterization={"name": "V", "sigma_data": 0.5},
    weighting={"name": "EDM", "monotone": True},
)

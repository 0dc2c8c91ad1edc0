"""VDM with its learned schedule γ_η: ends by the bound, the shape between them by the variance;
all else as in `vdm`.

Reproduces:  Variational Diffusion Models (arXiv:2107.00630), table 1, by the rule of its appendix
             on the learned schedule.
Expect:      2.65 bits/dim; a shape moves only the variance of the loss (of equal ends: learned
             0.53, linear 6.35, cosine 31.1).
Takes:       as `vdm`.

The monotone network starts with its sigmoids spread over [0, 1], where the authors' start hardly
moves, and has a learning rate of its own.
"""

from dataclasses import replace

from recipes.vdm import CONFIG as VDM

CONFIG = replace(
    VDM, schedule={"name": "Monotone", "logsnr_max": 13.3, "logsnr_min": -5.0}, schedule_lr=1e-3
)

"""VDM's bound with an adaptive density over λ in place of a learned schedule; all else as in
`vdm-fixed`.

Reproduces:  VDM's objective (arXiv:2107.00630) under the adaptive schedule of VDM++
             (arXiv:2303.00848); no published number.
Expect:      `vdm-fixed`'s bound, with less noise in the loss.
Takes:       as `vdm`.
"""

from dataclasses import replace

from recipes.vdm import CONFIG as VDM

CONFIG = replace(VDM, schedule={"name": "Adaptive", "logsnr_max": 13.3, "logsnr_min": -5.0})

"""VDM with fixed ends: λ linear in t from 13.3 to −5, all else as in `vdm`.

Reproduces:  the fixed schedule of VDM's ablation (arXiv:2107.00630, section 6), without a
             published number of its own here.
Expect:      close to `vdm`'s bound: 13.3 and −5 are where its learned ends start, and end nearby.
Takes:       as `vdm`.
"""

from dataclasses import replace

from recipes.vdm import CONFIG as VDM

CONFIG = replace(VDM, schedule={"name": "Linear", "logsnr_max": 13.3, "logsnr_min": -5.0})

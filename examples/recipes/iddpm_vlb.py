"""iDDPM on CIFAR-10 by the bound itself, its terms drawn by their size; all else as in
`iddpm-hybrid`.

Reproduces:  Improved Denoising Diffusion Probabilistic Models (arXiv:2102.09672), L_vlb with p ∝
             √E[L²].
Expect:      2.94 bits/dim, FID 11.47.
Takes:       as `iddpm-hybrid`.
"""

from dataclasses import replace

from recipes.iddpm_hybrid import CONFIG as HYBRID

CONFIG = replace(HYBRID, bound_weight=None, resampling=True)

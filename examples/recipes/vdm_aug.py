"""VDM on CIFAR-10 with augmentation: half the time a flip, half the time a rotation, and a flag
that tells the network.

Reproduces:  Variational Diffusion Models (arXiv:2107.00630), table 1, with augmentation.
Expect:      2.49 bits/dim (the released code, with some differences: 2.522).
Takes:       256 channels make four times the arithmetic of `vdm`; the authors trained it at batch
             1,024 on 64 TPU v3 cores. Several GPUs, or `--set accumulate=8` and patience.

The test images are evaluated as they are, with the flag off.
"""

from dataclasses import replace

from recipes.vdm import CONFIG as VDM

CONFIG = replace(
    VDM, network=VDM.network | {"width": 256, "dropout": 0.05}, augment="flip-turn", batch=1024
)

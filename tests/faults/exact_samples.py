"""An exact denoiser, noise to start from, and samples of both."""

from typing import Any

import torch
from torch import Tensor

from vdiff import sample
from vdiff.oracle import GaussianMixture
from vdiff.sampling import ddim
from vdiff.schedule import Linear

ORACLE = GaussianMixture([0.3, 0.7], [[-1.0, 0.2], [0.5, 0.1]], [[0.04, 0.1], [0.09, 0.1]])
Z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(**options: Any) -> Tensor:
    return sample(ORACLE, Z, **{"schedule": Linear(), "steps": 2, "step": ddim} | options)

"""Diffusion over tokens in log-SNR: masked, uniform and hybrid processes, and networks that
predict tokens."""

from vdiff.discrete.denoiser import TokenDenoiser
from vdiff.discrete.hybrid import Hybrid
from vdiff.discrete.masked import AnyOrder, Masked
from vdiff.discrete.parameterization import LeaveOneOut, Posterior, TokenParameterization
from vdiff.discrete.prediction import TokenPrediction
from vdiff.discrete.process import Process
from vdiff.discrete.uniform import Uniform

__all__ = [
    "AnyOrder",
    "Hybrid",
    "LeaveOneOut",
    "Masked",
    "Posterior",
    "Process",
    "TokenDenoiser",
    "TokenParameterization",
    "TokenPrediction",
    "Uniform",
]

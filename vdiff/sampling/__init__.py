"""From noise to data and back: any model, along any grid of noise levels, by any step."""

from vdiff.flow import SolverError
from vdiff.sampling._rules import STEPS, TOKEN_STEPS
from vdiff.sampling.driver import sample, trajectory
from vdiff.sampling.grid import leading, logistic, trailing, uniform
from vdiff.sampling.guidance import Clipped, Guided, Tempered
from vdiff.sampling.multistep import adams_bashforth, dpmpp_2m
from vdiff.sampling.noise import noise_like, per_sample_generators, start
from vdiff.sampling.output import to_levels, to_uint8
from vdiff.sampling.probability_flow import invert, ode
from vdiff.sampling.step import Counted, History, ancestral, ddim, heun
from vdiff.sampling.token_steps import confidence, tau_leaping

__all__ = [
    "STEPS", "TOKEN_STEPS", "Clipped", "Counted", "Guided", "History", "SolverError", "Tempered",
    "adams_bashforth", "ancestral", "confidence", "ddim", "dpmpp_2m", "heun", "invert", "leading",
    "logistic", "noise_like", "ode", "per_sample_generators", "sample", "start", "tau_leaping",
    "to_levels", "to_uint8", "trailing", "trajectory", "uniform",
]  # fmt: skip

"""Every process over tokens, levels, and logits of a wrong model."""

from functools import partial

import pytest
import torch
from registry import PROCESSES

from vdiff.denoiser import logsnr_time
from vdiff.discrete import TokenDenoiser

LEVELS = [-12.0, -3.0, 0.0, 2.0, 9.0]
each_process = pytest.mark.parametrize(
    "process", [make() for make in PROCESSES.values()], ids=list(PROCESSES)
)


def level(v):
    return torch.tensor([v], dtype=torch.float64)


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-10, "atol": 1e-13}))


def wrong_logits(z, logsnr, vocabulary=3):
    """An arbitrary network: it looks at all tokens and at λ."""
    values = torch.arange(vocabulary, dtype=torch.float64)
    rest = (z * torch.tensor([1.3, -0.7])).sum(1)[:, None, None]
    lean = 0.1 * logsnr.double()[:, None, None]
    return torch.sin(rest + values * (1 + z[..., None]) + lean)


def wrong(process, parameterization=None):
    logits = partial(wrong_logits, vocabulary=process.vocabulary)
    return TokenDenoiser(logits, process, parameterization, time=logsnr_time)


def marginal(process, logsnr):
    """q(z | x), (3, states)."""
    kept = torch.eye(process.states)[:3]
    return logsnr.sigmoid() * kept + logsnr.neg().sigmoid() * process.pi(logsnr)

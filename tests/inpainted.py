"""Draws, masks and a covariance for samples of a part given the rest."""

import torch
from fields_of_noise import GAUSSIAN

from vdiff import sample


def draws(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def covariance_of(step, steps, **options):
    """Of a linear map of N(0, I), exactly: the samples of the axes are its columns."""
    axes = torch.eye(3, dtype=torch.float64)
    columns = sample(GAUSSIAN, axes, steps=steps, step=step, **options)
    return columns.T @ columns

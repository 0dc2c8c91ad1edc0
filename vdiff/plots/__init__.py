"""Figures: samples beside data, schedules and densities, weightings, the error by log-SNR. Needs
matplotlib."""

from vdiff.plots.figure import animation, band, figure, image_grid
from vdiff.plots.reports import (
    curves,
    error_by_logsnr,
    moving_schedule,
    objectives,
    samples,
    schedule,
    variance,
    weighting,
)

__all__ = [
    "animation",
    "band",
    "curves",
    "error_by_logsnr",
    "figure",
    "image_grid",
    "moving_schedule",
    "objectives",
    "samples",
    "schedule",
    "variance",
    "weighting",
]

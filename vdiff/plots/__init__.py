"""Figures: samples beside data, schedules and densities, weightings, the error by log-SNR. Needs
matplotlib."""

from vdiff.plots.figure import (
    COLORS,
    REFERENCE,
    animation,
    band,
    figure,
    finish,
    image_grid,
    line_style,
    save,
)
from vdiff.plots.reports import curves, error_by_logsnr, objectives, samples, weighting
from vdiff.plots.schedules import moving_schedule, schedule, variance

__all__ = [
    "COLORS",
    "REFERENCE",
    "animation",
    "band",
    "curves",
    "error_by_logsnr",
    "figure",
    "finish",
    "image_grid",
    "line_style",
    "moving_schedule",
    "objectives",
    "samples",
    "save",
    "schedule",
    "variance",
    "weighting",
]

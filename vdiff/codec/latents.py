"""The latents z₀ … z_T of a chain on grids of whole numbers, and their conditional distributions.

z_t = δ_t k_t, with a step δ_t that is a fixed part h of the narrowest distribution of z_t: that of
q(z_t | z_s), where z_s is the less noisy latent, or of p(z_t | z_u), where z_u is the noisier one.

What a grid costs. A rounded z_t has δ_t²/12 more variance than q gives it, relatively
r = h²/12, and the coder's least probability adds to r (`excess`). Σ_t ½ c_t r nats of each
dimension are then at stake, where c_t = 1 − e^{−Δ} (`Step.fresh`). At the exact denoiser and many
steps nothing of it is left but terms of order r², because the length is at its least there; of a
network, the share `MODEL_TERMS`. `spacing_for` takes the largest h for a tolerance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._validate import require
from vdiff.codec.code import Rows
from vdiff.codec.stack import REACH, Floats, Integers
from vdiff.decoder import Levels
from vdiff.gaussian import Step, per_example, scales
from vdiff.parameterization import X
from vdiff.prediction import Prediction
from vdiff.reverse import log_variance_ratio, reverse_mean
from vdiff.schedule import Schedule

TOLERANCE = 0.002  # bits per dimension
LEAST = 2.0**-24  # the coder's least probability
FINEST, COARSEST = 2.0**-5, 2.0**-2  # h: below the first the coder's least probability costs more
SPARE_BITS = 64.0  # of symbols outside the window, and parts of words
NORMAL_BITS = 0.5 * math.log2(2 * math.pi * math.e)  # the entropy of N(0, 1)
MODEL_TERMS = 0.25  # the share of ½ c r that counts: measured 0.16 on digits at T = 250 and 1,000


def excess(spacing: float) -> float:
    """r: by how much a grid and the coder widen a distribution, relative to its variance.

    >>> f"{excess(2**-4):.1e}"
    '3.6e-04'
    """
    in_window = 2 * 1.1 * REACH / spacing  # symbols
    return spacing**2 / 12 + in_window * LEAST * (REACH**2 / 3 - 1)


@dataclass(frozen=True)
class Normal:
    """Independent normal distributions on a grid: mean and standard deviation in steps of it, and
    the logarithm of a step, nats."""

    mean: Floats
    std: Floats
    log_spacing: float

    @property
    def most_bits(self) -> float:
        """The bits of all of them, but for one draw in 10⁹: their entropy and six standard
        deviations. They share a standard deviation."""
        count = len(self.std)
        entropy = count * (math.log2(self.std[0]) + NORMAL_BITS)
        return entropy + 6 * math.sqrt(count) + SPARE_BITS

    def log_density(self, index: Integers) -> Floats:
        """log p of the latents, nats per dimension (not of a cell of the grid)."""
        off = (index - self.mean) / self.std
        log_std: Floats = np.log(self.std) + (self.log_spacing + 0.5 * math.log(2 * math.pi))
        density: Floats = -0.5 * off * off - log_std
        return density


class Latents:
    """The distributions of a chain's latents. An index k is (batch · dims,) whole numbers.

    Args:
        model: called with z in the dtype of `decoder.encode`.
        spacing: h; without it, that of the `tolerance`.
    """

    def __init__(
        self,
        model: Callable[..., Prediction],
        schedule: Schedule,
        decoder: Levels,
        steps: int,
        device: torch.device,
        spacing: float | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.model, self.decoder, self.device = model, decoder, device
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        self.logsnr = schedule(t.to(device)).cpu()
        self.delta = schedule.delta(t[1:].to(device), steps).cpu()
        self.steps = steps
        fresh = float(self._all.fresh.sum())
        self.spacing = spacing_for(steps, fresh, tolerance) if spacing is None else spacing

    @cached_property
    def _all(self) -> Step:
        """All steps; number i − 1 is that from level i to level i − 1."""
        return Step(self.logsnr[1:], self.delta)

    @cached_property
    def forward_std(self) -> Floats:
        """Of q(z₀ | x) and of q(z_t | z_s), t = 1 … T."""
        first = scales(self.logsnr[:1])[1]
        std: Floats = torch.cat([first, self._all.forward_variance.sqrt()]).numpy()
        return std

    @cached_property
    def grid(self) -> Floats:
        """δ_t, t = 0 … T."""
        backward = torch.cat([self._all.variance.sqrt(), torch.ones(1)]).numpy()
        grid: Floats = self.spacing * np.minimum(self.forward_std, backward)
        return grid

    @cached_property
    def forward_scale(self) -> Floats:
        """α₀, and α_t/α_s."""
        alpha = scales(self.logsnr)[0]
        scale: Floats = torch.cat([alpha[:1], alpha[1:] / alpha[:-1]]).numpy()
        return scale

    @property
    def cost(self) -> float:
        """An upper estimate of what the grids cost, nats per dimension."""
        return cost(self.spacing, self.steps, float(self._all.fresh.sum()))

    @cached_property
    def start_bits(self) -> float:
        """The bits of each dimension that must be there before a batch: those of z_t and of
        q(z_u | z_t), at the largest."""
        sigma = scales(self.logsnr)[1].numpy()
        whole = np.log2(sigma / self.grid) + NORMAL_BITS
        step = np.log2(self.forward_std / self.grid) + NORMAL_BITS
        return float(max(whole[0], *(whole[:-1] + step[1:])))

    def prior(self, count: int) -> Normal:
        """N(0, I) for z_T in so many dimensions."""
        return self._normal(self.steps, np.zeros(count), 1.0)

    def of_data(self, data: Tensor) -> Normal:
        """q(z₀ | x)."""
        x = self.decoder.encode(data).double().cpu().numpy().ravel()
        return self._normal(0, self.forward_scale[0] * x, self.forward_std[0])

    def forward(self, i: int, index: Integers) -> Normal:
        """q(z_t | z_s), with t at level i and z_s = δ_s · index."""
        mean = self.forward_scale[i] * (self.grid[i - 1] * index)
        return self._normal(i, mean, self.forward_std[i])

    def reverse(self, i: int, index: Integers, rows: Rows) -> Normal:
        """p(z_s | z_t), with t at level i and z_t = δ_t · index."""
        prediction = self._predict(i, index, rows)
        each = torch.full((rows.shape[0],), i - 1)
        step = Step(self.logsnr[each + 1].to(self.device), self.delta[each].to(self.device))
        u = log_variance_ratio(prediction, step, prediction.z)
        std = per_example(step.variance.sqrt(), prediction.z)
        std = (std if u is None else std * torch.exp(0.5 * u)).expand_as(prediction.z)
        return self._normal(i - 1, _flat(reverse_mean(prediction, step)), _flat(std))

    def levels(self, index: Integers, rows: Rows) -> Floats:
        """p(x | z₀) of each level, (batch · dims, levels)."""
        if self.decoder.uses_network:
            prediction = self._predict(0, index, rows)
        else:
            z, logsnr = self._at(0, index, rows)
            prediction = Prediction(z, logsnr, z, X())
        return _flat(self.decoder.log_probs(prediction).exp()).reshape(-1, self.decoder.levels)

    def _predict(self, i: int, index: Integers, rows: Rows) -> Prediction:
        """The model's prediction, with all that follows from its output in float64."""
        z, logsnr = self._at(i, index, rows)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        prediction = self.model(z.to(dtype), logsnr, **rows.condition)
        variance = prediction.variance_output
        given = [prediction.output] if variance is None else [prediction.output, variance]
        finite = all(bool(torch.isfinite(v).all()) for v in given)
        got = f"NaN or infinity at λ = {self.logsnr[i]:.4g}"
        require(finite, "model", "be finite", got)
        variance = None if variance is None else variance.double()
        output = prediction.output.double()
        return prediction.replace(z=z, output=output, variance_output=variance)

    def _at(self, i: int, index: Integers, rows: Rows) -> tuple[Tensor, Tensor]:
        """z and λ of each example at level i."""
        z = torch.from_numpy(self.grid[i] * index).view(rows.shape).to(self.device)
        return z, self.logsnr[i].expand(len(z)).to(self.device)

    def _normal(self, i: int, mean: Floats, std: Any) -> Normal:
        grid = self.grid[i]
        return Normal(mean / grid, np.broadcast_to(std / grid, mean.shape), math.log(grid))


def _flat(v: Tensor) -> Floats:
    values: Floats = v.cpu().numpy().ravel()
    return values


def spacing_for(steps: int, fresh: float, tolerance: float) -> float:
    """The largest h, a power of two, whose cost is within a tolerance in bits per dimension, or
    the finest. `fresh` is Σ c."""
    for exponent in range(2, 5):
        if cost(2.0**-exponent, steps, fresh) / math.log(2) <= tolerance:
            return 2.0**-exponent
    return FINEST


def cost(spacing: float, steps: int, fresh: float) -> float:
    """An upper estimate of what the grids of a chain cost, nats per dimension."""
    r = excess(spacing)
    return 0.5 * r * (MODEL_TERMS * fresh + r * steps)

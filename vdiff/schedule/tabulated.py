"""A table of noise levels, as a T-step DDPM has: built in float64 from any array of β."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff._precision import PURE_NOISE
from vdiff._validate import Count, require, validated
from vdiff.errors import InvalidValue, has_values
from vdiff.schedule.base import Schedule

Row = Sequence[float] | np.ndarray | Tensor


class Tabulated(Schedule):
    """Noise levels λ_1 > … > λ_n read from a table; between them λ is linear in t.

    Level i stands at t = (i − 1)/(n − 1): n levels make a chain of `steps` = n − 1 steps, and the
    first level is the decoder's. Use it as `weighted_elbo(..., steps=schedule.steps)`, or in
    continuous time.

    The last level may be −∞, pure noise (a zero terminal SNR, Lin et al., arXiv:2305.08891).
    Weighted losses on a chain and samplers take such a table. A bound does not: its prior term
    needs a finite end.

    >>> schedule = Tabulated.linear_betas()
    >>> schedule.steps, schedule.logsnr_max, schedule.logsnr_min
    (999, 9.210240366975848, -10.117673183301031)
    """

    table: Tensor

    @validated
    def __init__(self, logsnr: Row) -> None:
        table = _row(logsnr, "logsnr", "levels").detach().clone()
        signal = bool(((table > 0) & (table < 1)).all())
        came = f"values from {table.min():g} to {table.max():g} alone"
        hint = "these look like ᾱ: Tabulated.from_alphas_cumprod; a table of β: from_betas"
        require(not signal, "logsnr", "be log α²/σ²", came, hint)
        bad = ~torch.isfinite(table)
        bad[-1] &= table[-1] != -math.inf
        _refuse(bad, table, "logsnr", "be finite, or −∞ at the last level")
        falls = "be strictly decreasing (λ falls from data to noise)"
        hint = "γ = −λ rises: pass −γ" if table[-1] > table[0] else ""
        _refuse(table.diff() >= 0, table, "logsnr", falls, hint)
        super().__init__(table[0].item(), max(table[-1].item(), PURE_NOISE))
        self.register_constructed("table", table)
        self._take_ends()
        self.steps = len(table) - 1

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._take_ends()

    def ends_to_save(self) -> None:
        return None

    def expected_ends(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        table = state.get(prefix + "table")  # it brings the ends
        if not isinstance(table, Tensor) or not has_values(table):
            return None
        return table[0].item(), table[-1].item()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._take_ends()

    def _take_ends(self) -> None:
        if self.table.device.type != "meta":
            self._ends = self.table[0].item(), self.table[-1].item()

    @classmethod
    @validated
    def from_betas(cls, betas: Row, *, zero_terminal_snr: bool = False) -> "Tabulated":
        """The levels of a DDPM: log ᾱ_t = Σ log1p(−β), λ_t = log ᾱ_t − log(−expm1(log ᾱ_t)), in
        float64.

        With `zero_terminal_snr` √ᾱ is shifted and scaled so that the last level is pure noise, λ =
        −∞, and the first stays (Lin et al., arXiv:2305.08891, algorithm 1; diffusers:
        `rescale_betas_zero_snr`). Such betas end with β = 1.

        >>> Tabulated.from_betas([0.1, 0.2, 0.3]).table
        tensor([2.1972, 0.9445, 0.0160], dtype=torch.float64)
        >>> Tabulated.from_betas([0.1, 0.2, 0.3], zero_terminal_snr=True).table
        tensor([ 2.1972, -0.8317,    -inf], dtype=torch.float64)
        """
        beta = _row(betas, "betas", "values")
        _check_betas(beta, noise_at_last=True)
        signal = bool(beta[0] > 0.9) and bool((beta.diff() < 0).all())
        came = f"{beta[0]:g}, falling to {beta[-1]:g}"
        hint = "these look like ᾱ: Tabulated.from_alphas_cumprod"
        require(not signal, "betas", "start with little noise", came, hint)
        log_signal = torch.log1p(-beta).cumsum(0)
        if zero_terminal_snr:
            root = torch.exp(0.5 * log_signal)
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            return cls(2 * root.log() - torch.log((1 - root) * (1 + root)))
        return cls(log_signal - torch.log(-torch.expm1(log_signal)))

    @classmethod
    @validated
    def from_alphas_cumprod(cls, alphas_cumprod: Row) -> "Tabulated":
        """The levels of a table of ᾱ = α², λ = log ᾱ/(1 − ᾱ). From float32 products λ is off by
        0.18 at 13.3: use betas.

        >>> Tabulated.from_alphas_cumprod([0.9, 0.72, 0.504]).table
        tensor([2.1972, 0.9445, 0.0160], dtype=torch.float64)
        """
        signal = _row(alphas_cumprod, "alphas_cumprod", "values")
        bad = ~((signal > 0) & (signal < 1))
        bad[-1] &= signal[-1] != 0
        hint = "ᾱ = 0 is pure noise: it is the last" if (signal[bad][:1] == 0).any() else ""
        _refuse(bad, signal, "alphas_cumprod", "lie strictly between 0 and 1", hint)
        flipped = bool(signal[-1] > signal[0])
        hint = "the table runs from noise to data: flip it" if flipped else "a step removes signal"
        _refuse(signal.diff() >= 0, signal, "alphas_cumprod", "be strictly decreasing", hint)
        return cls(torch.logit(signal))

    @classmethod
    @validated
    def linear_betas(
        cls,
        beta_1: float = 1e-4,
        beta_n: float = 0.02,
        levels: Count = 1000,
        *,
        rescale_from: Count | None = None,
        zero_terminal_snr: bool = False,
    ) -> "Tabulated":
        """DDPM's own table (arXiv:2006.11239): β linear from 1e-4 to 0.02 in 1000 levels.

        With `rescale_from` (1000 for DDPM's β) they are multiplied by rescale_from/levels, as is
        usual for another number of levels. That keeps λ_min, about, and moves the first level's
        λ_max by log(levels/rescale_from): the chain and the decoder share the bound otherwise.
        Below about β_n · rescale_from levels there is a β ≥ 1, which is refused.
        `zero_terminal_snr` is that of `from_betas`.

        >>> Tabulated.linear_betas().steps
        999
        >>> finer = Tabulated.linear_betas(levels=4000, rescale_from=1000)
        >>> round(finer.logsnr_max, 3), round(finer.logsnr_min, 3)  # 9.210, −10.118 at 1000
        (10.597, -10.067)
        """
        betas = torch.linspace(beta_1, beta_n, levels, dtype=torch.float64, device="cpu")
        if rescale_from is not None:
            betas = betas * (rescale_from / levels)
            _check_betas(betas, noise_at_last=False)
        return cls.from_betas(betas, zero_terminal_snr=zero_terminal_snr)

    @classmethod
    @validated
    def cosine_betas(
        cls,
        levels: Count = 1000,
        offset: float = 0.008,
        max_beta: float = 0.999,
        *,
        zero_terminal_snr: bool = False,
    ) -> "Tabulated":
        """iDDPM's cosine table, with its offset and its clip of β (arXiv:2102.09672, eq. 17).

        `zero_terminal_snr` is that of `from_betas`.

        >>> Tabulated.cosine_betas().table[0].item()
        10.094988811462066
        """
        time = torch.arange(levels + 1, dtype=torch.float64, device="cpu") / levels
        angle = (time + offset) / (1 + offset) * math.pi / 2
        step = math.pi / 2 / (1 + offset) / levels
        # 1 − cos²(φ + h)/cos²φ, without the difference: the first β is 4e-5
        betas = math.sin(step) * torch.sin(angle[:-1] + angle[1:]) / torch.cos(angle[:-1]).square()
        return cls.from_betas(betas.clamp(max=max_beta), zero_terminal_snr=zero_terminal_snr)

    def logsnr_at(self, t: Tensor) -> Tensor:
        table = self._numbers(t)
        left, share = self._cell(t)
        return torch.lerp(table[left], table[left + 1], share)

    def rate_at(self, t: Tensor, logsnr: Tensor) -> Tensor:
        table = self._numbers(t)
        left, _ = self._cell(t)
        return (table[left] - table[left + 1]) * self.steps

    def time_at(self, logsnr: Tensor) -> Tensor:
        rising, level = -self._numbers(logsnr), logsnr.clamp(min=PURE_NOISE)
        right = torch.searchsorted(rising, -level.contiguous()).clamp(1, self.steps)
        share = (-level - rising[right - 1]) / (rising[right] - rising[right - 1])
        return (right - 1 + share) / self.steps

    def _numbers(self, like: Tensor) -> Tensor:
        """The table with a number for −∞."""
        table = self.table.to(like)
        return table.clamp(min=PURE_NOISE) if self._ends[1] == -math.inf else table

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The level to the left of t, and how far t is towards the next."""
        place = t * self.steps
        left = place.floor().clamp(0, self.steps - 1).long()
        return left, place - left

    def extra_repr(self) -> str:
        return f"{self.steps + 1} levels, {super().extra_repr()}"


def _row(values: Row, argument: str, what: str) -> Tensor:
    row = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    hint = "one noise level is a decoder without a step" if row.numel() == 1 else ""
    requirement, came = f"be one row of at least two {what}", f"shape {tuple(row.shape)}"
    require(row.ndim == 1 and len(row) > 1, argument, requirement, came, hint)
    return row


def _check_betas(beta: Tensor, *, noise_at_last: bool) -> None:
    """Raise where a β is not in (0, 1); the last may be 1 where that is meant."""
    bad = ~((beta > 0) & (beta < 1))
    if noise_at_last:
        bad[-1] &= beta[-1] != 1
    hint = ""
    for value in beta[bad][:1].tolist():
        if value > 1 or (value == 1 and not noise_at_last):
            hint = "rescaled to few steps, a β table leaves (0, 1)"
        elif value == 1:
            hint = "β = 1 leaves pure noise: it is the last"
        elif value == 0:
            hint = "β = 0 adds no noise: drop the level"
    _refuse(bad, beta, "betas", "lie strictly between 0 and 1", hint, unit="step")


def _refuse(
    bad: Tensor, row: Tensor, argument: str, requirement: str, hint: str = "", unit: str = "level"
) -> None:
    """Raise for the first that is bad: a number of the row, or the difference of two."""
    for i in bad.nonzero().flatten()[:1].tolist():
        came = f"{row[i]:g} at {unit} {i + 1}"
        two = len(bad) < len(row)
        came += f" and {row[i + 1]:g} at {unit} {i + 2}" if two else f" of {len(row)}"
        raise InvalidValue(argument, requirement, came, hint)


__all__ = ["Tabulated"]

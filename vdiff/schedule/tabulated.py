"""A table of noise levels, as a T-step DDPM has: built in float64 from any array of β."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff.errors import check_positive_int, has_values, must
from vdiff.gaussian import PURE
from vdiff.schedule.base import Schedule


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

    def __init__(self, logsnr: Sequence[float] | np.ndarray | Tensor) -> None:
        table = torch.as_tensor(logsnr, dtype=torch.float64, device="cpu").detach().clone()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(
                must(
                    "Tabulated",
                    "logsnr",
                    "be one row of at least two levels",
                    f"shape {tuple(table.shape)}",
                )
            )
        if ((table > 0) & (table < 1)).all():
            hint = "these look like ᾱ: Tabulated.from_alphas_cumprod; a table of β: Tabulated.from_betas"
            raise ValueError(
                must(
                    "Tabulated",
                    "logsnr",
                    "be log α²/σ²",
                    f"values from {table.min():g} to {table.max():g} alone",
                    hint,
                )
            )
        bad = ~torch.isfinite(table)
        bad[-1] &= table[-1] != -math.inf
        if bad.any():
            i = int(bad.nonzero()[0])
            came = f"{table[i]:g} at level {i + 1} of {len(table)}"
            raise ValueError(
                must("Tabulated", "logsnr", "be finite, or −∞ at the last level", came)
            )
        rising = table.diff() >= 0
        if rising.any():
            i = int(rising.nonzero()[0])
            came = f"{table[i]:g} at level {i + 1} and {table[i + 1]:g} at level {i + 2}"
            raise ValueError(
                must(
                    "Tabulated",
                    "logsnr",
                    "be strictly decreasing (λ falls from data to noise)",
                    came,
                    "γ = −λ rises: hand over −γ" if table[-1] > table[0] else "",
                )
            )
        super().__init__(table[0].item(), max(table[-1].item(), PURE))
        self.register_constructed("table", table)
        self._take_ends()
        self.steps = len(table) - 1

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._take_ends()

    def own_ends(self) -> None:
        return None

    def ends_with(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
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
    def from_betas(
        cls,
        betas: Sequence[float] | np.ndarray | Tensor,
        *,
        zero_terminal_snr: bool = False,
    ) -> "Tabulated":
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
        beta = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if beta.ndim != 1 or len(beta) < 2:
            hint = "one noise level is a decoder without a step" if beta.numel() == 1 else ""
            raise ValueError(
                must(
                    "Tabulated.from_betas",
                    "betas",
                    "be one row of at least two values",
                    f"shape {tuple(beta.shape)}",
                    hint,
                )
            )
        _check_betas(beta, noise_at_last=True)
        if beta[0] > 0.9 and (beta.diff() < 0).all():
            hint = "these look like ᾱ: Tabulated.from_alphas_cumprod"
            raise ValueError(
                must(
                    "Tabulated.from_betas",
                    "betas",
                    "start with little noise",
                    f"{beta[0]:g}, falling to {beta[-1]:g}",
                    hint,
                )
            )
        log_signal = torch.log1p(-beta).cumsum(0)
        if zero_terminal_snr:
            root = torch.exp(0.5 * log_signal)
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            return cls(2 * root.log() - torch.log((1 - root) * (1 + root)))
        return cls(log_signal - torch.log(-torch.expm1(log_signal)))

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Sequence[float] | np.ndarray | Tensor
    ) -> "Tabulated":
        """The levels of a table of ᾱ = α², λ = log ᾱ/(1 − ᾱ). From float32 products λ is off by
        0.18 at 13.3: use betas.

        >>> Tabulated.from_alphas_cumprod([0.9, 0.72, 0.504]).table
        tensor([2.1972, 0.9445, 0.0160], dtype=torch.float64)
        """
        signal = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
        if signal.ndim != 1:
            raise ValueError(
                must(
                    "Tabulated.from_alphas_cumprod",
                    "alphas_cumprod",
                    "be one row",
                    f"shape {tuple(signal.shape)}",
                )
            )
        bad = ~((signal > 0) & (signal < 1))
        bad[-1:] &= signal[-1:] != 0
        if bad.any():
            i = int(bad.nonzero()[0])
            came = f"{signal[i]:g} at level {i + 1} of {len(signal)}"
            hint = "ᾱ = 0 is pure noise: it is the last" if signal[i] == 0 else ""
            what = "lie strictly between 0 and 1"
            raise ValueError(
                must("Tabulated.from_alphas_cumprod", "alphas_cumprod", what, came, hint)
            )
        rising = signal.diff() >= 0
        if rising.any():
            i = int(rising.nonzero()[0])
            came = f"{signal[i]:g} at level {i + 1} and {signal[i + 1]:g} at level {i + 2}"
            hint = (
                "the table runs from noise to data: flip it"
                if signal[-1] > signal[0]
                else "each step removes signal"
            )
            raise ValueError(
                must(
                    "Tabulated.from_alphas_cumprod",
                    "alphas_cumprod",
                    "be strictly decreasing",
                    came,
                    hint,
                )
            )
        return cls(torch.logit(signal))

    @classmethod
    def linear_betas(
        cls,
        beta_1: float = 1e-4,
        beta_n: float = 0.02,
        levels: int = 1000,
        *,
        rescale_from: int | None = None,
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
        >>> round(finer.logsnr_max, 3), round(finer.logsnr_min, 3)             # 9.210 and −10.118 at 1000
        (10.597, -10.067)
        """
        check_positive_int("Tabulated.linear_betas", "levels", levels)
        betas = torch.linspace(beta_1, beta_n, levels, dtype=torch.float64, device="cpu")
        if rescale_from is not None:
            check_positive_int("Tabulated.linear_betas", "rescale_from", rescale_from)
            betas = betas * (rescale_from / levels)
            _check_betas(betas, noise_at_last=False)
        return cls.from_betas(betas, zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def cosine_betas(
        cls,
        levels: int = 1000,
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
        check_positive_int("Tabulated.cosine_betas", "levels", levels)
        angle = (
            (torch.arange(levels + 1, dtype=torch.float64, device="cpu") / levels + offset)
            / (1 + offset)
            * math.pi
            / 2
        )
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
        rising, level = -self._numbers(logsnr), logsnr.clamp(min=PURE)
        right = torch.searchsorted(rising, -level.contiguous()).clamp(1, self.steps)
        share = (-level - rising[right - 1]) / (rising[right] - rising[right - 1])
        return (right - 1 + share) / self.steps

    def _numbers(self, like: Tensor) -> Tensor:
        """The table with a number for −∞."""
        table = self.table.to(like)
        return table.clamp(min=PURE) if self._ends[1] == -math.inf else table

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The level to the left of t, and how far t is towards the next."""
        place = t * self.steps
        left = place.floor().clamp(0, self.steps - 1).long()
        return left, place - left

    def extra_repr(self) -> str:
        return f"{self.steps + 1} levels, {super().extra_repr()}"


def _check_betas(beta: Tensor, *, noise_at_last: bool) -> None:
    """Raise where a β is not in (0, 1); the last may be 1 where that is meant."""
    bad = ~((beta > 0) & (beta < 1))
    if noise_at_last:
        bad[-1] &= beta[-1] != 1
    if bad.any():
        i = int(bad.nonzero()[0])
        hints = {
            1.0: "β = 1 leaves pure noise: it is the last",
            0.0: "β = 0 adds no noise: drop the level",
        }
        rescaled = beta[i] > 1 or (beta[i] == 1 and not noise_at_last)
        hint = hints.get(beta[i].item(), "")
        if rescaled:
            hint = "rescaled to few steps, a β table leaves (0, 1)"
        came, what = f"{beta[i]:g} at step {i + 1} of {len(beta)}", "lie strictly between 0 and 1"
        raise ValueError(must("Tabulated.from_betas", "betas", what, came, hint))

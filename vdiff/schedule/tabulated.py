"""A table of noise levels, as of a DDPM with T steps."""

import math
from typing import Any

import torch
from torch import Tensor

from vdiff._precision import PURE_NOISE
from vdiff._validate import Count, require, validated
from vdiff.errors import has_values
from vdiff.schedule._check import BETA_HINTS, Row, check_inside, level_of, refuse, row_of
from vdiff.schedule.base import Schedule

_ARE_ALPHAS = "these look like ᾱ: Tabulated.from_alphas_cumprod"


class Tabulated(Schedule):
    """Noise levels λ_1 > … > λ_n of a table; between them λ is linear in t.

    Level i is at t = (i − 1)/(n − 1): n levels make a chain of `steps` = n − 1 steps, and the
    first level is the decoder's. Use it as `weighted_elbo(..., steps=schedule.steps)`, or in
    continuous time.

    The last level may be −∞, pure noise (a zero terminal SNR, Lin et al., arXiv:2305.08891).
    Weighted losses on a chain and samplers accept such a table. A bound does not: its prior term
    needs a finite end.

    >>> schedule = Tabulated.linear_betas()
    >>> schedule.steps, schedule.logsnr_max, schedule.logsnr_min
    (999, 9.210240366975848, -10.117673183301031)
    """

    table: Tensor

    @validated
    def __init__(self, logsnr: Row) -> None:
        table = row_of(logsnr, "logsnr", "levels").detach().clone()
        signal = bool(((table > 0) & (table < 1)).all())
        came = f"values from {table.min():g} to {table.max():g} alone"
        hint = f"{_ARE_ALPHAS}; a table of β: from_betas"
        require(not signal, "logsnr", "be log α²/σ²", came, hint)
        bad = ~torch.isfinite(table)
        bad[-1] &= table[-1] != -math.inf
        refuse(bad, "logsnr", "be finite, or −∞ at the last level", table, level_of(table))
        falls = "be strictly decreasing (λ falls from data to noise)"
        hint = "γ = −λ rises: pass −γ" if table[-1] > table[0] else ""
        refuse(table.diff() >= 0, "logsnr", falls, table, level_of(table), hint)
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
        """The levels of a DDPM: log ᾱ_t = Σ log1p(−β), λ_t = log ᾱ_t − log(−expm1(log ᾱ_t)).

        `zero_terminal_snr` shifts and scales √ᾱ so that the last level is pure noise, λ = −∞, and
        the first stays (Lin et al., arXiv:2305.08891, algorithm 1; diffusers'
        `rescale_betas_zero_snr`). Such betas end with β = 1.

        >>> Tabulated.from_betas([0.1, 0.2, 0.3]).table
        tensor([2.1972, 0.9445, 0.0160], dtype=torch.float64)
        >>> Tabulated.from_betas([0.1, 0.2, 0.3], zero_terminal_snr=True).table
        tensor([ 2.1972, -0.8317,    -inf], dtype=torch.float64)
        """
        beta = row_of(betas, "betas", "values")
        check_inside(beta, "betas", 1.0, BETA_HINTS)
        signal = bool(beta[0] > 0.9) and bool((beta.diff() < 0).all())
        came = f"{beta[0]:g}, falling to {beta[-1]:g}"
        require(not signal, "betas", "start with little noise", came, _ARE_ALPHAS)
        log_signal = torch.log1p(-beta).cumsum(0)
        if zero_terminal_snr:
            root = torch.exp(0.5 * log_signal)
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            return cls(2 * root.log() - torch.log((1 - root) * (1 + root)))
        return cls(log_signal - torch.log(-torch.expm1(log_signal)))

    @classmethod
    @validated
    def from_alphas_cumprod(cls, alphas_cumprod: Row) -> "Tabulated":
        """The levels of a table of ᾱ = α², λ = log ᾱ/(1 − ᾱ). From float32 products λ is wrong by
        0.18 at 13.3: use betas there.

        >>> Tabulated.from_alphas_cumprod([0.9, 0.72, 0.504]).table
        tensor([2.1972, 0.9445, 0.0160], dtype=torch.float64)
        """
        signal = row_of(alphas_cumprod, "alphas_cumprod", "values")
        check_inside(signal, "alphas_cumprod", 0.0, {0: "ᾱ = 0 is pure noise: it is the last"})
        hint = "the table runs from noise to data: flip it" if signal[-1] > signal[0] else ""
        rises, falls = signal.diff() >= 0, "be strictly decreasing (a step removes signal)"
        refuse(rises, "alphas_cumprod", falls, signal, level_of(signal), hint)
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

        `rescale_from` (1000 for DDPM's β) multiplies β by rescale_from/levels, as is usual for
        another number of levels. That moves λ_max by log(levels/rescale_from) and hardly changes
        λ_min. Raises ValueError for a β ≥ 1, below about β_n · rescale_from levels.
        `zero_terminal_snr`: see `from_betas`.

        >>> Tabulated.linear_betas().steps
        999
        >>> finer = Tabulated.linear_betas(levels=4000, rescale_from=1000)
        >>> round(finer.logsnr_max, 3), round(finer.logsnr_min, 3)  # 9.210, −10.118 at 1000
        (10.597, -10.067)
        """
        betas = torch.linspace(beta_1, beta_n, levels, dtype=torch.float64, device="cpu")
        if rescale_from is not None:
            betas = betas * (rescale_from / levels)
            check_inside(betas, "betas", math.nan, BETA_HINTS)
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
        """iDDPM's cosine table, with its offset and its clip of β (arXiv:2102.09672, eq. 17);
        `zero_terminal_snr`: see `from_betas`.

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
        """The table with −600 for −∞."""
        table = self.table.to(like)
        return table.clamp(min=PURE_NOISE) if self._ends[1] == -math.inf else table

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The index of the level before t, and the fraction of the way to the next."""
        position = t * self.steps
        left = position.floor().clamp(0, self.steps - 1).long()
        return left, position - left

    def extra_repr(self) -> str:
        return f"{self.steps + 1} levels, {super().extra_repr()}"

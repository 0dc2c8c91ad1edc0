"""The running moments of the error by log-SNR: one home for every curve over λ."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.errors import check_positive_int, must


class Profile(nn.Module):
    """E‖e‖² and E‖e‖⁴ by λ, in equal bins, with counts and standard errors.

    Statistics are sums, kept in float64 as buffers: profiles of several ranks or runs are merged by adding them
    (`merge`), and a state dict restores them. Values are whatever is passed to `update`, usually
    `prediction.squared_error(x, eps)`, nats-free and summed over dimensions.

    >>> profile = Profile(-5.0, 5.0, bins=2)
    >>> profile.update(torch.tensor([-1.0, -2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0]))
    >>> profile.mean
    tensor([2., 5.], dtype=torch.float64)
    """

    sums: Tensor

    def __init__(self, logsnr_min: float, logsnr_max: float, bins: int = 50) -> None:
        super().__init__()
        check_positive_int("Profile", "bins", bins)
        if not logsnr_min < logsnr_max:
            raise ValueError(must("Profile", "logsnr_min", f"be below logsnr_max = {logsnr_max}", logsnr_min))
        self.logsnr_min, self.logsnr_max, self.bins = float(logsnr_min), float(logsnr_max), bins
        self.register_buffer("sums", torch.zeros(3, bins, dtype=torch.float64))

    @torch.no_grad()
    def update(self, logsnr: Float[Tensor, " n"], value: Float[Tensor, " n"]) -> None:
        """Add observations; those outside the range fall into the end bins."""
        index = ((logsnr - self.logsnr_min) * (self.bins / (self.logsnr_max - self.logsnr_min))).long()
        value = value.detach().to(self.sums)
        rows = torch.stack([torch.ones_like(value), value, value.square()])
        self.sums.index_add_(1, index.clamp(0, self.bins - 1).to(self.sums.device), rows)

    def merge(self, other: "Profile") -> None:
        """Add what another profile over the same bins has seen."""
        if (other.logsnr_min, other.logsnr_max, other.bins) != (self.logsnr_min, self.logsnr_max, self.bins):
            raise ValueError(
                must("Profile.merge", "other", "have the same bins", f"{other.bins} bins on [{other.logsnr_min}, {other.logsnr_max}]")
            )
        self.sums += other.sums.to(self.sums.device)

    @property
    def centers(self) -> Float[Tensor, " bins"]:
        """λ in the middle of each bin."""
        width = (self.logsnr_max - self.logsnr_min) / self.bins
        return self.logsnr_min + width * (torch.arange(self.bins, dtype=torch.float64, device=self.sums.device) + 0.5)

    @property
    def count(self) -> Float[Tensor, " bins"]:
        """How many observations each bin has."""
        return self.sums[0]

    @property
    def mean(self) -> Float[Tensor, " bins"]:
        """E‖e‖² by bin; NaN where nothing was seen."""
        return self.sums[1] / self.sums[0]

    @property
    def second_moment(self) -> Float[Tensor, " bins"]:
        """E‖e‖⁴ by bin; NaN where nothing was seen."""
        return self.sums[2] / self.sums[0]

    @property
    def standard_error(self) -> Float[Tensor, " bins"]:
        """Of the mean, from the bin's own variance (independent observations); NaN below two."""
        variance = (self.second_moment - self.mean.square()).clamp(min=0) / (self.count - 1)
        return torch.where(self.count > 1, variance, torch.nan).sqrt()

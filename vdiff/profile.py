"""The running moments of the error by log-SNR."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vdiff._modules import PreciseModule
from vdiff._validate import Count, Finite, ordered_ends, require, validated


class Profile(PreciseModule):
    """E‖e‖² and E‖e‖⁴ by λ, in equal bins, with counts and standard errors.

    Statistics are sums in float64. They move and are saved like buffers, with their end points,
    and DDP does not synchronise them: `merge` adds those of several ranks or runs. Values are
    whatever is passed to `update`, usually `prediction.squared_error(x, eps)`, summed over
    dimensions.

    >>> profile = Profile(-5.0, 5.0, bins=2)
    >>> profile.update(torch.tensor([-1.0, -2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0]))
    >>> profile.mean
    tensor([2., 5.], dtype=torch.float64)
    """

    sums: Tensor

    __example__ = "evaluate(…, profile=profile) fills one"

    @validated(rules=[ordered_ends])
    def __init__(self, logsnr_min: Finite, logsnr_max: Finite, bins: Count = 50) -> None:
        super().__init__()
        self.logsnr_min, self.logsnr_max, self.bins = logsnr_min, logsnr_max, bins
        # Σ 1, Σ v, Σ v² over observations; Σ n², Σ n S, Σ S² over clusters of n observations that
        # sum to S
        self.register_local("sums", torch.zeros(6, bins, dtype=torch.float64))

    def reset_parameters(self) -> None:
        """Forget everything."""
        self.sums.zero_()

    def ends_to_save(self) -> tuple[float, float]:
        return self.logsnr_max, self.logsnr_min

    @validated
    @torch.no_grad()
    def update(
        self,
        logsnr: Float[Tensor, " n"],
        value: Float[Tensor, " n"],
        cluster: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Add observations; those outside the range fall into the end bins.

        Observations are independent unless `cluster` numbers them (0, 1, …): those of one cluster,
        such as the draws of one image, may depend on each other, and the standard error is then
        that over clusters. A cluster is added whole, in one call.
        """
        place = self.sums.device
        index = self._position(logsnr.to(place)).long().clamp(0, self.bins - 1)
        value = value.detach().to(self.sums)
        one = torch.ones_like(value)
        rows = torch.stack([one, value, value.square()])
        self.sums[:3].index_add_(1, index, rows)
        if cluster is None:
            self.sums[3:].index_add_(1, index, rows)
            return
        groups = int(cluster.max()) + 1
        of_cluster = torch.zeros(2, groups * self.bins, dtype=self.sums.dtype, device=place)
        of_cluster.index_add_(1, cluster.to(place) * self.bins + index, rows[:2])
        n, total = of_cluster.view(2, groups, self.bins)
        self.sums[3:] += torch.stack([n * n, n * total, total * total]).sum(1)

    def _position(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_min) * (self.bins / (self.logsnr_max - self.logsnr_min))

    @validated
    def all_reduce(self, other: "Profile") -> None:
        """Add what another profile over the same bins has seen."""
        same = (self.bins, self.ends_to_save()) == (other.bins, other.ends_to_save())
        got = f"{other.bins} bins on [{other.logsnr_min}, {other.logsnr_max}]"
        require(same, "other", "have the same bins", got)
        self.sums += other.sums.to(self.sums.device)

    def fade(self, factor: float) -> None:
        """Multiply the weight of everything seen so far by `factor`, as an exponential moving
        average does.

        >>> profile = Profile(-1.0, 1.0, bins=1)
        >>> profile.update(torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> profile.fade(0.5)
        >>> profile.count, profile.mean
        (tensor([2.], dtype=torch.float64), tensor([2.5000], dtype=torch.float64))
        """
        self.sums[:3] *= factor
        self.sums[3:] *= factor**2

    @property
    def centers(self) -> Float[Tensor, " bins"]:
        """λ in the middle of each bin."""
        width = (self.logsnr_max - self.logsnr_min) / self.bins
        bins = torch.arange(self.bins, dtype=torch.float64, device=self.sums.device)
        return self.logsnr_min + width * (bins + 0.5)

    @property
    def count(self) -> Float[Tensor, " bins"]:
        """The number of observations in each bin."""
        return self.sums[0]

    @property
    def mean(self) -> Float[Tensor, " bins"]:
        """E‖e‖² by bin; NaN where nothing was seen."""
        return self.sums[1] / self.sums[0]

    @validated
    def at(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """E‖e‖² at any λ: linear between the centers of the bins, constant beyond the first and
        the last.

        >>> profile = Profile(0.0, 2.0, bins=2)
        >>> profile.update(torch.tensor([0.5, 1.5]), torch.tensor([1.0, 3.0]))
        >>> profile.at(torch.tensor([0.0, 1.0]))
        tensor([1., 2.])
        """
        mean = self.mean.to(logsnr.device)
        place = (self._position(logsnr) - 0.5).clamp(0, self.bins - 1)
        left = place.floor().long().clamp(max=max(self.bins - 2, 0))
        right = (left + 1).clamp(max=self.bins - 1)
        return torch.lerp(mean[left], mean[right], (place - left).to(mean)).to(logsnr.dtype)

    @property
    def second_moment(self) -> Float[Tensor, " bins"]:
        """E‖e‖⁴ by bin; NaN where nothing was seen."""
        return self.sums[2] / self.sums[0]

    @property
    def standard_error(self) -> Float[Tensor, " bins"]:
        """Of the mean, from the spread between clusters (single observations where none were
        named); NaN below two."""
        n2, n_total, total2 = self.sums[3:]
        spread = total2 - 2 * self.mean * n_total + self.mean.square() * n2  # Σ (S − n·mean)²
        clusters = self.count.square() / n2  # their number, where they are of equal size
        variance = spread.clamp(min=0) / self.count.square() * clusters / (clusters - 1)
        return torch.where(clusters > 1 + 1e-9, variance, torch.nan).sqrt()

"""The running moments of the error by log-SNR."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vdiff._inputs import ordered_ends
from vdiff._modules import PreciseModule
from vdiff._validate import Count, Finite, require, validated


class Profile(PreciseModule):
    """E‖e‖² and E‖e‖⁴ in equal bins of λ, with counts and standard errors.

    The statistics are sums in float64. They move and are saved like buffers, with their end
    points. DDP does not synchronise them: `merge` adds those of another rank or run. `update`
    takes any values, usually `prediction.squared_error(x, eps)`, which sums over dimensions.

    >>> profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=2)
    >>> profile.update(torch.tensor([-1.0, -2.0, 3.0]), torch.tensor([1.0, 3.0, 5.0]))
    >>> profile.mean
    tensor([2., 5.], dtype=torch.float64)
    """

    sums: Tensor

    __example__ = "evaluate(…, profile=profile) fills one"

    @validated(rules=[ordered_ends])
    def __init__(self, *, logsnr_max: Finite, logsnr_min: Finite, bins: Count = 50) -> None:
        super().__init__()
        self.logsnr_max, self.logsnr_min, self.bins = logsnr_max, logsnr_min, bins
        # Σ 1, Σ v, Σ v² over observations v; Σ n², Σ n S, Σ S² over clusters, each of n
        # observations with the sum S
        self.register_local("sums", torch.zeros(6, bins, dtype=torch.float64))

    def reset_parameters(self) -> None:
        """Remove all observations."""
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
        """Add observations. An end bin also counts those beyond its end of the range.

        Observations are independent unless `cluster` gives each the number of its cluster (0, 1,
        …). Those of one cluster, such as the draws of one image, may depend on each other, and the
        standard error is then that over clusters. One call adds all observations of a cluster.
        """
        device = self.sums.device
        index = self._position(logsnr.to(device)).long().clamp(0, self.bins - 1)
        value = value.detach().to(self.sums)
        rows = torch.stack([torch.ones_like(value), value, value.square()])
        self.sums[:3].index_add_(1, index, rows)
        if cluster is None:
            self.sums[3:].index_add_(1, index, rows)
            return
        clusters = int(cluster.max()) + 1
        sums = torch.zeros(2, clusters * self.bins, dtype=self.sums.dtype, device=device)
        sums.index_add_(1, cluster.to(device) * self.bins + index, rows[:2])
        n, total = sums.view(2, clusters, self.bins)
        self.sums[3:] += torch.stack([n * n, n * total, total * total]).sum(1)

    def _position(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_min) * (self.bins / (self.logsnr_max - self.logsnr_min))

    @validated
    def merge(self, other: "Profile") -> None:
        """Add the observations of another profile over the same bins."""
        same = (self.bins, self.ends_to_save()) == (other.bins, other.ends_to_save())
        got = f"{other.bins} bins on [{other.logsnr_min}, {other.logsnr_max}]"
        require(same, "other", "have the same bins", got)
        self.sums += other.sums.to(self.sums.device)

    def decay(self, factor: float) -> None:
        """Multiply the weight of all observations so far by `factor`, as an exponential moving
        average does.

        >>> profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1)
        >>> profile.update(torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> profile.decay(0.5)
        >>> profile.count, profile.mean
        (tensor([2.], dtype=torch.float64), tensor([2.5000], dtype=torch.float64))
        """
        self.sums[:3] *= factor
        self.sums[3:] *= factor**2

    @property
    def centers(self) -> Float[Tensor, " bins"]:
        """λ in the middle of each bin, in rising order."""
        width = (self.logsnr_max - self.logsnr_min) / self.bins
        bins = torch.arange(self.bins, dtype=torch.float64, device=self.sums.device)
        return self.logsnr_min + width * (bins + 0.5)

    @property
    def count(self) -> Float[Tensor, " bins"]:
        """The number of observations in each bin."""
        return self.sums[0]

    @property
    def mean(self) -> Float[Tensor, " bins"]:
        """E‖e‖² by bin; NaN in an empty bin."""
        return self.sums[1] / self.sums[0]

    @validated
    def at(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """E‖e‖² at any λ: linear between the centers of the bins, constant beyond the outer
        centers.

        >>> profile = Profile(logsnr_max=2.0, logsnr_min=0.0, bins=2)
        >>> profile.update(torch.tensor([0.5, 1.5]), torch.tensor([1.0, 3.0]))
        >>> profile.at(torch.tensor([0.0, 1.0]))
        tensor([1., 2.])
        """
        mean = self.mean.to(logsnr.device)
        position = (self._position(logsnr) - 0.5).clamp(0, self.bins - 1)
        left = position.floor().long().clamp(max=max(self.bins - 2, 0))
        right = (left + 1).clamp(max=self.bins - 1)
        return torch.lerp(mean[left], mean[right], (position - left).to(mean)).to(logsnr.dtype)

    @property
    def second_moment(self) -> Float[Tensor, " bins"]:
        """E‖e‖⁴ by bin; NaN in an empty bin."""
        return self.sums[2] / self.sums[0]

    @property
    def standard_error(self) -> Float[Tensor, " bins"]:
        """The standard error of `mean`, from the spread between clusters; NaN below two."""
        n2, n_total, total2 = self.sums[3:]
        spread = total2 - 2 * self.mean * n_total + self.mean.square() * n2  # Σ (S − n·mean)²
        clusters = self.count.square() / n2  # their number, where they are of equal size
        variance = spread.clamp(min=0) / self.count.square() * clusters / (clusters - 1)
        return torch.where(clusters > 1 + 1e-9, variance, torch.nan).sqrt()

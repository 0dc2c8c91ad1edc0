"""Theorem 1 of VDM++ as a way to train: the plain bound of data noised to a level from p_w."""

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, Model, finite_end, known_range, variance_trained
from vdiff._inputs import CleanEnd, Data, Noise, NoisyEnd, Random, ordered_ends
from vdiff._precision import device_of, float64_for, to_float64
from vdiff._validate import require, unchecked, validated
from vdiff.errors import InvalidValue
from vdiff.loss import weighted_elbo
from vdiff.schedule import Schedule
from vdiff.schedule.base import BISECTIONS, EDGE
from vdiff.times import GOLDEN, stratified
from vdiff.weighting import WeightFunction
from vdiff.weighting._check import check_values

POINTS = 20_001
ROUNDING = 1e-9  # a smaller relative rise of w is rounding


class Augmentation:
    """p_w, the law of the log-SNR to which a monotone weighting noises the data:

        P(level > λ) = w(λ)/w(λ_min)   for λ_min ≤ λ < λ_max

    The rest of the probability, w(λ_max)/w(λ_min), is at λ_max, where no noise is added. A call
    with λ returns P(level > λ). `augmented_elbo` trains on data noised to levels from p_w;
    `describe(…).augmentation` is that of a recipe.

    Args:
        weighting: w(λ). It must never rise between the ends, or p_w would be negative somewhere.
        logsnr_max, logsnr_min: the ends of the schedule.

    Raises:
        ValueError: for a weighting that rises; the message says between which λ.

    Kingma & Gao, arXiv:2303.00848, theorem 1.

    >>> from vdiff.weighting import Sigmoid
    >>> noise = Augmentation(Sigmoid(2.0), 10.0, -10.0)
    >>> noise(torch.tensor([-10.0, 2.0, 11.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """

    __example__ = 'for instance describe("vdmpp-sigmoid").augmentation'

    @validated(rules=[ordered_ends])
    def __init__(
        self, weighting: WeightFunction, logsnr_max: CleanEnd, logsnr_min: NoisyEnd
    ) -> None:
        check_values(weighting, logsnr_max, logsnr_min)
        self.weighting, self.logsnr_max, self.logsnr_min = weighting, logsnr_max, logsnr_min
        device = device_of(weighting)
        logsnr = torch.linspace(logsnr_min, logsnr_max, POINTS, dtype=torch.float64, device=device)
        with torch.no_grad():
            weight = weighting(logsnr)
        if up := rises(logsnr, weight):
            came = f"{weighting!r}, which rises from λ = {up[0][0]:.3g} to {up[0][1]:.3g}"
            raise InvalidValue("weighting", "never rise with λ", came)
        self._weight_of_noise = weight[0].item()

    @validated
    @torch.no_grad()
    def __call__(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """P(level > λ), in the dtype of λ; at λ_max P(level = λ_max)."""
        share = self.weighting(logsnr.clamp(min=self.logsnr_min)) / self._weight_of_noise
        return torch.where(logsnr > self.logsnr_max, 0.0, share)

    @validated
    def icdf(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The level with P(level ≤ λ) = u, for u in [0, 1), in float64."""
        u = to_float64(u)
        low, high = torch.full_like(u, self.logsnr_min), torch.full_like(u, self.logsnr_max)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            above = self(middle) > 1 - u
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return high

    def sample(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, " n"]:
        """n independent levels, λ in float64: `diffuse(x, eps, levels)` is data noised to them."""
        dtype = float64_for(torch.device(device))
        return self.icdf(torch.rand(n, generator=generator, device=device, dtype=dtype))

    def __repr__(self) -> str:
        ends = f"logsnr_max={self.logsnr_max}, logsnr_min={self.logsnr_min}"
        return f"Augmentation({self.weighting!r}, {ends})"


def same_ends(augmentation: Augmentation, schedule: Schedule) -> None:
    """A rule: the schedule has the ends of the augmentation, and a fixed shape."""
    ends, own = ((one.logsnr_max, one.logsnr_min) for one in (augmentation, schedule))
    same = "have the ends of the augmentation, {:g} and {:g}".format(*ends)
    fits = all(abs(end - other) <= EDGE for end, other in zip(ends, own, strict=True))
    require(fits, "schedule", same, "{:g} and {:g}".format(*own))
    hint = "it would learn from times that are not uniform; weighted_elbo trains the same"
    require(not schedule.learns_shape, "schedule", "have a fixed shape", schedule, hint)


@validated(rules=[finite_end, same_ends, variance_trained, known_range])
def augmented_elbo(
    model: Model,
    x: Data,
    *,
    augmentation: Augmentation,
    schedule: Schedule,
    eps: Noise | None = None,
    generator: Random | None = None,
    condition: Condition = None,
) -> Float[Tensor, " batch"]:
    """The diffusion term of the plain bound of data noised to levels from p_w: (batch,) nats. Take
    `.mean()`.

        ½ E_{a ~ p_w} E_{t ~ U(t_a, 1), ε}[ (1 − t_a) (−dλ/dt) ‖ε − ε̂(z_t, λ_t)‖² ],   λ(t_a) = a

    Each example is noised to its own level a, then further to a level between a and λ_min; the
    network predicts all of the noise ε. For every network the mean, and so the gradient, is that
    of `weighted_elbo(…, weighting=w)` divided by w(λ_min).

    Args:
        model, x, eps, generator, condition: as in `weighted_elbo`.
        augmentation: p_w, for instance `Augmentation(Sigmoid(2), 15, -15)`.
        schedule: how the levels are sampled, between the ends of the augmentation.

    Raises:
        TypeError, ValueError: as `weighted_elbo`; also for a schedule with other ends or a learned
            shape.

    Kingma & Gao, arXiv:2303.00848, theorem 1.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Cosine
    >>> from vdiff.weighting import Sigmoid
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> noise = Augmentation(Sigmoid(2.0), 15.0, -15.0)
    >>> augmented_elbo(oracle, oracle.sample(64), augmentation=noise, schedule=Cosine()).shape
    torch.Size([64])
    """
    with torch.no_grad():
        dtype = float64_for(x.device)
        # a golden sequence fills the square evenly together with the stratified t; each level by
        # itself has the law p_w
        golden = torch.arange(len(x), dtype=dtype, device=x.device) * GOLDEN
        offset = torch.rand((), generator=generator, device=x.device, dtype=dtype)
        level = augmentation.icdf((golden + offset) % 1.0)
        start = schedule.inverse(level, clamp=True)
        t = start + (1 - start) * stratified(len(x), generator=generator, device=x.device)
    loss = unchecked(weighted_elbo)(
        model, x, schedule=schedule, condition=condition, t=t, eps=eps, generator=generator
    )
    return (1 - start).to(loss.dtype) * loss


def rises(
    logsnr: Float[Tensor, " grid"], weight: Float[Tensor, " grid"]
) -> list[tuple[float, float]]:
    """The intervals of an ascending grid of λ on which w rises by more than rounding."""
    up = (weight[1:] > weight[:-1] * (1 + ROUNDING)).long()
    edge = torch.cat([up.new_zeros(1), up, up.new_zeros(1)]).diff()
    begin, end = (logsnr[(edge == sign).nonzero().flatten()] for sign in (1, -1))
    return list(zip(begin.tolist(), end.tolist(), strict=True))


__all__ = ["Augmentation", "augmented_elbo"]

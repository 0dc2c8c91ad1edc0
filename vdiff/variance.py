"""How the variance Σ of a reverse step p(z_s | z_t) is chosen.

Told as u = log Σ − log(c σ_s²), how far it exceeds the posterior's in logarithm: 0 for the
posterior's own ("small", β̃), ℓ for the forward step's ("large", β). With u, the step's KL needs
no difference of large numbers.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff.errors import check_positive_int, must
from vdiff.gaussian import Step, per_example
from vdiff.profile import Profile

Excess = Tensor | float


class ReverseVariance:
    """A choice of Σ: `excess(step, head)` is u, the number 0 or a (batch,) or (batch, …) tensor.

    `learned` says whether the network has a second half of channels for it, which comes as `head`.

    >>> Forward().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    learned = False

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        """u = log Σ − log(c σ_s²)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Posterior(ReverseVariance):
    """Σ = c σ_s², the posterior's own ("small", β̃): u = 0, and the step's KL is ½ k ‖ε − ε̂‖².

    >>> Posterior().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    0.0
    """

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        return 0.0


class Forward(ReverseVariance):
    """Σ = c σ_t², the forward step's ("large", β): u = ℓ = log1p(k sigmoid(λ_t)).

    The best choice for data of unit variance without structure, and an upper bound of the best for
    the exact denoiser of data of variance at most one.

    >>> Forward().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        return step.log_variance_ratio


class Range(ReverseVariance):
    """Learned between the two: log Σ = v log(c σ_t²) + (1 − v) log(c σ_s²) with v = (head + 1)/2,
    so u = v ℓ.

    v is not squashed and may leave [0, 1]: data of variance above one needs it (Nichol & Dhariwal,
    arXiv:2102.09672).

    >>> Range().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])), torch.tensor([[1.0, -1.0]]))
    tensor([[0.6201, 0.0000]])
    """

    learned = True

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        head = _given(self, head)
        return 0.5 * (head + 1.0) * per_example(step.log_variance_ratio, head)


class LogVariance(ReverseVariance):
    """The network says log Σ.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> LogVariance().excess(step, step.variance.log()[:, None])
    tensor([[0.]])
    """

    learned = True

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        head = _given(self, head)
        return head - per_example(step.variance.log(), head)


class Variance(ReverseVariance):
    """The network says Σ, through a softplus: where Σ is small that is nearly its logarithm (d log
    Σ/d head = (1 − e^{−Σ})/Σ).

    Without the softplus the gradient would grow like 1/Σ, which is 1e4 and more at the clean end
    of a chain.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> Variance().excess(step, torch.tensor([[0.0]]))
    tensor([[1.4054]])
    """

    learned = True

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        head = _given(self, head)
        log_softplus = torch.log(
            F.softplus(head.clamp(min=-15.0))
        )  # below, log softplus(h) = h, and softplus underflows
        return torch.where(head < -15.0, head, log_softplus) - per_example(
            step.variance.log(), head
        )


class Optimal(ReverseVariance):
    """The best Σ that depends on λ alone, for a given model: u* = log1p(k E‖ε − ε̂‖²/d), from the
    model's error by λ.

    `profile` is what `evaluate` collects for the model (in continuous time, so that no bin stays
    empty), kept as it is now; E‖e‖² is interpolated between the centers of its bins and constant
    beyond them. The step's KL is then ½ d log1p(k E‖e‖²/d) on average (Analytic-DPM,
    arXiv:2201.06503, for the Bayes denoiser). `dims` is d, the number of dimensions of one
    example.

    >>> profile = Profile(-1.0, 1.0, bins=1)
    >>> profile.update(torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> Optimal(profile, dims=4).excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    def __init__(self, profile: Profile, dims: int) -> None:
        check_positive_int("Optimal", "dims", dims)
        if not isinstance(profile, Profile):
            raise TypeError(
                must(
                    "Optimal",
                    "profile",
                    "be a Profile",
                    type(profile).__name__,
                    "evaluate(…, profile=profile) fills one",
                )
            )
        if not (profile.count > 0).all():
            hint = "a chain of T steps shows T levels alone: evaluate without steps, or take fewer bins"
            came = f"{int((profile.count == 0).sum())} empty bins"
            raise ValueError(
                must("Optimal", "profile", "have seen something in every bin", came, hint)
            )
        if not (torch.isfinite(profile.mean) & (profile.mean >= 0)).all():
            raise ValueError(
                must(
                    "Optimal",
                    "profile",
                    "hold finite squared errors",
                    f"from {profile.mean.min():g} to {profile.mean.max():g}",
                )
            )
        self.profile, self.dims = copy.deepcopy(profile), dims

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        error = self.profile.at(step.logsnr_t).to(step.delta.dtype)
        return torch.log1p(step.snr_gain * error / self.dims)

    def __repr__(self) -> str:
        return f"Optimal({self.profile!r}, dims={self.dims})"


def _given(variance: ReverseVariance, head: Tensor | None) -> Tensor:
    if head is None:
        name = type(variance).__name__
        raise ValueError(
            must(
                name,
                "head",
                "come with the prediction",
                None,
                f"a model learns its variance as Denoiser(network, …, variance={name}())",
            )
        )
    return head


__all__ = [
    "Forward",
    "LogVariance",
    "Optimal",
    "Posterior",
    "Range",
    "ReverseVariance",
    "Variance",
]

"""How the variance Σ of a reverse step p(z_s | z_t) is chosen.

Each choice returns u = log Σ − log(c σ_s²), the log ratio to the posterior's variance: 0 for the
posterior's own ("small", β̃), ℓ for the forward step's ("large", β). With u, the step's KL needs
no difference of large numbers.
"""

import abc
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff._validate import Count, require, validated
from vdiff.errors import InvalidValue
from vdiff.gaussian import Step, per_example
from vdiff.profile import Profile

Excess = Tensor | float


class ReverseVariance(abc.ABC):
    """A choice of Σ: `excess(step, head)` is u, the number 0 or a (batch,) or (batch, …) tensor.

    Where `learned`, the network has a second half of channels, which is `head`.

    >>> FixedLarge().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    learned = False

    @abc.abstractmethod
    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        """u = log Σ − log(c σ_s²)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class FixedSmall(ReverseVariance):
    """Σ = c σ_s², the posterior's own ("small", β̃): u = 0, and the step's KL is ½ k ‖ε − ε̂‖².

    >>> FixedSmall().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    0.0
    """

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        return 0.0


class FixedLarge(ReverseVariance):
    """Σ = c σ_t², the forward step's ("large", β): u = ℓ = log1p(k sigmoid(λ_t)).

    The best choice for data of unit variance without structure, and an upper bound of the best for
    the exact denoiser of data of variance at most one.

    >>> FixedLarge().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        return step.log_variance_ratio


class LearnedRange(ReverseVariance):
    """Learned between the two: log Σ = v log(c σ_t²) + (1 − v) log(c σ_s²) with v = (head + 1)/2,
    so u = v ℓ.

    v is not squashed and may leave [0, 1]: data of variance above one needs it (Nichol & Dhariwal,
    arXiv:2102.09672).

    >>> LearnedRange().excess(Step(torch.tensor([0.0]), torch.tensor([1.0])), torch.tensor([[1.0, -1.0]]))
    tensor([[0.6201, 0.0000]])
    """

    learned = True

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        head = _given(self, head)
        return 0.5 * (head + 1.0) * per_example(step.log_variance_ratio, head)


class LearnedLogVariance(ReverseVariance):
    """The network predicts log Σ.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> LearnedLogVariance().excess(step, step.variance.log()[:, None])
    tensor([[0.]])
    """

    learned = True

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        head = _given(self, head)
        return head - per_example(step.variance.log(), head)


class LearnedVariance(ReverseVariance):
    """The network predicts Σ, through a softplus: where Σ is small, the head is nearly log Σ
    (d log Σ/d head = (1 − e^{−Σ})/Σ).

    Without the softplus the gradient would grow like 1/Σ, which is 1e4 and more at the clean end
    of a chain.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> LearnedVariance().excess(step, torch.tensor([[0.0]]))
    tensor([[1.4054]])
    """

    learned = True

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        head = _given(self, head)
        log_softplus = torch.log(F.softplus(head.clamp(min=-15.0)))  # below −15 it is the head
        log_variance = torch.where(head < -15.0, head, log_softplus)
        return log_variance - per_example(step.variance.log(), head)


def seen_everywhere(profile: Profile) -> None:
    """Rule: a profile has finite errors in every bin."""
    empty = int((profile.count == 0).sum())
    hint = "a chain of T steps has T levels: evaluate without steps, or take fewer bins"
    require(not empty, "profile", "have seen something in every bin", f"{empty} empty bins", hint)
    fits = bool((torch.isfinite(profile.mean) & (profile.mean >= 0)).all())
    got = f"from {profile.mean.min():g} to {profile.mean.max():g}"
    require(fits, "profile", "hold finite squared errors", got)


class AnalyticVariance(ReverseVariance):
    """The best Σ that depends on λ alone, for a given model: u* = log1p(k E‖ε − ε̂‖²/d), from the
    model's error by λ.

    `profile` is what `evaluate` collects for the model (in continuous time, so that no bin stays
    empty), kept as it is now; E‖e‖² is interpolated between the centers of its bins and constant
    beyond them. The step's KL is then ½ d log1p(k E‖e‖²/d) on average (Analytic-DPM,
    arXiv:2201.06503, for the Bayes denoiser). `dims` is d, the number of dimensions of one
    example.

    >>> profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1)
    >>> profile.update(torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> AnalyticVariance(profile, dims=4).excess(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    @validated(rules=[seen_everywhere])
    def __init__(self, profile: Profile, dims: Count) -> None:
        self.profile, self.dims = copy.deepcopy(profile), dims

    def excess(self, step: Step, head: Tensor | None = None) -> Excess:
        error = self.profile.at(step.logsnr_t).to(step.delta.dtype)
        return torch.log1p(step.snr_gain * error / self.dims)

    def __repr__(self) -> str:
        return f"Optimal({self.profile!r}, dims={self.dims})"


def _given(variance: ReverseVariance, head: Tensor | None) -> Tensor:
    if head is None:
        denoiser = f"Denoiser(network, …, variance={type(variance).__name__}())"
        hint = f"a model learns its variance as {denoiser}"
        raise InvalidValue("head", "come with the prediction", None, hint)
    return head


__all__ = [
    "AnalyticVariance",
    "FixedLarge",
    "FixedSmall",
    "LearnedLogVariance",
    "LearnedRange",
    "LearnedVariance",
    "ReverseVariance",
]

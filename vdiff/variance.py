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

Ratio = Tensor | float


class ReverseVariance(abc.ABC):
    """A choice of Σ. `log_variance_ratio(step, variance_output)` is u: the number 0, or a tensor
    (batch,) or (batch, …).

    Where `learned`, the network has twice the channels; `variance_output` is their second half.
    """

    learned = False

    @abc.abstractmethod
    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        """u = log Σ − log(c σ_s²)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class FixedSmall(ReverseVariance):
    """Σ = c σ_s², the posterior's own ("small", β̃): u = 0, and the step's KL is ½ k ‖ε − ε̂‖²."""

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        return 0.0


class FixedLarge(ReverseVariance):
    """Σ = c σ_t², the forward step's ("large", β): u = ℓ = log1p(k sigmoid(λ_t)).

    It is best for data of unit variance without structure, and an upper bound of the best for the
    exact denoiser of data of variance at most one.

    >>> FixedLarge().log_variance_ratio(Step(torch.tensor([0.0]), torch.tensor([1.0])))
    tensor([0.6201])
    """

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        return step.log_variance_ratio


class LearnedRange(ReverseVariance):
    """Learned between the two: log Σ = v log(c σ_t²) + (1 − v) log(c σ_s²), so u = v ℓ, with
    v = (output + 1)/2.

    v may leave [0, 1]: data of variance above one needs it. Nichol & Dhariwal, arXiv:2102.09672.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> LearnedRange().log_variance_ratio(step, torch.tensor([[1.0, -1.0]]))
    tensor([[0.6201, 0.0000]])
    """

    learned = True

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        v = 0.5 * (_given(self, variance_output) + 1.0)
        return v * per_example(step.log_variance_ratio, v)


class LearnedLogVariance(ReverseVariance):
    """The network predicts log Σ.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> LearnedLogVariance().log_variance_ratio(step, step.variance.log()[:, None])
    tensor([[0.]])
    """

    learned = True

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        log_variance = _given(self, variance_output)
        return log_variance - per_example(step.variance.log(), log_variance)


class LearnedVariance(ReverseVariance):
    """The network predicts Σ through a softplus. Where Σ is small, the output v is nearly log Σ:
    d log Σ/dv = (1 − e^{−Σ})/Σ.

    Without the softplus the gradient would grow like 1/Σ, which is 1e4 and more at the clean end
    of a chain.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> LearnedVariance().log_variance_ratio(step, torch.tensor([[0.0]]))
    tensor([[1.4054]])
    """

    learned = True

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        v = _given(self, variance_output)
        log_softplus = torch.log(F.softplus(v.clamp(min=-15.0)))
        log_variance = torch.where(v < -15.0, v, log_softplus)  # equal to rounding below −15
        return log_variance - per_example(step.variance.log(), v)


def has_every_error(profile: Profile) -> None:
    """Rule: a profile has a finite error in every bin."""
    missing = int((~(torch.isfinite(profile.mean) & (profile.mean >= 0))).sum())
    hint = "a chain of T steps has T levels: evaluate without steps, or take fewer bins"
    finite, got = "have a finite squared error in every bin", f"{missing} bins without"
    require(not missing, "profile", finite, got, hint)


class AnalyticVariance(ReverseVariance):
    """The best Σ that depends on λ alone, for a given model: u* = log1p(k E‖ε − ε̂‖²/d), from the
    model's error by λ. The step's KL is then ½ d log1p(k E‖ε − ε̂‖²/d) on average.

    Args:
        profile: the errors that `evaluate` collects for the model, in continuous time so that no
            bin stays empty. They are copied, and interpolated between the centers of the bins.
        dims: d, the number of dimensions of one example.

    Analytic-DPM, arXiv:2201.06503, for the Bayes denoiser.

    >>> profile = Profile(logsnr_max=1.0, logsnr_min=-1.0, bins=1)
    >>> profile.update(torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> AnalyticVariance(profile, dims=4).log_variance_ratio(step)
    tensor([0.6201])
    """

    @validated(rules=[has_every_error])
    def __init__(self, profile: Profile, dims: Count) -> None:
        self.profile, self.dims = copy.deepcopy(profile), dims

    def log_variance_ratio(self, step: Step, variance_output: Tensor | None = None) -> Ratio:
        error = self.profile.at(step.logsnr_t).to(step.delta.dtype)
        return torch.log1p(step.snr_gain * error / self.dims)

    def __repr__(self) -> str:
        return f"AnalyticVariance({self.profile!r}, dims={self.dims})"


def _given(variance: ReverseVariance, variance_output: Tensor | None) -> Tensor:
    if variance_output is None:
        hint = f"a model learns it as Denoiser(network, …, variance={variance!r})"
        raise InvalidValue("variance_output", "come with the prediction", None, hint)
    return variance_output


__all__ = [
    "AnalyticVariance", "FixedLarge", "FixedSmall", "LearnedLogVariance", "LearnedRange",
    "LearnedVariance", "ReverseVariance",
]  # fmt: skip

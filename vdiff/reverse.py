"""The reverse kernel p(z_s | z_t) of a discrete step: one home for the bound's steps and for ancestral sampling."""

from jaxtyping import Float
from torch import Tensor

from vdiff.gaussian import Step, per_example
from vdiff.parameterization import Prediction


def reverse_mean(prediction: Prediction, step: Step) -> Float[Tensor, "batch *dims"]:
    """The mean of p(z_s | z_t): the posterior's, with x̂ in place of x.

    >>> from vdiff import Eps
    >>> z = torch.ones(1, 1)
    >>> step = Step(torch.zeros(1), torch.ones(1))
    >>> reverse_mean(Prediction(z, step.logsnr_t, torch.zeros(1, 1), Eps()), step)
    tensor([[1.2092]])
    """
    return step.mean(prediction.z, prediction.x)


def reverse_sample(prediction: Prediction, step: Step, noise: Tensor) -> Float[Tensor, "batch *dims"]:
    """z_s ~ p(z_s | z_t) with the posterior's variance c σ_s², from standard normal `noise`.

    >>> from vdiff import Eps
    >>> z = torch.ones(1, 1)
    >>> step = Step(torch.zeros(1), torch.ones(1))
    >>> reverse_sample(Prediction(z, step.logsnr_t, torch.zeros(1, 1), Eps()), step, torch.zeros(1, 1))
    tensor([[1.2092]])
    """
    return reverse_mean(prediction, step) + per_example(step.variance.sqrt(), noise) * noise

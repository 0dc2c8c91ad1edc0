"""What a network over tokens predicts: p(x_i | z), or p(x_i | z_{−i})."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

LogProbs = Float[Tensor, "batch *dims vocabulary"]


class TokenParameterization(ABC):
    """Which distribution over a token's values the logits of a network are.

    The ordinary posterior p(x_i | z) also uses what the token z_i itself says. The leave-one-out
    posterior p(x_i | z_{−i}) does not. Each determines the other through Bayes' rule,

        p(x_i | z) ∝ q(z_i | x_i) p(x_i | z_{−i}),

    so they are two parameterizations of one model. All arguments and results are
    log-probabilities, (batch, …, vocabulary); `log_likelihood` is log q(z_i | x_i) as a function
    of x_i. Where the process cannot have drawn z_i from π, x_i = z_i is known: both are one there.

    >>> log_probs, nothing = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2)
    >>> LeaveOneOut().posterior(log_probs, nothing).exp()  # z_i says nothing of x_i
    tensor([[0.8000, 0.2000]])
    """

    __example__ = "Posterior() or LeaveOneOut()"

    @abstractmethod
    def posterior(self, log_probs: LogProbs, log_likelihood: LogProbs) -> LogProbs:
        """log p(x_i | z)."""

    @abstractmethod
    def leave_one_out(self, log_probs: LogProbs, log_likelihood: LogProbs) -> LogProbs:
        """log p(x_i | z_{−i})."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Posterior(TokenParameterization):
    """The network predicts p(x_i | z), the target of cross-entropy on all tokens.

    >>> log_probs, log_likelihood = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.8, 0.2]])
    >>> Posterior().leave_one_out(log_probs, log_likelihood.log()).exp()
    tensor([[0.5000, 0.5000]])
    """

    def posterior(self, log_probs: LogProbs, log_likelihood: LogProbs) -> LogProbs:
        return torch.where(_open(log_likelihood), log_probs, log_likelihood.log_softmax(-1))

    def leave_one_out(self, log_probs: LogProbs, log_likelihood: LogProbs) -> LogProbs:
        known = ~_open(log_likelihood)
        ratio = (log_probs - log_likelihood.masked_fill(known, 0.0)).log_softmax(-1)
        return torch.where(known, log_likelihood.log_softmax(-1), ratio)


class LeaveOneOut(TokenParameterization):
    """The network predicts p(x_i | z_{−i}): its output for a token does not depend on that token.

    >>> log_probs, log_likelihood = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]])
    >>> LeaveOneOut().posterior(log_probs, log_likelihood.log()).exp()
    tensor([[0.8000, 0.2000]])
    """

    def posterior(self, log_probs: LogProbs, log_likelihood: LogProbs) -> LogProbs:
        known = ~_open(log_likelihood)
        product = (log_probs + log_likelihood.masked_fill(known, 0.0)).log_softmax(-1)
        return torch.where(known, log_likelihood.log_softmax(-1), product)

    def leave_one_out(self, log_probs: LogProbs, log_likelihood: LogProbs) -> LogProbs:
        return log_probs


def _open(log_likelihood: Tensor) -> Tensor:
    """Where the token leaves x open: every value of x may have become z. (…, 1)."""
    return torch.isfinite(log_likelihood).all(-1, keepdim=True)


__all__ = ["LeaveOneOut", "Posterior", "TokenParameterization"]

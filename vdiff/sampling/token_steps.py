"""Steps over tokens beside `ancestral`: the most confident tokens first, and τ-leaping."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from vdiff._validate import NonNegative, require, validated
from vdiff.discrete._draw import draw, uniform_noise
from vdiff.discrete._tokens import per_token
from vdiff.discrete.prediction import TokenPrediction
from vdiff.gaussian import Level
from vdiff.sampling.step import NO_HISTORY, History, chain_step

Model = Callable[..., TokenPrediction]


@validated
def confidence(
    model: Model,
    z: Int[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
    *,
    randomness: NonNegative = 0.0,
) -> Int[Tensor, "batch *dims"]:
    """Unmask the tokens that the network is most sure of, until n (1 − α_s) of the n modelled ones
    are masked, rounded. Each masked token is drawn from p(x_i | z), and its confidence is the
    probability of what was drawn. One evaluation.

    For masked processes. The number of masks at λ_s is not random, and samples are likelier than
    those of `ancestral`: what was drawn decides which token is unmasked, so that the samples do
    not have the chain's distribution, whatever the network.

    Chang et al., arXiv:2202.04200 (MaskGIT); low-confidence remasking of Nie et al.,
    arXiv:2502.09992 (LLaDA).

    Args:
        randomness: Gumbel noise of this scale times 1 − α_s is added to the log-confidence
            (MaskGIT's choice temperature).

    >>> from vdiff.discrete import Masked, TokenDenoiser
    >>> model = TokenDenoiser(lambda z: torch.tensor([[[5.0, 0.0], [0.0, 9.0]]]), Masked(2))
    >>> confidence(model, torch.tensor([[2, 2]]), torch.tensor([-15.0]), torch.zeros(1))
    tensor([[2, 1]])
    """
    now = model(z, logsnr_t)
    mask, what = now.process.mask, "have a masked process: Masked or AnyOrder"
    require(now.process.one_posterior, "model", what, repr(now.process))
    assert mask is not None
    log_probs = now.posterior
    x = draw(log_probs, z, history.generator)
    sure = log_probs.gather(-1, x[..., None])[..., 0].double()
    noisy = torch.sigmoid(-per_token(logsnr_s, z)).expand(z.shape)
    if randomness:
        gumbel = -torch.log(-torch.log(uniform_noise(z, history.generator)))
        sure = sure + randomness * noisy * gumbel
    masked = torch.eq(z, mask)
    if now.modelled is not None:
        masked, noisy = masked & now.modelled, noisy * now.modelled
    left = noisy.flatten(1).sum(1, keepdim=True).round()
    rank = sure.masked_fill(~masked, torch.inf).flatten(1).argsort(1).argsort(1)
    return torch.where(masked & (rank >= left).view(z.shape), x, z)


@validated
def tau_leaping(
    model: Model,
    z: Int[Tensor, "batch *dims"],
    logsnr_t: Level,
    logsnr_s: Level,
    history: History = NO_HISTORY,
) -> Int[Tensor, "batch *dims"]:
    """Jumps at the rates of the reverse process at λ_t, which stay as they are for the step. Of
    the jumps of a token in one step the first counts. One evaluation, order 1.

    `ancestral` costs the same and has no such error for one network output; this is the sampler of
    Campbell et al., arXiv:2205.14987, section 4.3, and up to order 1 the Euler steps of Lou et
    al., arXiv:2310.16834 (SEDD). The time is −log α, the number of jumps of the process so far:
    give it steps that are small at the noisy end too.

    >>> from vdiff.discrete import Masked, TokenDenoiser
    >>> model = TokenDenoiser(lambda z: torch.tensor([[[5.0, 0.0], [0.0, 9.0]]]), Masked(2))
    >>> tau_leaping(model, torch.tensor([[2, 1]]), torch.tensor([-15.0]), torch.tensor([-14.9]))
    tensor([[2, 1]])
    """
    now, step = model(z, logsnr_t), chain_step(logsnr_t, logsnr_s)
    return draw(now.leap(step), z, history.generator)


__all__ = ["confidence", "tau_leaping"]

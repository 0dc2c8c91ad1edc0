"""Networks from left to right, and mixed with the counts of an n-gram."""

import torch
from scipy.optimize import minimize_scalar
from text_baselines import NGram
from text_training import ROWS, Windows, shifted
from torch import Tensor

from vdiff.nn import Transformer


@torch.no_grad()
def in_order(network: Transformer, windows: Windows) -> Tensor:
    """p of each token given those before it, (n, length), and 1 where a window is padded.

    By the chain rule their product is the probability of a window. A masked network is called once
    for each place: it sees the mask there, and at all places after it.
    """
    x, mask, places = windows.tokens, network.vocabulary, torch.arange(network.length)

    def p(z: Tensor, at: slice) -> Tensor:
        rows = zip(z.split(ROWS), x[:, at, None].split(ROWS), strict=True)
        return torch.cat([network(a)[:, at].softmax(-1).gather(-1, b)[..., 0] for a, b in rows])

    if network.causal:
        found = p(shifted(x, network), slice(None))
    else:
        each = [p(x.masked_fill(places >= i, mask), slice(i, i + 1)) for i in places.tolist()]
        found = torch.cat(each, 1)
    return found.double().masked_fill(windows.absent, 1.0)


def counted(ngram: NGram, windows: Windows) -> Tensor:
    """The same of an n-gram of tokens."""
    seen = torch.arange(windows.tokens.shape[1]).expand_as(windows.tokens)
    real = ~windows.absent
    found = torch.ones(windows.tokens.shape, dtype=torch.float64)
    p = ngram.probabilities(windows.tokens[real].numpy(), seen[real].numpy())
    found[real] = torch.from_numpy(p)
    return found


def best_share(p: Tensor, q: Tensor) -> float:
    """The w by which (1 − w) p + w q has the fewest bits."""

    def bits(w: float) -> float:
        return -torch.lerp(p, q, w).log2().sum().item()

    return float(minimize_scalar(bits, bounds=(0.0, 1.0), method="bounded").x)


def bits_of(p: Tensor) -> Tensor:
    """Bits of each window."""
    return -p.log2().sum(1)

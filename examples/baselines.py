"""Simple densities of small discrete images, as a yardstick: all in bits per dimension on held-out images.

Expect on the digits' test set (8x8, 17 levels): uniform 4.09, per-pixel histogram 2.43, mixture of independent
categoricals 2.31, linear autoregressive softmax 2.04; half a minute on one core.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(train: Tensor, test: Tensor, levels: int) -> float:
    return math.log2(levels)


def histogram(train: Tensor, test: Tensor, levels: int, pseudocount: float = 0.5) -> float:
    """Each pixel by itself, from its own counts."""
    counts = F.one_hot(train.flatten(1), levels).double().sum(0) + pseudocount
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return -F.one_hot(test.flatten(1), levels).double().mul(log_p).sum((1, 2)).mean().item() / test[0].numel()


def mixture(
    train: Tensor, test: Tensor, levels: int, components: int = 30, rounds: int = 100, pseudocount: float = 0.3, seed: int = 0
) -> float:
    """A mixture of independent categoricals, by expectation maximisation, smoothed towards the pooled counts."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.one_hot(images.flatten(1), levels).double().flatten(1) for images in (train, test))
    dims = test[0].numel()
    pooled = x.mean(0)
    share = torch.rand(len(x), components, generator=generator, dtype=torch.float64).pow(8)
    share /= share.sum(1, keepdim=True)
    for _ in range(rounds):
        weight = share.mean(0)
        counts = share.T @ x + pseudocount * levels * (pooled + 0.1 / levels)
        log_p = (counts.view(components, dims, levels) / counts.view(components, dims, levels).sum(-1, keepdim=True)).log().flatten(1)
        share = (x @ log_p.T + weight.log()).softmax(1)
    return -(y @ log_p.T + weight.log()).logsumexp(1).mean().item() / (dims * math.log(2))


def autoregressive(train: Tensor, test: Tensor, levels: int, steps: int = 60, decay: float = 1.0) -> float:
    """Each pixel by a softmax that is linear in the pixels before it (raster order), fitted by L-BFGS with ridge."""
    scale = (levels - 1) / 2
    x, y = (images.flatten(1) for images in (train, test))
    dims = x.shape[1]
    features, held_out = x.float() / scale - 1, y.float() / scale - 1
    before = torch.ones(dims, dims).tril(-1)
    counts = F.one_hot(x, levels).float().sum(0) + 0.5
    weight = torch.zeros(dims, levels, dims, requires_grad=True)
    bias = counts.log().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def nats(pixels: Tensor, target: Tensor) -> Tensor:
        logits = torch.einsum("nj,ikj->nik", pixels, weight * before[:, None]) + bias
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / len(target)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nats(features, x) + decay * weight.square().sum() / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return nats(held_out, y).item() / (dims * math.log(2))


BASELINES = {
    "uniform": uniform,
    "per-pixel histogram": histogram,
    "mixture of categoricals": mixture,
    "linear autoregressive": autoregressive,
}

"""Small distributions over tokens with their exact conditionals as networks, and expectations over
all z. For tests; `oracles/discrete.json` holds numbers."""

import itertools
import json
import math
from pathlib import Path

import torch

from vdiff.discrete import Masked

ROWS = 20_000  # at once
NUMBERS = json.loads((Path(__file__).parent / "oracles" / "discrete.json").read_text())


class Conditionals:
    """log p(x_i | z), or with `leave_one_out` log p(x_i | z_{−i}), of a distribution over the rows
    of x. `marginal` is q(z_i | x_i) = α [z_i = x_i] + (1 − α) π(z_i), written anew."""

    def __init__(self, log_p, x, process, leave_one_out=False):
        self.log_p, self.x, self.process = log_p, x, process
        self.leave_one_out = leave_one_out
        self.last = None

    def marginal(self, z, logsnr):
        """q(z_i | x_i), (batch, rows, length)."""
        alpha = logsnr.double().sigmoid().view(-1, 1)
        pi = self.process.pi(logsnr.double())[:, None].expand(*z.shape, -1)
        drawn = (1 - alpha) * pi.gather(-1, z[..., None])[..., 0]
        return alpha[:, None] * (z[:, None] == self.x) + drawn[:, None]

    def __call__(self, z, logsnr=None):
        if logsnr is None:  # of masks it is the same at every λ
            if self.last is None or not torch.equal(self.last[0], z):
                self.last = z, self.at(z, torch.zeros(len(z)))
            return self.last[1]
        return self.at(z, logsnr)

    def at(self, z, logsnr):
        """The log-probabilities at λ."""
        log_q = self.marginal(z, logsnr).log()
        joint = (self.log_p + log_q.sum(2))[..., None].expand_as(log_q)
        if self.leave_one_out:
            rest = [log_q[..., [j for j in range(z.shape[1]) if j != i]].sum(2) for i in
                    range(z.shape[1])]  # fmt: skip
            joint = self.log_p[:, None] + torch.stack(rest, -1)
        values = torch.arange(self.process.vocabulary)
        of_value = (self.x[..., None] == values)[None]  # 1, rows, length, vocabulary
        logits = joint[..., None].masked_fill(~of_value, -torch.inf).logsumexp(1)
        return logits.log_softmax(-1)


def distribution(name):
    """(log p, all x) of a record's distribution."""
    records = NUMBERS[name]
    log_p = -torch.tensor([r["minus_log_p"] for r in records], dtype=torch.float64)
    return log_p, torch.tensor([r["x"] for r in records])


def pairs():
    """(log p, all x) of the distribution of two tokens in the records of hybrids."""
    weights = torch.tensor([6, 3, 11, 7, 1, 6, 8, 10, 1], dtype=torch.float64)
    x = torch.tensor(list(itertools.product(range(3), repeat=2)))
    return (weights / 53).log(), x


def every_z(process, x):
    """Every z for every x: (rows of x, z), each (n, length)."""
    length = x.shape[1]
    if isinstance(process, Masked):
        hidden = torch.tensor(list(itertools.product([False, True], repeat=length)))
        z = torch.where(hidden, process.mask, x[:, None])
    else:
        z = torch.tensor(list(itertools.product(range(process.states), repeat=length)))
        z = z.expand(len(x), -1, -1)
    rows = torch.arange(len(x))[:, None].expand(z.shape[:2])
    return rows.flatten(), z.flatten(0, 1)


def probability(process, z, x, logsnr):
    """q(z | x), (n,), written anew."""
    alpha = logsnr.sigmoid()[:, None]
    pi = process.pi(logsnr)[:, None].expand(*z.shape, -1).gather(-1, z[..., None])[..., 0]
    return (alpha * (z == x) + (1 - alpha) * pi).prod(1)


def expected_loss(model, x, schedule, t, weights, weighting=None, steps=None):
    """Σ_t weight E_z of the loss, for every row of x, through `TokenPrediction.loss`."""
    process = model.process
    rows, z = every_z(process, x)
    total = torch.zeros(len(x), dtype=torch.float64)
    at_once = max(1, ROWS // len(z))
    for times, each in zip(t.split(at_once), weights.double().split(at_once), strict=True):
        of, zs = rows.repeat(len(times)), z.repeat(len(times), 1)
        at = schedule.at(times.repeat_interleave(len(z)), steps)
        w = 1.0 if weighting is None else weighting(at.logsnr)
        loss = model(zs, at.logsnr).loss(x[of], None, at, w)
        mean = loss * probability(process, zs, x[of], at.logsnr)
        total = total.index_add(0, of, each.repeat_interleave(len(z)) * mean)
    return total


def gauss(n, low=0.0, high=1.0):
    """Nodes and weights of Gauss–Legendre."""
    import numpy as np

    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(n))
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


def double_exponential(low=0.0, high=1.0, n=80, reach=3.3):
    """Nodes and weights on [low, high] that are dense at both ends."""
    u = torch.linspace(-reach, reach, 2 * n + 1, dtype=torch.float64)
    inner = torch.pi / 2 * torch.sinh(u)
    weights = torch.pi / 2 * torch.cosh(u) / torch.cosh(inner).square() * (reach / n) / 2
    return low + (high - low) * (2 * inner).sigmoid(), (high - low) * weights


class Chain:
    """The symmetric binary Markov chain that keeps its token with probability `keep`, a network:
    log p(x_i | z_{−i}) by forward and backward sums, of any process, and of masks at any λ."""

    def __init__(self, process, keep=0.9):
        self.process = process
        self.moves = torch.tensor([[keep, 1 - keep], [1 - keep, keep]], dtype=torch.float64)

    def __call__(self, z, logsnr=None):
        level = torch.zeros(len(z)) if logsnr is None else logsnr
        alpha = level.double().sigmoid().view(len(z), -1, 1)
        pi = self.process.pi(level.double()).view(len(z), -1, self.process.states)
        pi = pi.expand(*z.shape, -1).gather(-1, z[..., None])
        likelihood = alpha * (z[..., None] == torch.arange(2)) + (1 - alpha) * pi
        likelihood = likelihood / likelihood.sum(-1, keepdim=True)
        before, after = torch.ones_like(likelihood), torch.ones_like(likelihood)
        for i in range(1, z.shape[1]):
            into = (before[:, i - 1] * likelihood[:, i - 1]) @ self.moves
            before[:, i] = into / into.sum(-1, keepdim=True)
            back = (after[:, -i] * likelihood[:, -i]) @ self.moves
            after[:, -i - 1] = back / back.sum(-1, keepdim=True)
        return (before * after).log().log_softmax(-1)

    def log_prob(self, x):
        """log p(x), nats."""
        logs = self.moves.log()[x[:, :-1], x[:, 1:]]
        return math.log(0.5) + logs.sum(1)

"""The training of examples/text.py: windows of tokens, the two losses and one loop for both."""

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from byte_pairs import BytePairs
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import vdiff
from vdiff.data import Text
from vdiff.discrete import AnyOrder, TokenDenoiser
from vdiff.nn import Transformer
from vdiff.schedule import LogLinear
from vdiff.terminal import say
from vdiff.times import generator_of

SCHEDULE = LogLinear()
WARMUP, CHECKS = 0.05, 10  # the share of training in which lr rises; selections of weights
ROWS = 64  # windows at once on the selection
FIRST, GROWS = 0.4, 0.6  # the largest share of masks at first; how long it grows
DRAWS = 4  # of the masks of each window there
Loss = Callable[..., Tensor]  # of tokens, what is absent, a generator, the share of training


@dataclass(frozen=True)
class Windows:
    """Documents as windows of tokens, (n, length), and where they are padded. `content` are their
    bytes."""

    tokens: Tensor
    absent: Tensor
    content: list[bytes]

    @classmethod
    def of(cls, part: Text, pairs: BytePairs, length: int) -> "Windows":
        rows = [
            torch.from_numpy(pairs.encode(document)).split(length)
            for document in part.documents.values()
        ]
        every = [row for document in rows for row in document]
        absent = torch.stack([torch.arange(length) >= len(row) for row in every])
        tokens = torch.stack([F.pad(row, (0, length - len(row))) for row in every])
        return cls(tokens, absent, [pairs.decode(row.tolist()) for row in every])

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.tokens[rows], self.absent[rows], self.content[rows])

    @property
    def symbols(self) -> list[NDArray[np.int64]]:
        """The tokens of each window, without padding."""
        rows = zip(self.tokens, ~self.absent, strict=True)
        return [tokens[real].numpy() for tokens, real in rows]

    @property
    def bytes(self) -> Tensor:
        """How many bytes each window has."""
        return torch.tensor([len(content) for content in self.content])


def masked_loss(network: Transformer) -> Loss:
    """The bound of each window, nats: the schedule's ends add less than 1e-4.

    In training the share of masks grows first, over `GROWS` of it, with the same weight for every
    masked token: tokens beside which little is masked are learned from soonest. Then it is the
    bound.
    """
    process = AnyOrder(network.vocabulary)
    # a model knows the range of its training: the bound has one of its own
    few, every = TokenDenoiser(network, process), TokenDenoiser(network, process)

    def loss(
        x: Tensor, absent: Tensor | None, generator: torch.Generator, done: float = 1.0
    ) -> Tensor:
        most = FIRST + (1 - FIRST) * done / GROWS  # masks at t = 1
        masks: dict[str, Any] = {"absent": absent, "generator": generator}
        if done >= GROWS:
            return vdiff.weighted_elbo(every, x, schedule=SCHEDULE, **masks)
        schedule = LogLinear(logsnr_min=math.log(1 / most - 1))
        return vdiff.weighted_elbo(few, x, schedule=schedule, weighting=per_token, **masks)

    return loss


def per_token(logsnr: Tensor) -> Tensor:
    """1 − α: the weight by which the loss is the sum over masked tokens, up to a constant."""
    return torch.sigmoid(-logsnr)


def autoregressive_loss(network: Transformer) -> Loss:
    """−log p of each window, nats."""

    def loss(
        x: Tensor, absent: Tensor | None, generator: torch.Generator, done: float = 1.0
    ) -> Tensor:
        logits = network(shifted(x, network))
        nats = F.cross_entropy(logits.float().transpose(1, 2), x, reduction="none")
        return (nats if absent is None else nats.masked_fill(absent, 0.0)).sum(1)

    return loss


def shifted(x: Tensor, network: Transformer) -> Tensor:
    """What an autoregressive network sees of tokens: before the first, the mask's state."""
    return F.pad(x[:, :-1], (1, 0), value=network.vocabulary)


@torch.no_grad()
def nats(loss: Loss, windows: Windows, draws: int = 1) -> Tensor:
    """The loss of each window, nats: the mean of some draws, which are the same at every call."""
    parts = list(zip(windows.tokens.split(ROWS), windows.absent.split(ROWS), strict=True))
    every = [
        torch.cat(
            [loss(*rows, generator_of(draw, i, "selection")) for i, rows in enumerate(parts)]
        )
        for draw in range(draws)
    ]
    return torch.stack(every).double().mean(0)


def fit(
    name: str, network: Transformer, loss: Loss, train: Tensor, selection: Windows,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Train on random windows of tokens (n,), keep the weights that have the fewest bits on the
    selection, and calibrate them."""
    optimizers = _optimizers(network, options.lr)
    generator = generator_of(options.seed, 0, "windows")
    rows, best, checked = train.unfold(0, network.length, 1), (math.inf, {}), 0
    low_precision = torch.autocast("cpu", torch.bfloat16, enabled=options.bf16)
    start, step, done = time.perf_counter(), 0, 0.0
    while done < 1:
        lr = options.lr * min((done + 1e-3) / WARMUP, (1 + math.cos(math.pi * done)) / 2)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        x = rows[torch.randint(len(rows), (options.batch,), generator=generator)]
        with low_precision, sdpa_kernel(SDPBackend.MATH):  # fused, it is slower in short windows
            value = loss(x, None, generator, done).mean() / network.length
        network.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        seconds = time.perf_counter() - start
        done = step / options.steps if options.steps else seconds / (60 * options.minutes)
        if int(done * CHECKS) > checked:
            checked = int(done * CHECKS)
            network.eval()
            bits = nats(loss, selection, 1 if network.causal else DRAWS).sum() / math.log(2)
            network.train()
            bits = (bits / selection.bytes.sum()).item()
            say(f"{name}: step {step:,}, {seconds:.0f} s, {bits:.4f} bits/byte on the selection")
            best = min(best, (bits, copy.deepcopy(network.state_dict())), key=lambda pair: pair[0])
    network.load_state_dict(best[1])
    network.eval()
    say(f"{name}: temperature {calibrate(network, loss, selection):.2f}")


def calibrate(network: Transformer, loss: Loss, selection: Windows) -> float:
    """Divide the logits by the temperature with the fewest bits on the selection, and return it: a
    network that has seen its few texts often is too sure."""
    last = copy.deepcopy(network.last)

    def bits(temperature: float) -> float:
        for parameter, found in zip(network.last.parameters(), last.parameters(), strict=True):
            parameter.data = found.data / temperature
        return nats(loss, selection, 1 if network.causal else DRAWS).sum().item()

    best = minimize_scalar(bits, bounds=(0.7, 2.0), method="bounded", options={"xatol": 0.01}).x
    bits(best)
    return float(best)


def _optimizers(network: Transformer, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, and AdamW for all else, with steps of the same size
    (Jordan et al., 2024; Liu et al., arXiv:2502.16982). Weight decay is for matrices alone."""
    hidden = [p for p in network.blocks.parameters() if p.ndim == 2]
    within = set(hidden)
    others = [p for p in network.parameters() if p not in within]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(hidden, lr, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr, betas=(0.9, 0.98)),
    ]


@torch.no_grad()
def written(network: Transformer, count: int, generator: torch.Generator) -> Tensor:
    """Windows of tokens that a network draws, one token at each step: in a random order, or the
    autoregressive one from left to right."""
    mask, rows = network.vocabulary, torch.arange(count)
    z = torch.full((count, network.length), mask)
    if network.causal:
        z = torch.cat([z[:, :1], z], 1)  # the mask's state before the first token
    for step in range(network.length):
        if network.causal:
            place, logits = torch.full((count,), step + 1), network(z[:, : step + 1])[:, -1]
        else:
            order = torch.rand(z.shape, generator=generator)
            place = order.masked_fill(z != mask, -1.0).argmax(1)
            logits = network(z)[rows, place]
        z[rows, place] = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
    return z[:, -network.length :]

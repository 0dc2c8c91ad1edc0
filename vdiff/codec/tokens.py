"""Tokens onto a stack of bits and off it again: masked diffusion as an any-order code.

Noise that both sides know says in which step of the chain each token loses its mask. The decoder
begins with masks. In the step from λ_t to λ_s it pops the tokens that lose their masks there, each
under p(x_i | z_t); z_s has them too. Nothing is popped by the encoder: there is no bits-back. Over
the noise, the expected length is the bound of the chain, its prior and its reconstruction: a token
that has no mask at λ_min, or still has one at λ_max, is coded uniformly.

In any order each step codes one token of an example, and the expected length is the bound in
continuous time of a network that gets no time.

Hoogeboom et al., Autoregressive Diffusion Models, arXiv:2110.02037, section 3.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdiff._validate import require
from vdiff.codec.code import Code, Rows, Tick
from vdiff.codec.latents import LEAST
from vdiff.codec.stack import TABLE, Floats, Integers, Stack
from vdiff.likelihood.digest import digest
from vdiff.schedule import Schedule

BLOCK = 256  # values of a token that share a symbol
NOTHING = 2.0**-60  # in place of a probability 0, which may be pushed all the same
START = 96.0  # bits on a stack: its last two words are a number, and not symbols


class MaskCode(Code):
    """The code of tokens under a process with masks.

    Args:
        logsnr: λ_0 … λ_T of the chain, or None: any order, one token in each of `dims` steps.
        seed: of the noise that masks tokens.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        process: Any,
        logsnr: Tensor | None,
        dims: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.process, self.unit = model, process, process.unit
        self.kind = "any order" if logsnr is None else "masks"
        self.logsnr = _any_order(dims) if logsnr is None else logsnr
        self.steps, self.seed, self.device = len(self.logsnr) - 1, seed, device
        self.cost = LEAST * sum(_alphabets(process.values))

    @classmethod
    def of_chain(
        cls,
        model: Callable[..., Any],
        process: Any,
        schedule: Schedule,
        steps: int,
        seed: int,
        device: torch.device,
    ) -> "MaskCode":
        """The code of a chain of T steps."""
        t = torch.arange(steps + 1, dtype=torch.float64, device=device) / steps
        return cls(model, process, schedule(t).cpu(), 0, seed, device)

    def identity(self) -> dict[str, str]:
        chain = f"{self.kind} {self.seed} ".encode() + self.logsnr.numpy().tobytes()
        return {"chain": digest(chain), "process": repr(self.process)}

    def needed(self, images: int, dims: int) -> float:
        return START

    def more(self, dims: int) -> float:
        return START

    def push(self, stack: Stack, data: Tensor, rows: Rows, tick: Tick) -> Floats:
        x, step = data.long().cpu(), self.step_of(rows)
        values, ratio = self._values(x.numpy().ravel()), np.zeros(step.size)
        for j in range(self.steps + 2):
            index = np.flatnonzero(step == j)
            hidden = torch.from_numpy(step <= j).view(x.shape)
            log_probs = self._log_probs(j, x.masked_fill(hidden, self.process.mask), index, rows)
            for part in reversed(_chunks(index, self.process.values)):
                log_p = log_probs(part)
                own = values[part]
                _push(stack, own, np.exp(log_p))
                ratio[part] = -log_p[np.arange(len(part)), own]
            if 1 <= j <= self.steps:
                tick()
        of_examples: Floats = ratio.reshape(len(data), -1).sum(1)
        return of_examples

    def pop(self, stack: Stack, rows: Rows, tick: Tick) -> Tensor:
        step = self.step_of(rows)
        z = torch.full(rows.shape, self.process.mask)
        flat = z.view(-1)
        for j in reversed(range(self.steps + 2)):
            index = np.flatnonzero(step == j)
            log_probs = self._log_probs(j, z.clone(), index, rows)  # a network may keep its z
            for part in _chunks(index, self.process.values):
                values = _pop(stack, np.exp(log_probs(part)))
                flat[torch.from_numpy(part)] = torch.from_numpy(self._tokens(values))
            if 1 <= j <= self.steps:
                tick()
        return z

    def step_of(self, rows: Rows) -> Integers:
        """In which step a token loses its mask, (batch · dims,): it is hidden at level j where
        this is at most j. 0 is a mask that is left at λ_0, T + 1 a token that has none at λ_T."""
        count, dims = rows.shape[0], math.prod(rows.shape[1:])
        noise = np.stack([_uniform(self.seed, rows.first + i, dims) for i in range(count)])
        if self.kind == "any order":
            return 1 + noise.argsort(1, kind="stable").argsort(1, kind="stable").ravel()
        hidden = torch.sigmoid(-self.logsnr).numpy()  # the probability of a mask at each level
        return np.searchsorted(hidden, noise.ravel(), side="right")

    def _log_probs(
        self, j: int, z: Tensor, index: Integers, rows: Rows
    ) -> Callable[[Integers], Floats]:
        """log p(x_i | z) over the values of tokens, in float64: a function of their numbers. The
        model is called only where there are any."""
        count = self.process.values
        if not len(index) or not 1 <= j <= self.steps:
            return lambda part: np.full((len(part), count), -math.log(count))
        level = self.logsnr[j].expand(len(z)).to(self.device)
        prediction = self.model(z.to(self.device), level, **rows.condition)
        got = f"NaN or infinity at λ = {self.logsnr[j]:.4g}"
        require(prediction.finite, "model", "be finite", got)
        logits = prediction.logits.cpu().flatten(0, -2)

        def of_part(part: Integers) -> Floats:
            every = logits[torch.from_numpy(part)].double().log_softmax(-1).numpy()
            mask = self.process.mask
            real: Floats = np.delete(every, mask, 1) if mask < every.shape[1] else every
            return real

        return of_part

    def _values(self, tokens: Integers) -> Integers:
        """Tokens numbered without the mask."""
        values: Integers = tokens - (tokens > self.process.mask)
        return values

    def _tokens(self, values: Integers) -> Integers:
        tokens: Integers = values + (values >= self.process.mask)
        return tokens


def _any_order(dims: int) -> Tensor:
    """λ at which k = 0 … n of n tokens have a mask. It is finite, and no network gets it."""
    share = (torch.arange(dims + 1, dtype=torch.float64) - 0.5).clamp(min=0.25) / dims
    return torch.log1p(-share) - share.log()


def _uniform(seed: int, example: int, dims: int) -> Floats:
    """The noise of an example, U(0, 1), (dims,): the same in every batch."""
    raw = np.random.Philox(key=(seed << 64) + example).random_raw(dims)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _chunks(index: Integers, values: int) -> list[Integers]:
    """Numbers of tokens whose probabilities are computed at a time."""
    size = max(1, TABLE // values)
    return [index[first : first + size] for first in range(0, len(index), size)]


def _alphabets(values: int) -> Iterator[int]:
    """The symbols of a token: its block, and its place there."""
    if values > BLOCK:
        yield -(-values // BLOCK)
    yield min(values, BLOCK)


def _blocks(probabilities: Floats) -> tuple[Floats, Floats]:
    """The probabilities of blocks, (n, blocks), and of values within them, (n, blocks, BLOCK).

    The coder gives each symbol of an alphabet at least the probability 2⁻²⁴: one alphabet of
    50,000 would cost 0.004 bits at every token.
    """
    short = -probabilities.shape[1] % BLOCK
    each = np.pad(probabilities, ((0, 0), (0, short))) + NOTHING
    each = each.reshape(len(each), -1, BLOCK)
    of_block = each.sum(2)
    return of_block, each / of_block[..., None]


def _push(stack: Stack, values: Integers, probabilities: Floats) -> None:
    """Push a value under each row of (n, values) probabilities."""
    count = probabilities.shape[1]
    if count <= BLOCK:
        if count > 1:
            stack.push_levels(values, probabilities + NOTHING)
        return
    of_block, within = _blocks(probabilities)
    block, place = np.divmod(values, BLOCK)
    stack.push_levels(place, within[np.arange(len(values)), block])
    stack.push_levels(block, of_block)


def _pop(stack: Stack, probabilities: Floats) -> NDArray[np.int64]:
    """Pop a value under each row of (n, values) probabilities."""
    count = probabilities.shape[1]
    if count <= BLOCK:
        if count == 1:
            return np.zeros(len(probabilities), np.int64)
        return stack.pop_levels(probabilities + NOTHING)
    of_block, within = _blocks(probabilities)
    block = stack.pop_levels(of_block)
    return BLOCK * block + stack.pop_levels(within[np.arange(len(block)), block])

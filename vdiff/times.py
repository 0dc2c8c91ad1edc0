"""The times t of a batch: stratified, on one grid over batch, ranks and accumulation steps."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import at_least_float32, float64_for
from vdiff._validate import Count, require, unchecked, validated
from vdiff.errors import InvalidType, shown

Draw = Callable[[Tensor, list[torch.Generator]], Tensor]
GOLDEN = 0.6180339887498949


def share_of_grid(index: int, count: int, offset: float | Tensor | None) -> None:
    """Rule: the share exists, and several shares have one offset."""
    require(0 <= index < count, "index", f"lie in [0, count) = [0, {count})", index)
    hint = "shares with offsets of their own make no grid: use offset_of(seed, step)"
    same = count == 1 or offset is not None
    require(same, "offset", "be given where a grid has several shares", None, hint)


@validated(rules=[share_of_grid])
def stratified(
    batch: Count,
    *,
    offset: float | Tensor | None = None,
    index: int = 0,
    count: Count = 1,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, " batch"]:
    """Times (u + i/n) mod 1, one in each of n equal strata, with one shared offset u ~ U(0, 1).

    Each time is uniform on [0, 1), so the loss of every example is unbiased, also in a batch of
    fixed order, and the variance between strata is gone (VDM, arXiv:2107.00630, appendix on the
    low-discrepancy sampler). With `count` shares (ranks times accumulation steps) the grid has n =
    batch·count strata, and share `index` takes every `count`-th. All shares need the same
    `offset`, for instance `offset_of(seed, step)`. `stratified(K * batch, …).view(K, batch)` gives
    each example K times.

    >>> stratified(4, offset=0.5)
    tensor([0.5000, 0.7500, 0.0000, 0.2500], dtype=torch.float64)
    >>> stratified(2, offset=0.5, index=1, count=2)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if offset is None:
        offset = torch.rand((), generator=generator, device=device, dtype=torch.float32)
    dtype = float64_for(torch.device(device or "cpu"))
    strata = torch.arange(index, batch * count, count, dtype=dtype, device=device)
    return (strata / (batch * count) + offset) % 1.0


def offset_of(seed: int, step: int) -> float:
    """The offset of the grid of one training step, a function of (seed, step), of low discrepancy
    over steps.

    Shuffle the data in every pass: in a fixed order with a Fibonacci number of batches, such as
    144, the time of an example changes by only 0.003 from one pass to the next. A random offset
    has no such period.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((), generator=generator, dtype=torch.float64).item()
    return (start + step * GOLDEN) % 1.0


def generator_of(
    seed: int, step: int, slot: int | str = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator that is a pure function of (seed, step, slot), so that a run resumes anywhere
    with the same noise. The slot, a number or a name, separates the draws of one step.
    """
    digest = hashlib.blake2b(f"{seed} {step} {slot}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


@validated
def draws_of_step(
    x: Tensor,
    *,
    seed: int,
    step: int,
    index: int = 0,
    count: Count = 1,
    independent: Sequence[int] = (),
    noise: Draw | None = None,
) -> tuple[Tensor, Tensor]:
    """The times and the noise of one share of a training step, for a loop of your own.

    They are a pure function of (seed, step, slot), so a run resumes with the same draws, and so
    does one on another number of ranks. Share `index` of `count` (ranks times micro-batches) has
    the slots index, index + count, …: give it the examples of these slots.

    Args:
        x: (batch, …) the examples of this share. Only shape, dtype and device are read; the noise
            of whole numbers is in the default dtype.
        independent: dimensions of x whose indices have times of their own, as in `independent`.
        noise: draws the noise of x from a generator for each example, such as that of tokens,
            `lambda x, generators: process.noise(x, None, generators)`.

    Returns:
        u, (batch,) uniform numbers on one stratified grid of all shares, for `Objective(…)(x, u=u,
        eps=eps)` or as `t` of `weighted_elbo`; with `independent` a field of them. And eps,
        N(0, I) of the shape of x, or what `noise` draws.

    >>> u, eps = draws_of_step(torch.zeros(2, 3), seed=0, step=7, index=1, count=2)
    >>> whole_u, whole_eps = draws_of_step(torch.zeros(4, 3), seed=0, step=7)
    >>> torch.equal(u, whole_u[1::2]), torch.equal(eps, whole_eps[1::2])
    (True, True)
    """
    if independent:
        shape, generator = (len(x) * count, *x.shape[1:]), generator_of(seed, step, "times")
        u = _latin(shape, independent, generator, torch.device("cpu"))[index::count]
        u = u.to(float64_for(x.device)).to(x.device, non_blocking=True)
    else:
        u = unchecked(stratified)(
            len(x), offset=offset_of(seed, step), index=index, count=count, device=x.device
        )
    slots = range(index, len(x) * count, count)
    if noise is not None:
        return u, noise(x, [generator_of(seed, step, slot, x.device) for slot in slots])
    dtype = x.dtype if x.is_floating_point() else at_least_float32(torch.get_default_dtype())
    eps = torch.empty(x.shape, dtype=dtype, device=x.device)
    for row, slot in zip(eps, slots, strict=True):
        row.normal_(generator=generator_of(seed, step, slot, x.device))
    return u, eps


def dims_of_x(x: Tensor, dims: Sequence[int]) -> None:
    """Rule: the dimensions are some of x, and none is the batch."""
    hint = "(1,) are the tokens of (batch, tokens, width)"
    listed = isinstance(dims, list | tuple) and all(type(dim) is int for dim in dims)
    if not listed:
        raise InvalidType("dims", "be a tuple of dimensions of x", shown(dims), hint)
    inside = len(dims) > 0 and all(-x.ndim < dim < x.ndim and dim != 0 for dim in dims)
    require(inside, "dims", f"be some of 1 … {x.ndim - 1}, the dimensions of x", dims, hint)


@validated(rules=[dims_of_x])
def independent(
    x: Tensor,
    dims: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A time for each index of some dimensions of x, independent of the others: a field, of x's
    size in the batch and in `dims`, and 1 elsewhere.

    At each index the times of the batch are stratified, as those of `stratified`, in a random
    order of their own. Each time is uniform on [0, 1), and independent of the times at other
    indices: the training density of Diffusion Forcing, arXiv:2407.01392.

    As `t` of `weighted_elbo` it makes a training loss. That loss is no bound: the times of an
    example lie on no one path from noise to data.

    Args:
        x: (batch, …). Only its shape and device are read.
        dims: of x, with the batch as dimension 0: (1,) for the tokens of (batch, tokens, width).

    Raises ValueError for dimensions that x lacks, and for the batch.

    >>> t = independent(torch.zeros(4, 3, 8), (1,), generator=torch.Generator().manual_seed(0))
    >>> t.shape, (4 * t).floor().sort(0).values.flatten(1).T.tolist()[0]
    (torch.Size([4, 3, 1]), [0.0, 1.0, 2.0, 3.0])
    """
    return _latin(x.shape, dims, generator, torch.device(device or x.device))


def _latin(
    shape: Sequence[int],
    dims: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """One time in each of `batch` strata at every index of `dims`, each in an order of its own."""
    own = {0, *(dim % len(shape) for dim in dims)}
    sizes = [size if dim in own else 1 for dim, size in enumerate(shape)]
    dtype = float64_for(device)
    order = torch.rand(sizes, generator=generator, device=device, dtype=dtype).argsort(0)
    offset = torch.rand([1, *sizes[1:]], generator=generator, device=device, dtype=dtype)
    return (order + offset) / shape[0]


def on_chain(u: Float[Tensor, "*shape"], steps: int) -> Float[Tensor, "*shape"]:
    """Uniform times moved to the ends t = i/T of their steps, i = ⌊u T⌋ + 1 = 1 … T.

    >>> on_chain(torch.tensor([0.0, 0.49, 0.5, 0.999]), 2)
    tensor([0.5000, 0.5000, 1.0000, 1.0000])
    """
    return (stratum_of(u, steps) + 1) / steps


def stratum_of(u: Float[Tensor, "*shape"], count: int) -> Float[Tensor, "*shape"]:
    """The stratum of each number among `count` equal strata of [0, 1]: ⌊u · count⌋.

    >>> stratum_of(torch.tensor([0.0, 0.49, 0.5, 1.0]), 2)
    tensor([0., 0., 1., 1.])
    """
    u = u.to(at_least_float32(u.dtype))
    rounding = 4 * torch.finfo(u.dtype).eps  # 49 · (1/49) is less than 1 in float64
    return torch.floor((u + rounding) * count).clamp(max=count - 1)


def grid(
    batch: int,
    draws: int,
    *,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "draws batch"]:
    """`draws` times for each example, t_ki = (u + k/draws + i/(n·draws)) mod 1: one in each of
    `draws` equal strata, and the whole batch on one grid. Each is uniform on [0, 1).

    With `steps` they are moved to the ends of a chain's steps; `draws` equal to `steps` gives
    every step once, in order.

    >>> grid(2, 3, steps=3)
    tensor([[0.3333, 0.3333],
            [0.6667, 0.6667],
            [1.0000, 1.0000]], dtype=torch.float64)
    """
    if draws == steps:
        dtype = float64_for(torch.device(device or "cpu"))
        ends = torch.arange(1, steps + 1, dtype=dtype, device=device) / steps
        return ends[:, None].expand(draws, batch)
    t = unchecked(stratified)(draws * batch, generator=generator, device=device).view(draws, batch)
    return t if steps is None else on_chain(t, steps)

"""Digests, by which protocols and saved states identify data, weights and settings."""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vdiff._arguments import original
from vdiff._precision import device_of, float64_for
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Schedule

TIMES, DIGITS = 257, 1e6  # of the grid of a schedule's λ, and per unit of λ: below is rounding


def digest(content: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def data_hash(data: Tensor) -> str:
    """The digest of dtype, shape and values.

    Whole numbers have the same hash in every dtype: that of uint8 if all fit into a byte, else
    that of int64.

    >>> data_hash(torch.tensor([[0, 1]])) == data_hash(torch.tensor([[0, 1]], dtype=torch.uint8))
    True
    """
    return hash_of_parts(lambda: [data], tuple(data.shape))


def hash_of_parts(parts: Callable[[], Iterable[Tensor]], shape: tuple[int, ...]) -> str:
    """`data_hash` of the parts of a tensor of this shape, put together along the first dimension.
    `parts` is called once, or twice for whole numbers that are no bytes.

    >>> data = torch.arange(6).view(3, 2)
    >>> hash_of_parts(lambda: data.split(2), (3, 2)) == data_hash(data)
    True
    """
    dtype = next(iter(parts())).dtype
    if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.uint8):
        fits = all(part.numel() == 0 or _is_bytes(part) for part in parts())
        dtype = torch.uint8 if fits else torch.int64
    content = hashlib.sha256(f"{dtype} {shape} ".encode())
    for part in parts():
        values = part.detach().cpu().to(dtype).contiguous().flatten().view(torch.uint8)
        content.update(values.numpy().data)
    return content.hexdigest()[:16]


def _is_bytes(values: Tensor) -> bool:
    values = values.detach().cpu().to(torch.int64)
    return bool(values.min() >= 0 and values.max() <= 255)


def state_key(*settings: object) -> Tensor:
    """A 63-bit hash of what a computation depends on. A saved state holds it.

    >>> bool(state_key("data", 0) == state_key("data", 1))
    False
    """
    content = hashlib.blake2b(f"{settings}".encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(content, "little") >> 1)


def distribution_digest(mixture: GaussianMixture) -> str:
    """The class of a distribution and a hash of its parameters.

    >>> from vdiff.oracle import Gaussian
    >>> distribution_digest(Gaussian([0.0], [1.0])) == distribution_digest(Gaussian([0.0], [2.0]))
    False
    """
    parameters = torch.cat([v.flatten().cpu() for v in mixture.buffers()])
    return f"{type(mixture).__name__} {data_hash(parameters)}"


def weights_digest(*models: object) -> list[str]:
    """A hash of all parameters and buffers of each model that is a module.

    >>> from vdiff.oracle import Gaussian
    >>> len(weights_digest(Gaussian([0.0], [1.0]), abs))
    1
    """
    hashes = []
    for model in map(original, models):
        if isinstance(model, nn.Module):
            tensors = [*model.named_parameters(), *model.named_buffers()]
            text = "".join(f"{name} {data_hash(value)} " for name, value in tensors)
            hashes.append(digest(text.encode()))
    return hashes


@torch.no_grad()
def schedule_digest(schedule: Schedule, ndim: int) -> str:
    """A hash of λ(t) on a grid of times for an x of `ndim` dimensions, and of what the schedule
    holds: of the latter alone where λ depends on the data.

    >>> from vdiff.schedule import Cosine, Linear
    >>> schedule_digest(Linear(9.0, -7.0), 2) == schedule_digest(Cosine(9.0, -7.0), 2)
    False
    """
    content = hashlib.sha256(f"{weights_digest(schedule)}".encode())
    device = device_of(schedule)
    times = torch.linspace(0, 1, TIMES, dtype=float64_for(device), device=device)
    for t in () if schedule.depends_on_data else torch.split(times, 32):
        levels = schedule.at(t, ndim=ndim).logsnr
        content.update(f"{data_hash((DIGITS * levels).round().to(torch.int64))}".encode())
    return content.hexdigest()[:16]

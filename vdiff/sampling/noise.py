"""The source of a sampler's noise: one generator for the batch, or one for each sample.

With a generator of its own, a sample's noise depends on the seed and the sample's number alone,
bit for bit: it is the same in a batch of one or of a thousand, on one device or eight. So is the
sample, up to rounding, which depends on the size of the batch; with `ode` and an adaptive method,
up to the solver's error, because the samples of a batch share its steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._diffusion import standard_normal
from vdiff._inputs import random
from vdiff._validate import Given, require, validated
from vdiff.times import generator_of

_NUMBERED = "per_sample_generators(seed, range(first, last)) has one for each sample"


def per_sample(generator: Any, argument: str, given: Given) -> object:
    """A generator on the device of z, or one for each sample; None is torch's own."""
    z = given["z"]
    if generator is None or not isinstance(generator, Sequence):
        return None if generator is None else random(generator, argument, {"x": z})
    for one in generator:
        random(one, argument, {"x": None})
    several = f"be one generator, or {len(z)}"
    require(len(generator) == len(z), argument, several, f"{len(generator)} of them", _NUMBERED)
    return generator


Generators = Annotated[torch.Generator | Sequence[torch.Generator] | None, per_sample]


@validated
def per_sample_generators(seed: int, samples: Iterable[int]) -> list[torch.Generator]:
    """A generator for each numbered sample, which depends on the seed and the number alone. All
    are on the CPU, for every device.

    >>> first, second = per_sample_generators(0, range(3)), per_sample_generators(0, [1])
    >>> torch.equal(torch.rand(2, generator=first[1]), torch.rand(2, generator=second[0]))
    True
    """
    return [generator_of(seed, 0, f"sample {i}") for i in samples]


@validated
def noise_like(
    z: Tensor, generator: Generators = None, draw: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Standard normal noise with the shape, dtype and device of z; with several generators, one
    for each sample. `draw=torch.rand` is uniform on [0, 1).

    >>> noise_like(torch.zeros(2, 3), per_sample_generators(0, range(2))).shape
    torch.Size([2, 3])
    """
    return standard_normal(z, generator, draw)


@validated
def start(
    shape: Sequence[int], generator: Sequence[torch.Generator], dtype: torch.dtype = torch.float32
) -> Tensor:
    """z ~ N(0, I) to start from, (len(generator), *shape), each sample from its own generator.

    >>> z = start((2,), per_sample_generators(0, range(5)))
    >>> torch.equal(z[3:], start((2,), per_sample_generators(0, [3, 4])))
    True
    """
    return noise_like(torch.empty((len(generator), *shape), dtype=dtype), generator)

"""Where a sampler's noise comes from: one generator for the batch, or one for each sample.

With a generator of its own, a sample's noise is a function of the seed and its number alone, to
the last bit: the same in a batch of one or of a thousand, and on one device or eight. So is the
sample, but for rounding, which depends on the size of the batch; and, by `ode` with an adaptive
method, but for the solver's error, for the samples of a batch share its steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from vdiff._validate import Given, random, require, validated
from vdiff.errors import InvalidType
from vdiff.loss import standard_normal
from vdiff.times import generator_of


def per_sample(generator: Any, argument: str, given: Given) -> object:
    """A generator on the device of z, or one for each sample; None is left to torch."""
    if generator is None:
        return None
    z = given["z"]
    if isinstance(generator, torch.Generator):
        return random(generator, argument, {"x": z})
    several = isinstance(generator, Sequence)
    for other in generator if several else [generator]:
        if not isinstance(other, torch.Generator):
            hint = "torch.Generator().manual_seed(seed), or per_sample_generators(seed, range(first, last))"
            what = "be a torch.Generator, or one for each sample"
            raise InvalidType(argument, what, repr(other), hint)
    hint = "one for each sample of this batch: per_sample_generators(seed, range(first, last))"
    one, came = f"be one generator, or {len(z)}", f"{len(generator)} of them"
    require(len(generator) == len(z), argument, one, came, hint)
    return generator


Generators = Annotated[torch.Generator | Sequence[torch.Generator] | None, per_sample]


@validated
def per_sample_generators(seed: int, samples: Iterable[int]) -> list[torch.Generator]:
    """A generator for each numbered sample, a pure function of the seed and the number; on the CPU
    for every device.

    >>> all_of_them, second = per_sample_generators(0, range(3)), per_sample_generators(0, [1])
    >>> torch.equal(torch.rand(2, generator=all_of_them[1]), torch.rand(2, generator=second[0]))
    True
    """
    if not isinstance(samples, Iterable):
        numbers, hint = "be the samples' numbers", "range(first, last)"
        raise InvalidType("samples", numbers, repr(samples), hint)
    return [generator_of(seed, 0, f"sample {i}") for i in samples]


@validated
def noise_like(
    z: Tensor, generator: Generators = None, draw: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Standard normal noise with the shape, dtype and device of z; of each sample's own generator
    where several are given.

    Raises ValueError unless there are as many generators as samples. `draw=torch.rand` is uniform
    on [0, 1).

    >>> noise_like(torch.zeros(2, 3), per_sample_generators(0, range(2))).shape
    torch.Size([2, 3])
    """
    return standard_normal(z, generator, draw)


@validated
def start(
    shape: Sequence[int], generator: Sequence[torch.Generator], dtype: torch.dtype = torch.float32
) -> Tensor:
    """z ~ N(0, I) to start from, (len(generator), *shape), each sample by its own generator.

    Raises TypeError for a single generator, which `torch.randn` takes.

    >>> torch.equal(start((2,), per_sample_generators(0, range(5)))[3:], start((2,), per_sample_generators(0, [3, 4])))
    True
    """
    if not isinstance(generator, Sequence):
        hint = "per_sample_generators(seed, range(first, last)); torch.randn takes one for the whole batch"
        raise InvalidType("generator", "be one for each sample", repr(generator), hint)
    return noise_like(torch.empty((len(generator), *shape), dtype=dtype), generator)


__all__ = ["Generators", "noise_like", "per_sample_generators", "start"]

"""Where a sampler's noise comes from: one generator for the batch, or one for each sample.

With a generator of its own, a sample's noise is a function of the seed and its number alone, to
the last bit: the same in a batch of one or of a thousand, and on one device or eight. So is the
sample, but for rounding, which depends on the size of the batch; and, by `ode` with an adaptive
method, but for the solver's error, for the samples of a batch share its steps.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vdiff.errors import check_generator, must, names_arrays
from vdiff.loss import Generators, standard_normal
from vdiff.times import generator_of


def streams(seed: int, samples: Iterable[int]) -> list[torch.Generator]:
    """A generator for each numbered sample, a pure function of the seed and the number; on the CPU
    for every device.

    >>> all_of_them, second = streams(0, range(3)), streams(0, [1])
    >>> torch.equal(torch.rand(2, generator=all_of_them[1]), torch.rand(2, generator=second[0]))
    True
    """
    if not isinstance(samples, Iterable):
        raise TypeError(
            must(
                "streams",
                "samples",
                "be the samples' numbers",
                repr(samples),
                "range(first, last)",
            )
        )
    return [generator_of(seed, 0, f"sample {i}") for i in samples]


@names_arrays
def noise_like(
    z: Tensor, generator: Generators = None, draw: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Standard normal noise with the shape, dtype and device of z; of each sample's own generator
    where several are given.

    Raises ValueError unless there are as many generators as samples. `draw=torch.rand` is uniform
    on [0, 1).

    >>> noise_like(torch.zeros(2, 3), streams(0, range(2))).shape
    torch.Size([2, 3])
    """
    check_generators("noise_like", generator, z)
    return standard_normal(z, generator, draw)


def check_generators(function: str, generator: object, z: Tensor) -> None:
    """Raise unless `generator` is None, one of the device of z, or as many as there are
    samples."""
    if isinstance(generator, torch.Generator):
        check_generator(function, generator, z)
    elif generator is not None:
        strangers = (
            [one for one in generator if not isinstance(one, torch.Generator)]
            if isinstance(generator, Sequence)
            else [generator]
        )
        if strangers or not isinstance(generator, Sequence):
            hint = "torch.Generator().manual_seed(seed), or streams(seed, range(first, last))"
            raise TypeError(
                must(
                    function,
                    "generator",
                    "be a torch.Generator, or one for each sample",
                    repr(strangers[0]),
                    hint,
                )
            )
        if len(generator) != len(z):
            hint = "one for each sample of this batch: streams(seed, range(first, last))"
            raise ValueError(
                must(
                    function,
                    "generator",
                    f"be one generator, or {len(z)}",
                    f"{len(generator)} of them",
                    hint,
                )
            )


def start(
    shape: Sequence[int], generator: Sequence[torch.Generator], dtype: torch.dtype = torch.float32
) -> Tensor:
    """z ~ N(0, I) to start from, (len(generator), *shape), each sample by its own generator.

    Raises TypeError for a single generator, which `torch.randn` takes.

    >>> torch.equal(start((2,), streams(0, range(5)))[3:], start((2,), streams(0, [3, 4])))
    True
    """
    if not isinstance(generator, Sequence):
        hint = "streams(seed, range(first, last)); one for the whole batch goes to torch.randn"
        raise TypeError(
            must("start", "generator", "be one for each sample", repr(generator), hint)
        )
    return noise_like(torch.empty((len(generator), *shape), dtype=dtype), generator)


__all__ = ["Generators", "noise_like", "start", "streams"]

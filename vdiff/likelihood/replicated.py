"""What the estimators of −log p share: independent replicates for each example, and how a run
computes them."""

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._precision import to_float64
from vdiff._validate import Given, Instance, Whole, require
from vdiff.gaussian import bits_per_dim
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.chunks import Run, State, run_in_chunks
from vdiff.likelihood.estimate import Estimate, mean_error, spread_error
from vdiff.likelihood.protocol import computation_protocol, data_protocol, model_protocol
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.times import generator_of

_SEVERAL = Whole(at_least=2, hint="one has no standard error")
Replicates = Annotated[int, _SEVERAL]


def _example_dims(distribution: Any, argument: str, given: Given) -> Any:
    """A distribution has the dimensions of an example of `x` or `data`: others would broadcast."""
    dims = given["x" if "x" in given else "data"][0].numel()
    own, hint = distribution.dims, "Gaussian.fit(data) of data like this"
    require(own == dims, argument, f"have the {dims} dimensions of an example", own, hint)
    return distribution


OfExamples = Annotated[GaussianMixture, Instance((GaussianMixture,)), _example_dims]
GaussianOfExamples = Annotated[Gaussian, Instance((Gaussian,)), _example_dims]


@dataclass(frozen=True)
class Replicated:
    """Independent estimates of −log p(x) of each example, nats: (replicates, batch) in float64.

    The standard errors are Monte Carlo errors on the given examples. That of one replicate is NaN,
    or zero for an `exact` estimate. `evaluations` counts calls of the model for each example, over
    all replicates. `dims` is the number of dimensions, or (batch,) numbers, where an example with
    0 counts nothing; the `estimate` is then a ratio of sums. `protocol` records what the number
    can be computed from again.

    >>> nats = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    >>> estimate = Replicated(nats, dims=2, evaluations=torch.tensor([8, 8]))
    >>> estimate.nats, estimate.standard_error
    (tensor([2., 4.]), tensor([1., 0.]))
    >>> estimate.mean, round(estimate.mean_error, 4)
    (3.0, 0.5)
    """

    replicates: Float[Tensor, "replicates batch"]
    dims: int | Tensor
    evaluations: Tensor
    exact: bool = False
    protocol: dict[str, object] = field(default_factory=dict, kw_only=True)

    __example__: ClassVar[str] = "of dequantized_ode, ode_likelihood, path_importance or immse"
    label: ClassVar[str] = ""  # printed behind the number

    @property
    def nats(self) -> Float[Tensor, " batch"]:
        """−log p of each example: the mean of its replicates."""
        return self.replicates.mean(0)

    @property
    def bits_per_dim(self) -> Float[Tensor, " batch"]:
        """The same in bits per dimension."""
        return bits_per_dim(self.nats, self.dims)

    @property
    def standard_error(self) -> Float[Tensor, " batch"]:
        """The standard error of `nats`, from the spread of an example's replicates."""
        if self.exact:
            return self.replicates.new_zeros(self.replicates.shape[1])
        if len(self.replicates) < 2:
            return self.replicates.new_full(self.replicates.shape[1:], math.nan)
        return self.replicates.std(0) / math.sqrt(len(self.replicates))

    @property
    def mean(self) -> float:
        """The mean over the examples, nats."""
        return self.nats.mean().item()

    @property
    def mean_error(self) -> float:
        """The Monte Carlo standard error of `mean`; examples are independent of each other."""
        return self.standard_error.square().sum().sqrt().item() / len(self.nats)

    @property
    def spread_error(self) -> float:
        """The standard error of `mean` over draws of the examples, `mean_error` included. NaN for
        one example."""
        n = len(self.nats)
        return self.nats.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan

    @property
    def estimate(self) -> Estimate:
        """The mean in bits per dimension, with both errors and their intervals."""
        dims = self.dims if isinstance(self.dims, Tensor) else None
        mean = self.dims if isinstance(self.dims, int) else to_float64(self.dims).mean().item()
        scale, n = 1 / (mean * math.log(2)), len(self.nats)
        error, freedom = self.mean_error, None
        if error > 0:
            count = len(self.replicates)
            freedom = mean_error(self.replicates.var(0), count, count)[1].item()
        n = n if dims is None else int((dims > 0).sum())
        spread = self.spread_error if dims is None else spread_error(self.nats, dims).item()
        over_images = spread * scale if n > 1 else None
        return Estimate(self.mean * scale, error * scale, over_images, freedom, n)

    def __str__(self) -> str:
        return "\n".join([f"{self.estimate} bits/dim{self.label}", *listed(self.protocol)])


def example_generators(
    seed: int, repetition: int, rows: Tensor, device: torch.device | str = "cpu", prefix: str = ""
) -> list[torch.Generator]:
    """A generator for each of the examples `rows`, a function of the seed, the repetition, the
    example's number and the name of what it draws.

    >>> len(example_generators(0, 1, torch.tensor([7, 8])))
    2
    """
    names = [f"{prefix}example {i}" for i in rows.tolist()]
    return [generator_of(seed, repetition, name, device) for name in names]


def run_replicates(
    work: Callable[[int, Tensor], State],
    data: Tensor,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    repetitions: int,
    model: object,
    dtype: torch.dtype,
    condition: Mapping[str, Any],
    settings: Mapping[str, object],
    record: Mapping[str, object] | None,
    run: Run,
    key: tuple[object, ...] = (),
) -> tuple[State, dict[str, object]]:
    """The results of `work(repetition, rows)` by name, (repetitions, examples, …) in float64 on
    the CPU, and the protocol of the estimate.

    `shapes` are those of one example's results. `key` holds what else a saved state depends on.
    """
    settings = {**settings, "seed": run.seed, **model_protocol(model), **(record or {})}
    state_key = run.key(data, condition, settings, model, *key)
    size: Any = {"repetitions": repetitions, "rows": len(data), "shapes": shapes}
    with evaluating(model, differentiable=run.differentiable):
        results = run_in_chunks(work, key=state_key, run=run, **size)
    computation = computation_protocol(dtype, data.device, [model], run.share)
    return results, {**data_protocol(data), **settings, **computation}


def listed(protocol: Mapping[str, object]) -> list[str]:
    """A protocol as lines of at most 80 columns, a fact each; none for an empty one.

    >>> print("\\n".join(listed({"draws": 8, "logsnr": [-7.0, 9.0], "budget": None})))
    protocol
      draws   8
      logsnr  [-7.0, 9.0]
    """
    facts = {word: as_text(value) for word, value in protocol.items() if value is not None}
    width = min(20, max(map(len, facts), default=0)) + 4
    lines = [f"  {word}".ljust(width) + text for word, text in facts.items()]
    return [*(["protocol"] if lines else []), *(within(line, width) for line in lines)]


def as_text(value: object) -> str:
    """A fact of a protocol, in few digits; a mapping without what is None."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value) or "none"
    if isinstance(value, Mapping):
        known = [f"{word} {as_text(v)}" for word, v in value.items() if v is not None]
        return ", ".join(known) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def within(line: str, indent: int) -> str:
    """A line in as many as fit into 80 columns."""
    more = " " * indent
    fill = textwrap.TextWrapper(
        80, subsequent_indent=more, break_on_hyphens=False, drop_whitespace=True
    )
    return line if len(line) <= 80 else fill.fill(line)

"""A bound on −log P of discrete data from a density, with noise u within the bins of the levels.

    −log P(k) ≤ E_{u ~ q}[ log q(u) − log p(x_k + u) ],   x_k + u in the bin of level k

for any q on the bin (Theis et al., arXiv:1511.01844; Ho et al., arXiv:1902.00275). Over K draws
the importance-weighted bound is tighter. The density at x_k itself is no probability: its −log can
be any number below zero.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, GaussianModel, finite_end
from vdiff._inputs import Batch
from vdiff._precision import to_float64
from vdiff._validate import Count, Instance, Number, Positive, require, validated
from vdiff.decoder import Levels, log_normal_interval
from vdiff.flow import Method, Unit
from vdiff.gaussian import sum_dims
from vdiff.likelihood._flow_rules import unclipped
from vdiff.likelihood._rules import MASKS, known_range
from vdiff.likelihood.chunks import Progress, Run, Share, State
from vdiff.likelihood.conditions import conditions_by_image
from vdiff.likelihood.flow_solver import FlowSolver
from vdiff.likelihood.importance import ImportanceBound
from vdiff.likelihood.ode import OF_THE_FLOW, costs, warn_of_tolerance
from vdiff.likelihood.replicated import OfExamples, Replicates, example_generators, run_replicates
from vdiff.likelihood.trace import Exact, Trace, default_trace
from vdiff.schedule import Schedule
from vdiff.times import generator_of

_ALONE = Share()
_CLEAN = "the clean end of the schedule, schedule.logsnr_max"
_HINT = "continuous data has a density as it is: ode_likelihood"
DiscreteDecoder = Annotated[Levels, Instance((Levels,), hint=_HINT)]


class Dequantization(ABC):
    """Noise u within the bins of a decoder's levels, with density q.

    The decoder has the encoding and the number of levels: `Categorical(17)` for the digits.

    >>> from vdiff.decoder import Categorical
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, log_q = Uniform(Categorical(2)).draw(torch.tensor([[0, 1]]), [generator])
    >>> x.sign(), log_q                                                  # bins of width 1
    (tensor([[-1.,  1.]]), tensor([0.], dtype=torch.float64))
    """

    __example__: ClassVar[str] = "Uniform(Categorical(levels))"

    @validated
    def __init__(self, decoder: DiscreteDecoder) -> None:
        self.decoder, self.half = decoder, 0.5 * decoder.spacing

    @abstractmethod
    def within(self, uniform: Tensor) -> Tensor:
        """u in (−half, half) from uniform numbers in (−1, 1)."""

    @abstractmethod
    def log_density(self, u: Tensor) -> Tensor:
        """log q(u) of each dimension, nats."""

    def draw(
        self, data: Tensor, generators: list[torch.Generator]
    ) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, " batch"]]:
        """x_k + u, in the decoder's dtype, and log q(u) summed over dimensions. Each example has
        its own generator."""
        encoded = self.decoder.encode(data)
        size: Any = {"size": data.shape[1:], "dtype": torch.float64}
        uniform = [torch.rand(**size, generator=g, device=g.device) for g in generators]
        u = self.within(2.0 * torch.stack(uniform).to(data.device) - 1.0)
        return (to_float64(encoded) + u).to(encoded.dtype), sum_dims(self.log_density(u))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.decoder!r})"


class Uniform(Dequantization):
    """u uniform over the bin: log q = −log(width) in each dimension.

    >>> from vdiff.decoder import Categorical
    >>> Uniform(Categorical(4)).log_density(torch.zeros(1))              # bins of width ½
    tensor([0.6931])
    """

    def within(self, uniform: Tensor) -> Tensor:
        return self.half * uniform

    def log_density(self, u: Tensor) -> Tensor:
        return torch.full_like(u, -math.log(2.0 * self.half))


class TruncatedNormal(Dequantization):
    """u ~ N(0, e^{−λ_max}) within the bin, the noise of the model's training data at λ_max.

        log q(u) = −½ e^{λ_max} u² − ½ (log 2π − λ_max) − log(Φ(τ) − Φ(−τ)),
        τ = ½ · spacing · e^{λ_max/2}

    (Zheng et al., arXiv:2305.03935). At small τ it is uniform.

    >>> from vdiff.decoder import Categorical
    >>> TruncatedNormal(Categorical(4), -20.0).log_density(torch.zeros(1))
    tensor([0.6931])
    """

    @validated
    def __init__(
        self, decoder: DiscreteDecoder, logsnr_max: Annotated[float, Number(hint=_CLEAN)]
    ) -> None:
        super().__init__(decoder)
        self.logsnr_max = logsnr_max
        self.std = math.exp(-0.5 * self.logsnr_max)
        self.reach = torch.tensor(self.half / self.std, dtype=torch.float64)

    def within(self, uniform: Tensor) -> Tensor:
        # Φ(−|u|/σ) runs from Φ(−τ) to ½, in the lower tail, where Φ has its digits; torch's ndtr
        # loses them, log_ndtr does not
        edge = torch.special.log_ndtr(-self.reach.to(uniform.device)).exp()
        half = torch.full_like(uniform, 0.5)
        lower = torch.lerp(edge.expand_as(uniform), half, 1.0 - uniform.abs())
        u: Tensor = -uniform.sign() * self.std * torch.special.ndtri(lower)
        return u.clamp(-self.half, self.half)

    def log_density(self, u: Tensor) -> Tensor:
        log_mass = log_normal_interval(-self.reach, self.reach).to(u)
        norm = math.log(self.std), 0.5 * math.log(2 * math.pi)
        return -0.5 * (u / self.std).square() - norm[0] - norm[1] - log_mass

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.decoder!r}, logsnr_max={self.logsnr_max:g})"


@dataclass(frozen=True, kw_only=True)
class DequantizedLikelihood(ImportanceBound):
    """A bound on −log P(data) of discrete data under the ODE's density.

    `change` is how much half the solver's tolerance moved the first draw of each example, nats;
    None without an audit.

    >>> DequantizedLikelihood.of(torch.ones(2, 1, 3), 1, torch.zeros(3), change=None).nats
    tensor([-1., -1., -1.])
    """

    change: Float[Tensor, " batch"] | None
    label = OF_THE_FLOW


def exact_trace(samples: int, trace: Trace | None, data: Tensor) -> None:
    """Rule: several samples need an exact trace."""
    hint = "exp of a random log p is too large on average: trace=Exact(), or samples=1"
    exact = isinstance(trace or default_trace(data[0].numel()), Exact)
    require(samples == 1 or exact, "samples", "be 1 with a random trace", samples, hint)


@validated(
    rules=[finite_end, conditions_by_image, unclipped, exact_trace, known_range],
    elsewhere=MASKS,
)
def dequantized_ode(
    model: GaussianModel,
    data: Batch,
    *,
    dequantization: Dequantization,
    schedule: Schedule,
    samples: Count = 1,
    replicates: Replicates = 2,
    prior: OfExamples | None = None,
    trace: Trace | None = None,
    tolerance: Positive = 1e-5,
    audit: bool = False,
    method: Method = "dopri5",
    unit: Unit = 0.5,
    max_evaluations: Count = 10_000,
    max_seconds: float | None = None,
    batch: Count = 256,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    condition: Condition = None,
) -> DequantizedLikelihood:
    """A bound on −log P(data) of discrete data under the density of the probability-flow ODE, nats
    per example.

    With `samples` = K > 1 it is importance-weighted, −log K included. This needs an exact trace. A
    random one is unbiased for log p, so that the mean of exp(log p) is too large and the number is
    no bound.

    Args:
        data: (n, …) integer levels.
        dequantization: `Uniform(decoder)` or `TruncatedNormal(decoder, schedule.logsnr_max)`.
        samples: K draws within the bins for one bound.
        replicates: independent bounds of each example, for its standard error; at least 2. Each
            has its own noise and probes.
        audit: also solve the first draw of each example with half the tolerance, and report the
            change.
        seed: of noise and probes. They are a function of it and the example's place.
        progress: called as progress(done, all) with numbers of draws of examples.
        model, schedule, prior, trace, tolerance, method, unit, max_evaluations, max_seconds,
            batch, share, resume, checkpoint, record, condition: as in `ode_likelihood`.

    Raises:
        SolverError: as `ode_likelihood`.
        TypeError, ValueError: for data that is not of the decoder's levels, and for K > 1 with a
            random trace.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> levels = Categorical(2)
    >>> oracle = Lattice(levels.level_values, [0.25, 0.75])
    >>> schedule = Linear(4.0, -10.0)
    >>> data, noise = torch.ones(4, 1).long(), TruncatedNormal(levels, 4.0)
    >>> bound = dequantized_ode(oracle, data, dequantization=noise, schedule=schedule)
    >>> bool((bound.nats > -torch.tensor(0.75).log()).all())
    True
    """
    with torch.no_grad():  # so that values are checked
        encoded = dequantization.decoder.encode(data)
    dims = encoded[0].numel()
    flow = FlowSolver(
        model, schedule, prior, trace or default_trace(dims), tolerance, method, unit,
        max_evaluations, max_seconds, condition or {}, len(data),
    )  # fmt: skip

    def work(draw: int, rows: Tensor) -> State:
        noise = example_generators(seed, draw, rows, data.device, "bin of ")
        x, log_q = dequantization.draw(data[rows], noise)
        solved = flow.solve(x, rows, _probe_seed(seed, draw), audit and draw == 0)
        kept = {name: solved[name] for name in ("evaluations", "change")}
        return kept | {"log_weight": -solved["nats"].mean(1) - log_q}

    settings = {"dequantization": repr(dequantization), "K": samples, "replicates": replicates}
    results, protocol = run_replicates(
        work, data, shapes=dict.fromkeys(("log_weight", "evaluations", "change"), ()),
        repetitions=replicates * samples, model=model, dtype=encoded.dtype,
        condition=flow.condition, settings={**flow.protocol(data.ndim), **settings}, record=record,
        run=Run(batch, seed, share, progress, checkpoint, resume), key=(audit, batch),
    )  # fmt: skip
    change = results["change"][0] if audit else None
    bound = DequantizedLikelihood.of(
        results["log_weight"].view(replicates, samples, -1),
        dims,
        results["evaluations"].sum(0).long(),
        change=change,
        protocol={**protocol, **costs(results["evaluations"], change, dims)},
    )
    warn_of_tolerance(bound, change)
    return bound


def _probe_seed(seed: int, draw: int) -> int:
    """A seed for each draw, a pure function of both."""
    return int(torch.randint(2**31, (), generator=generator_of(seed, draw, "probes")))

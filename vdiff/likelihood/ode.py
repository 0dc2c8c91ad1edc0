"""Exact likelihood along the probability-flow ODE: change of variables from data at λ_max to the
prior at λ_min.

With dz/dφ = v̂ (see `vdiff.flow`) the density obeys d log p/dφ = −div v̂, so that for z₀ = α₀ x

    log p(x) = log p(z₁) + ∫_{φ₀}^{φ₁} div v̂ dφ + d log α₀

It is a density of its own, that of z₀/α₀ when z₁ is drawn from the prior, and normalised whatever
the network says. The bound bounds another model, the reverse SDE: for an inexact denoiser the two
may differ in either direction.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, Model, finite_end
from vdiff._validate import Count, FiniteData, Positive, require, validated
from vdiff.errors import InvalidValue
from vdiff.flow import CONSTRAINTS
from vdiff.gaussian import bits_per_dim
from vdiff.likelihood.chunks import Progress, Run, Share, State, has_dims, run_in_chunks
from vdiff.likelihood.conditions import conditions_by_row
from vdiff.likelihood.flow_solver import FOUND, FlowSolver
from vdiff.likelihood.integrand import evaluating, known_levels
from vdiff.likelihood.protocol import computation_protocol, data_protocol, model_protocol
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.trace import Trace, default_trace
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Schedule

Method = Annotated[str, CONSTRAINTS["method"]]
Unit = Annotated[float, CONSTRAINTS["unit"]]
_ALONE = Share()
MOVED = 0.005  # bits/dim: what half the tolerance may change
OF_THE_FLOW = "; of the flow, another model than the bound's"


@dataclass(frozen=True, kw_only=True)
class OdeLikelihood(Replicated):
    """−log p of each example under the ODE's density, nats: one replicate, exact, or one for each
    of Hutchinson's probes.

    `noise` is z₁, (n, …). `change` is by how much halving the tolerance moved `nats`, None where
    that was not asked. `truncation` estimates log p(x) − log p_∞(x), to first order in e^{−λ_max}:
    what the noise left at λ_max does to a density that is smooth on its scale. It is for
    information: −log p is that of z₀/α₀, with nothing cut off. `evaluations` counts those of the
    model for the batch that an example was in.

    >>> zero = torch.zeros(1)
    >>> result = OdeLikelihood(zero[None], 1, zero, exact=True, noise=zero[None], truncation=zero, change=None)
    >>> result.standard_error
    tensor([0.])
    """

    noise: Tensor
    truncation: Float[Tensor, " batch"]
    change: Float[Tensor, " batch"] | None
    label = OF_THE_FLOW


def unclipped(model: Any) -> None:
    """A rule: the model's x̂ is not clipped."""
    for word, value in model_protocol(model).items():
        if word.startswith("x̂ clipped"):
            hint = "clipping changes the flow whose density this is"
            raise InvalidValue("model", "leave x̂ as it is", f"{word} {value}", hint)


def of_dims(prior: GaussianMixture | None, x: Tensor) -> None:
    """A rule: the prior has the dimensions of an example."""
    if prior is not None:
        has_dims(prior, x, "prior")


def in_one_process(
    differentiable: bool, share: Share, resume: State | None, checkpoint: object
) -> None:
    """A rule: what has a graph is neither shared, nor kept, nor resumed."""
    apart = share.count > 1 or resume is not None or checkpoint is not None
    graph = differentiable and torch.is_grad_enabled()
    what, came = (
        "be False where an estimate is shared, kept or resumed",
        "share, resume or checkpoint",
    )
    require(not (graph and apart), "differentiable", what, came, "a state on disk has no graph")


_RULES = (finite_end, conditions_by_row, unclipped, of_dims, known_levels)


@validated(rules=[*_RULES, in_one_process])
def ode_likelihood(
    model: Model,
    x: FiniteData,
    *,
    schedule: Schedule,
    prior: GaussianMixture | None = None,
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
    differentiable: bool = False,
    condition: Condition = None,
) -> OdeLikelihood:
    """−log p(x) under the density that the probability-flow ODE gives a model, nats per example.

    Every example is held to the tolerance by itself, so that its answer depends on its batch
    within the solver's error alone; probes are a function of the seed and its place. z and log p
    are accumulated in float64, the network runs in the dtype of x.

    Args:
        model: in evaluation mode meanwhile, TF32 off. It must be differentiable in z: that its
            gradient hides nothing is checked with 3 evaluations for each batch, up to 28 where
            kinks or half precision blur them (`vdiff.likelihood.gradient`). They count in
            `evaluations`.
        x: continuous data as the network sees it. Discrete data is dequantised first:
            `dequantized_ode`.
        schedule: its ends are where the ODE starts and stops; nothing else of it matters.
        prior: the law of clean data whose noisy density at λ_min stands for p(z₁), for instance
            `Gaussian.fit(training_data)`, whose moments match; N(0, I) where none is given.
        trace: `Exact()` or `Hutchinson()`; up to 16 dimensions the first.
        tolerance: of the solver, relative and absolute, for z and for log p in nats.
        audit: solve once more with half the tolerance, and say what changed.
        method, unit, max_evaluations, max_seconds: of the solver, for each batch, see
            `vdiff.flow.solve`.
        batch: how many examples are solved at once.
        seed: of the probes.
        progress: called as progress(done, all) with numbers of examples.
        share, resume, checkpoint, record: as in `evaluate`; a state is kept after every batch.
        differentiable: whether gradients of `replicates` and `nats` reach x, the model's
            parameters and the conditions. They go through every step of the solver and through the
            divergence, so that the network must be twice differentiable, and memory grows with the
            number of evaluations.
        condition: passed on to the model, by rows as in `evaluate`.

    Raises:
        SolverError: where the solver gives up, or the model is not finite: which example, which λ.
        ValueError: for data that is not finite, and a model that clips x̂, whose gradient misses
            part of it, or whose output has no digits left at an end of the schedule.

    Warns:
        UserWarning: where the output has few digits left there, and where the audit finds the
            tolerance too large.

    Song et al., arXiv:2011.13456, section 4.3; Grathwohl et al., arXiv:1810.01367.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> found = ode_likelihood(oracle, torch.zeros(1, 1), schedule=Linear(15.0, -15.0))
    >>> round(found.nats.item(), 4), round(-oracle.log_prob(torch.zeros(1, 1)).item(), 4)
    (0.2258, 0.2258)
    """
    differentiable = differentiable and torch.is_grad_enabled()
    trace, dims = trace or default_trace(x[0].numel()), x[0].numel()
    solver: dict[str, Any] = {"method": method, "unit": unit}
    solver |= {"max_evaluations": max_evaluations, "max_seconds": max_seconds}
    given = condition or {}
    flow = FlowSolver(
        model, schedule, prior, trace, tolerance, solver, given, len(x), differentiable
    )

    def piece(_: int, rows: Tensor) -> State:
        return flow.solved(x[rows], rows, seed, audit)

    said = {**flow.protocol(), "seed": seed, **(record or {})}
    run = Run(batch, seed, share, progress, checkpoint, resume, differentiable)
    key, shapes = run.key(x, given, said, model, audit, batch), flow.shapes(x)
    with evaluating(model, differentiable=differentiable):
        found = run_in_chunks(piece, shapes=shapes, repetitions=1, rows=len(x), key=key, run=run)
    nats, noise, count, truncation, change = (found[word][0] for word in FOUND)
    moved, computation = (
        change if audit else None,
        computation_protocol(x.dtype, x.device, [model], share),
    )
    estimate = OdeLikelihood(
        nats.T,
        dims,
        count.long(),
        trace.exact,
        noise=noise,
        truncation=truncation,
        change=moved,
        protocol={**data_protocol(x), **said, **costs(count, moved, dims), **computation},
    )
    warn_of_tolerance(estimate, moved)
    return estimate


@validated(rules=_RULES)
def log_prob(
    model: Model,
    x: FiniteData,
    *,
    schedule: Schedule,
    prior: GaussianMixture | None = None,
    trace: Trace | None = None,
    tolerance: Positive = 1e-5,
    method: Method = "dopri5",
    unit: Unit = 0.5,
    max_evaluations: Count = 10_000,
    max_seconds: float | None = None,
    seed: int = 0,
    condition: Condition = None,
) -> Float[Tensor, " n"]:
    """log p(x) under the density of the probability-flow ODE: nats per example, in float64.

    As with `torch.distributions`, gradients reach x, the model's parameters and the conditions,
    unless gradients are off (`torch.no_grad()`), which takes far less memory: the graph of every
    evaluation is kept, and the network must be twice differentiable. All examples are solved at
    once. For errors, batches and a protocol take `ode_likelihood`, whose `nats` are −log p.

    Args:
        x: continuous data as the network sees it.
        model, schedule, prior, trace, tolerance, method, unit, max_evaluations, max_seconds, seed,
            condition: as in `ode_likelihood`. The probes of a random trace are those of the seed:
            the same in each call.

    Raises:
        SolverError, TypeError, ValueError: as `ode_likelihood`.

    Song et al., arXiv:2011.13456, section 4.3.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> x = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> found = log_prob(oracle, x, schedule=Linear(15.0, -15.0))
    >>> round(found.item(), 3), round(torch.autograd.grad(found.sum(), x)[0].item(), 3)    # −x/¼
    (-0.726, -2.0)
    """
    solver: dict[str, Any] = {"method": method, "unit": unit}
    solver |= {"max_evaluations": max_evaluations, "max_seconds": max_seconds}
    differentiable, trace = torch.is_grad_enabled(), trace or default_trace(x[0].numel())
    given = condition or {}
    flow = FlowSolver(
        model, schedule, prior, trace, tolerance, solver, given, len(x), differentiable
    )
    with evaluating(model, differentiable=differentiable):
        return -flow.solved(x, torch.arange(len(x)), seed, audit=False)["nats"].mean(1)


def costs(evaluations: Tensor, change: Tensor | None, dims: int) -> dict[str, object]:
    """Of a solver: network evaluations, and in bits/dim by how much half the tolerance changes the
    mean, and one example at most.

    >>> costs(torch.tensor([100.0, 120.0]), None, dims=2)
    {'NFE': 110.0, 'most NFE': 120}
    """
    said: dict[str, object] = {"NFE": round(evaluations.mean().item(), 1)}
    said["most NFE"] = int(evaluations.max())
    if change is not None:
        moved = bits_per_dim(change, dims)
        said |= {
            "half the tolerance changes the mean": moved.mean().item(),
            "and one example at most": moved.abs().max().item(),
        }
    return said


def warn_of_tolerance(found: Replicated, change: Tensor | None) -> None:
    """Warn where half the tolerance moves the mean by more than its Monte Carlo error and by more
    than can be seen."""
    if change is None:
        return
    moved, error = abs(bits_per_dim(change.mean(), found.dims).item()), found.estimate.monte_carlo
    if moved > max(MOVED, 0.0 if math.isnan(error) else error):
        what = f"half the tolerance moves the mean by {moved:.2g} bits/dim"
        text = f"{what}, more than its Monte Carlo error of {error:.2g}: lower the tolerance"
        warnings.warn(text, stacklevel=4)


__all__ = ["OF_THE_FLOW", "OdeLikelihood", "costs", "log_prob", "ode_likelihood"]

"""Exact likelihood along the probability-flow ODE, by the change of variables from data at λ_max
to the prior at λ_min.

With dz/dφ = v̂ (see `vdiff.flow`) the density obeys d log p/dφ = −div v̂, so that for z₀ = α₀ x

    log p(x) = log p(z₁) + ∫_{φ₀}^{φ₁} div v̂ dφ + d log α₀

This is the density of z₀/α₀ when z₁ is drawn from the prior. It is normalised for any network.
The ELBO bounds another density, that of the reverse SDE. For an inexact denoiser either of the two
may be the larger.

With a mask the flow is of the modelled dimensions alone, beside the given ones, and the density is
p(x_modelled | x_given). Along a schedule over dimensions, Σ_i (dφ_i/dt) ∂v̂_i/∂z_i dt stands for
div v̂ dφ. An inexact denoiser has another density for each path, and for each mask one that need
not fit those of other masks.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import Condition, GaussianModel, dims_fit_x, finite_end, same_noise_for_all
from vdiff._inputs import Data, Mask
from vdiff._partial import Partial
from vdiff._validate import Count, Positive, validated
from vdiff.flow import Method, Unit
from vdiff.gaussian import bits_per_dim
from vdiff.likelihood._flow_rules import (
    finite_but_for_absent,
    in_one_process,
    one_flow,
    unclipped,
)
from vdiff.likelihood._models import evaluating
from vdiff.likelihood._rules import known_range, something_modelled
from vdiff.likelihood.chunks import Progress, Run, Share, State
from vdiff.likelihood.conditions import conditions_by_row
from vdiff.likelihood.flow_solver import RESULTS, FlowSolver
from vdiff.likelihood.replicated import OfExamples, Replicated, run_replicates
from vdiff.likelihood.trace import Trace, default_trace
from vdiff.schedule import Schedule

_ALONE = Share()
VISIBLE = 0.005  # bits/dim: half the tolerance may move the mean by so much without a warning
OF_THE_FLOW = "; of the flow, another model than the bound's"


@dataclass(frozen=True, kw_only=True)
class OdeLikelihood(Replicated):
    """−log p of each example under the ODE's density, nats: one exact replicate, or one for each
    of Hutchinson's probes.

    Attributes:
        noise: z₁, (n, …); 0 where nothing is modelled.
        truncation: log p(x) − log p_∞(x) to first order in e^{−λ_max}, the effect of the noise at
            λ_max on a density that is smooth on its scale. It is information alone: −log p is that
            of z₀/α₀ with nothing cut off. Given dimensions get λ_max too; that effect, of the
            same order, is not in it.
        change: how much half the tolerance moved `nats`; None without an audit.
        evaluations: calls of the model for the batch of each example.

    >>> zero = torch.zeros(1)
    >>> flow = {"noise": zero[None], "truncation": zero, "change": None}
    >>> OdeLikelihood(zero[None], 1, zero, exact=True, **flow).standard_error
    tensor([0.])
    """

    noise: Tensor
    truncation: Float[Tensor, " batch"]
    change: Float[Tensor, " batch"] | None
    label = OF_THE_FLOW


_RULES = (
    finite_end, conditions_by_row, unclipped, known_range, same_noise_for_all,
    finite_but_for_absent, one_flow, dims_fit_x,
)  # fmt: skip


@validated(rules=[*_RULES, in_one_process, something_modelled])
def ode_likelihood(
    model: GaussianModel,
    x: Data,
    *,
    schedule: Schedule,
    mask: Mask | None = None,
    absent: Mask | None = None,
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
    differentiable: bool = False,
    condition: Condition = None,
) -> OdeLikelihood:
    """−log p(x) under the density of the probability-flow ODE, nats per example.

    The solver holds every example to the tolerance, so that the rest of a batch changes an answer
    within the solver's error alone. The probes are a function of the seed and the example's place.
    z and log p are in float64, the network runs in the dtype of x.

    Args:
        model: runs in evaluation mode, without TF32. It must be differentiable in z. A check with
            3 evaluations for each batch finds parts hidden from autograd; kinks or half precision
            raise them to at most 28 (`vdiff.likelihood.gradient`). `evaluations` counts them.
        x: continuous data as the network gets it. For discrete data take `dequantized_ode`.
        schedule: the ODE runs between its ends; nothing else of it matters, unless it is one over
            dimensions, along whose path the ODE runs.
        mask: bool, True where x is modelled; it broadcasts over x, or over one example. The other
            dimensions are given: `nats` are −log p(x_modelled | x_given), and `dims` counts the
            modelled dimensions of each example. The model must take a field of λ.
        absent: bool, True where a value is missing or padded. The model sees noise there, and x
            is not read. `nats` are given this one noise, which the seed draws: another seed gives
            another number, and no standard error knows of it.
        prior: a law of clean data, whose noisy density at λ_min stands for p(z₁), for instance
            `Gaussian.fit(training_data)`. The default is p(z₁) = N(0, I).
        trace: `Exact()` or `Hutchinson()`. The default is exact up to 16 dimensions.
        tolerance: of the solver, relative and absolute, for z and for log p in nats.
        audit: also solve with half the tolerance, and report the change.
        method, unit, max_evaluations, max_seconds: of the solver, for each batch, as in
            `vdiff.flow.solve`.
        batch: how many examples are solved at once.
        seed: of the probes.
        progress: called as progress(done, all) with numbers of examples.
        share, resume, checkpoint, record: as in `evaluate`; a state is saved after every batch.
        differentiable: gradients of `replicates` and `nats` reach x, the model's parameters and
            the conditions, through every step of the solver and the divergence. The network must
            be twice differentiable, and memory grows with the number of evaluations.
        condition: passed on to the model, by rows as in `evaluate`.

    Raises:
        SolverError: if the solver gives up or the model is not finite, with the example and λ.
        ValueError: for data that is not finite, for a model that clips x̂, whose gradient misses
            part of it, or whose output has no digits left at an end of the schedule; and where
            nothing is modelled.

    Warns:
        UserWarning: if the output has few digits left there, or the audit finds the tolerance too
            large.

    Song et al., arXiv:2011.13456, section 4.3; Grathwohl et al., arXiv:1810.01367.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> likelihood = ode_likelihood(oracle, torch.zeros(1, 1), schedule=Linear(15.0, -15.0))
    >>> round(likelihood.nats.item(), 4), round(-oracle.log_prob(torch.zeros(1, 1)).item(), 4)
    (0.2258, 0.2258)
    """
    differentiable = differentiable and torch.is_grad_enabled()
    part = Partial.of(x, mask, absent)
    x, dims = part.clean(x), part.dims(x)
    trace = trace or default_trace(int(torch.as_tensor(dims).max()))
    flow = FlowSolver(
        model, schedule, prior, trace, tolerance, method, unit, max_evaluations, max_seconds,
        condition or {}, len(x), differentiable, part,
    )  # fmt: skip
    results, protocol = run_replicates(
        lambda _, rows: flow.solve(x[rows], rows, seed, audit), x,
        shapes=flow.shapes(x), repetitions=1, model=model, dtype=x.dtype,
        condition=flow.condition, settings=flow.protocol(x.ndim), record=record,
        run=Run(batch, seed, share, progress, checkpoint, resume, differentiable),
        key=(audit, batch),
    )  # fmt: skip
    nats, noise, evaluations, truncation, change = (results[name][0] for name in RESULTS)
    likelihood = OdeLikelihood(
        nats.T, dims, evaluations.long(), trace.exact, noise=noise, truncation=truncation,
        change=change if audit else None,
        protocol={**protocol, **costs(evaluations, change if audit else None, dims)},
    )  # fmt: skip
    warn_of_tolerance(likelihood, likelihood.change)
    return likelihood


@validated(rules=_RULES)
def log_prob(
    model: GaussianModel,
    x: Data,
    *,
    schedule: Schedule,
    mask: Mask | None = None,
    absent: Mask | None = None,
    prior: OfExamples | None = None,
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

    As in `torch.distributions`, gradients reach x, the model's parameters and the conditions. The
    graph of every evaluation is kept, and the network must be twice differentiable;
    `torch.no_grad()` takes far less memory. All examples are solved at once. `ode_likelihood` has
    errors, batches and a protocol; its `nats` are −log p.

    Args:
        x: continuous data as the network gets it.
        model, schedule, mask, absent, prior, trace, tolerance, method, unit, max_evaluations,
            max_seconds, seed, condition: as in `ode_likelihood`. Each call uses the same probes,
            those of the seed.

    Raises:
        SolverError, TypeError, ValueError: as `ode_likelihood`.

    Song et al., arXiv:2011.13456, section 4.3.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> x = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> log_p = log_prob(oracle, x, schedule=Linear(15.0, -15.0))
    >>> round(log_p.item(), 3), round(torch.autograd.grad(log_p.sum(), x)[0].item(), 3)    # −x/¼
    (-0.726, -2.0)
    """
    differentiable, part = torch.is_grad_enabled(), Partial.of(x, mask, absent)
    x, trace = part.clean(x), trace or default_trace(int(torch.as_tensor(part.dims(x)).max()))
    flow = FlowSolver(
        model, schedule, prior, trace, tolerance, method, unit, max_evaluations, max_seconds,
        condition or {}, len(x), differentiable, part,
    )  # fmt: skip
    with evaluating(model, differentiable=differentiable):
        return -flow.solve(x, torch.arange(len(x)), seed, audit=False)["nats"].mean(1)


def costs(evaluations: Tensor, change: Tensor | None, dims: int | Tensor) -> dict[str, object]:
    """The network evaluations of a solver, and the change of an audit in bits/dim.

    >>> costs(torch.tensor([100.0, 120.0]), None, dims=2)
    {'NFE': 110.0, 'most NFE': 120}
    """
    counts: dict[str, object] = {"NFE": round(evaluations.mean().item(), 1)}
    counts["most NFE"] = int(evaluations.max())
    if change is None:
        return counts
    bits = bits_per_dim(change, dims)
    return counts | {
        "half the tolerance changes the mean": bits.mean().item(),
        "and one example at most": bits.abs().max().item(),
    }


def warn_of_tolerance(likelihood: Replicated, change: Tensor | None) -> None:
    """Warn if half the tolerance moves the mean by more than its Monte Carlo error and by more
    than 0.005 bits/dim."""
    if change is None:
        return
    dims = torch.as_tensor(likelihood.dims, dtype=torch.float64).mean()
    moved = abs(bits_per_dim(change.mean(), dims).item())
    error = likelihood.estimate.monte_carlo
    if moved > max(VISIBLE, 0.0 if math.isnan(error) else error):
        what = f"half the tolerance moves the mean by {moved:.2g} bits/dim"
        text = f"{what}, more than its Monte Carlo error of {error:.2g}: lower the tolerance"
        warnings.warn(text, stacklevel=4)

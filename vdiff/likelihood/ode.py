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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.condition import Condition, conditions
from vdiff.errors import check_data, check_finite, finite, must
from vdiff.flow import solve
from vdiff.gaussian import (
    alpha,
    at_least_float32,
    bits_per_dim,
    sigma,
    sum_dims,
    wide,
    wide_number,
)
from vdiff.likelihood.conditions import check_conditions, of_rows
from vdiff.likelihood.gradient import EXAMPLES, check_gradient
from vdiff.likelihood.integrand import evaluating
from vdiff.likelihood.pieces import (
    Course,
    Progress,
    Share,
    State,
    check_dims,
    data_hash,
    in_pieces,
    key_of,
    law_of,
    mark_of,
    told,
    weights_of,
)
from vdiff.likelihood.protocol import of_computation, of_data
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.trace import Trace, default_trace
from vdiff.loss import Model, check_call, usable
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import DIGITS
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule
from vdiff.times import generator_of

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


def ode_likelihood(
    model: Model,
    x: Float[Tensor, "n *dims"],
    *,
    schedule: Schedule,
    prior: GaussianMixture | None = None,
    trace: Trace | None = None,
    tolerance: float = 1e-5,
    audit: bool = False,
    method: str = "dopri5",
    unit: float = 0.5,
    max_evaluations: int = 10_000,
    max_seconds: float | None = None,
    batch: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    share: Share = _ALONE,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    record: Mapping[str, object] | None = None,
    differentiable: bool = False,
    condition: Condition = None,
    **keywords: Any,
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

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> found = ode_likelihood(oracle, torch.zeros(1, 1), schedule=Linear(15.0, -15.0))
    >>> round(found.nats.item(), 4), round(-oracle.log_prob(torch.zeros(1, 1)).item(), 4)
    (0.2258, 0.2258)
    """
    check_data("ode_likelihood", x)
    check_finite("ode_likelihood", x, "x")
    differentiable = differentiable and torch.is_grad_enabled()
    condition = conditions("ode_likelihood", condition, keywords)
    flow = FlowSolver(
        "ode_likelihood", model, schedule, prior, trace or default_trace(x[0].numel()), tolerance,
        {"method": method, "unit": unit, "max_evaluations": max_evaluations, "max_seconds": max_seconds}, condition, len(x),
        differentiable,
    )  # fmt: skip

    def piece(_: int, rows: Tensor) -> State:
        return flow.solved(x[rows], rows, seed, audit)

    said = {**flow.protocol(), "seed": seed, **(record or {})}
    key = key_of(
        data_hash(x),
        told(condition),
        audit,
        batch,
        share.index,
        share.count,
        mark_of(said),
        weights_of(model),
    )
    shapes = flow.shapes(x)
    with evaluating(model, differentiable=differentiable):
        course = Course(share, progress, checkpoint, resume, differentiable)
        found = in_pieces(
            "ode_likelihood",
            piece,
            shapes=shapes,
            repetitions=1,
            rows=len(x),
            batch=batch,
            key=key,
            course=course,
        )
    nats, noise, count, truncation, change = (found[word][0] for word in shapes)
    moved, dims = change if audit else None, x[0].numel()
    estimate = OdeLikelihood(
        nats.T, dims, count.long(), flow.trace.exact, noise=noise, truncation=truncation, change=moved,
        protocol={**of_data(x), **said, **costs(count, moved, dims), **of_computation(x.dtype, x.device, [model], share)},
    )  # fmt: skip
    warn_of_tolerance("ode_likelihood", estimate, moved)
    return estimate


def log_prob(
    model: Model,
    x: Float[Tensor, "n *dims"],
    *,
    schedule: Schedule,
    prior: GaussianMixture | None = None,
    trace: Trace | None = None,
    tolerance: float = 1e-5,
    method: str = "dopri5",
    unit: float = 0.5,
    max_evaluations: int = 10_000,
    max_seconds: float | None = None,
    seed: int = 0,
    condition: Condition = None,
    **keywords: Any,
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

    >>> from vdiff import GaussianMixture, Linear
    >>> x = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> found = log_prob(oracle, x, schedule=Linear(15.0, -15.0))
    >>> round(found.item(), 3), round(torch.autograd.grad(found.sum(), x)[0].item(), 3)    # −x/¼
    (-0.726, -2.0)
    """
    condition = conditions("log_prob", condition, keywords)
    check_data("log_prob", x)
    check_finite("log_prob", x, "x")
    solver = {
        "method": method,
        "unit": unit,
        "max_evaluations": max_evaluations,
        "max_seconds": max_seconds,
    }
    differentiable, trace = torch.is_grad_enabled(), trace or default_trace(x[0].numel())
    flow = FlowSolver(
        "log_prob",
        model,
        schedule,
        prior,
        trace,
        tolerance,
        solver,
        condition,
        len(x),
        differentiable,
    )
    flow.shapes(x)
    with evaluating(model, differentiable=differentiable):
        return -flow.solved(x, torch.arange(len(x)), seed, audit=False)["nats"].mean(1)


def costs(evaluations: Tensor, change: Tensor | None, dims: int) -> dict[str, object]:
    """Of a solver: network evaluations, and in bits/dim by how much half the tolerance changes the
    mean, and one example at most.

    >>> costs(torch.tensor([100.0, 120.0]), None, dims=2)
    {'NFE': 110.0, 'most NFE': 120}
    """
    said: dict[str, object] = {
        "NFE": round(evaluations.mean().item(), 1),
        "most NFE": int(evaluations.max()),
    }
    if change is not None:
        moved = bits_per_dim(change, dims)
        said |= {
            "half the tolerance changes the mean": moved.mean().item(),
            "and one example at most": moved.abs().max().item(),
        }
    return said


def warn_of_tolerance(name: str, found: Replicated, change: Tensor | None) -> None:
    """Warn where half the tolerance moves the mean by more than its Monte Carlo error and by more
    than can be seen."""
    if change is None:
        return
    moved, error = abs(bits_per_dim(change.mean(), found.dims).item()), found.estimate.monte_carlo
    if moved > max(MOVED, 0.0 if math.isnan(error) else error):
        what = f"{name}: half the tolerance moves the mean by {moved:.2g} bits/dim"
        warnings.warn(
            f"{what}, more than its Monte Carlo error of {error:.2g}: lower the tolerance",
            stacklevel=3,
        )


class FlowSolver:
    """A model's probability flow between the ends of a schedule, and how it is solved; `name` is
    the caller's, for errors.

    >>> from vdiff import GaussianMixture, Linear
    >>> from vdiff.likelihood.trace import Exact
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> options = {"method": "dopri5", "unit": 0.5, "max_evaluations": 1000, "max_seconds": None}
    >>> FlowSolver("example", oracle, Linear(15.0, -15.0), None, Exact(), 1e-5, options, {}, 1).protocol()["prior"]
    'N(0, I)'
    """

    def __init__(
        self,
        name: str,
        model: Model,
        schedule: Schedule,
        prior: GaussianMixture | None,
        trace: Trace,
        tolerance: float,
        solver: dict[str, Any],
        condition: dict[str, Any],
        rows: int,
        differentiable: bool = False,
    ) -> None:
        check_call(name, model, schedule, None, evaluation=True)
        check_conditions(name, condition, rows)
        self.name, self.model, self.schedule, self.prior, self.trace = (
            name,
            model,
            schedule,
            prior,
            trace,
        )
        self.tolerance, self.solver = finite(name, "tolerance", tolerance, above=0.0), solver
        self.condition, self.rows, self.differentiable = condition, rows, differentiable
        for word, value in getattr(model, "protocol", {}).items():
            if word.startswith("x̂ clipped"):
                hint = "clipping changes the flow whose density this is"
                raise ValueError(must(name, "model", "leave x̂ as it is", f"{word} {value}", hint))

    def protocol(self) -> dict[str, object]:
        """What the density depends on, and how it is found."""
        ends = [self.schedule.logsnr_min, self.schedule.logsnr_max]
        law = "N(0, I)" if self.prior is None else f"{law_of(self.prior)} at λ_min"
        solver = {word: self.solver[word] for word in ("method", "unit")}
        return {
            **getattr(self.model, "protocol", {}), "logsnr": ends, "prior": law, "trace": repr(self.trace), "tolerance": self.tolerance, **solver
        }  # fmt: skip

    def shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """Of what `solved` finds of one example; raises for a prior of other dimensions, which
        would broadcast in silence."""
        if self.prior is not None:
            check_dims(self.name, "prior", self.prior, x)
        columns = (
            1 if self.trace.exact else self.trace.directions(x[:1], [torch.Generator()]).shape[0]
        )
        return {
            "nats": (columns,),
            "noise": tuple(x.shape[1:]),
            "evaluations": (),
            "truncation": (),
            "change": (),
        }

    def solved(self, x: Tensor, rows: Tensor, seed: int, audit: bool) -> State:
        """−log p (n, columns), z₁, evaluations, truncation and the audit's change of examples of
        these numbers."""
        x = usable(x)
        probes = self.trace.directions(
            wide(x), [generator_of(seed, 0, f"example {i}") for i in rows.tolist()]
        )
        path = _Path(self, x, rows, probes)
        checked = self._check_gradient(x, rows)
        nats, noise, evaluations = path.solve(self.tolerance)
        finer = path.solve(self.tolerance / 2)[0] if audit else nats
        return {
            "nats": nats.T,
            "noise": noise,
            "evaluations": torch.full((len(x),), checked + evaluations),
            "truncation": path.truncation(),
            "change": (finer - nats).mean(0),
        }

    def _check_gradient(self, x: Tensor, rows: Tensor) -> int:
        """Raise where part of the model is hidden from autograd; return its evaluations."""
        many = math.ceil(EXAMPLES / len(x))
        numbers, several = rows.repeat(many), x.repeat(many, *(1 for _ in x.shape[1:]))
        condition = of_rows(self.condition, numbers, self.rows)
        high, low = (wide_number(end, x.device).detach() for end in self.schedule.ends())
        # a network may be another at other levels: an expert for each, or guidance in between
        place = (torch.arange(len(several), device=x.device) + 0.5) / len(several)
        level = torch.lerp(high, low, wide(place))

        def output(z: Tensor) -> Tensor:
            said = self.model(z, level, **condition)
            _check_prediction(self.name, said)
            return said.out

        several = several.detach().to(at_least_float32(x.dtype))
        return check_gradient(self.name, output, several, level)


class _Path:
    """One batch and its probes: the field of (z, log p), and what is known at the two ends."""

    def __init__(self, flow: FlowSolver, x: Tensor, rows: Tensor, directions: Tensor) -> None:
        self.flow, self.trace, self.numbers, self.directions = flow, flow.trace, rows, directions
        self.condition = of_rows(flow.condition, rows, flow.rows)
        self.dtype, self.x = at_least_float32(x.dtype), wide(x)
        self.clean, self.noisy = (
            wide_number(end, x.device).detach() for end in flow.schedule.ends()
        )
        self.z = alpha(self.clean) * self.x
        self.first: tuple[Tensor, Tensor] | None = None

    def field(self, logsnr: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(v̂, div v̂), in float64 but for the network itself."""
        with torch.enable_grad():
            z = state[0] if self.flow.differentiable else state[0].detach()
            z = z if z.requires_grad else z.detach().requires_grad_()
            narrow, level = z.to(self.dtype), logsnr.expand(len(z))
            said = self.flow.model(narrow, level, **self.condition)
            _check_prediction(self.flow.name, said)
            if self.first is None:
                for end in (self.clean, self.noisy):
                    _check_rounding(self.flow.name, said, end)
            v = Prediction(z, level, wide(said.out), said.parameterization).v
            if self.flow.differentiable:
                found = v, self.trace.divergence(v, z, self.directions, differentiable=True)
            else:
                found = v.detach(), self.trace.divergence(v, z, self.directions)
        self.first = self.first or found
        return found

    def solve(self, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """−log p (replicates, batch), z₁, and the number of evaluations."""
        start = (
            self.z,
            self.z.new_zeros(len(self.z), 1 if self.trace.exact else len(self.directions)),
        )
        (z, gain), evaluations = solve(
            self.flow.name, self.field, start, self.clean, self.noisy, rtol=tolerance, atol=tolerance, examples=self.numbers, **self.flow.solver
        )  # fmt: skip
        at_clean = 0.5 * self.x[0].numel() * torch.nn.functional.logsigmoid(self.clean)  # d log α₀
        return -(self._prior(z) + gain.T + at_clean), z, evaluations

    def _prior(self, z: Tensor) -> Tensor:
        flat, prior = z.flatten(1), self.flow.prior
        if prior is None:
            return -0.5 * (
                flat.square() + torch.log(torch.tensor(2 * torch.pi, dtype=flat.dtype))
            ).sum(1)
        there = flat.to(prior.means.device)
        return prior.noisy_log_prob(there, self.noisy.to(there.device).expand(len(flat))).to(
            flat.device
        )

    def truncation(self) -> Tensor:
        """½ (‖ε̂‖² − σ div ε̂) at z₀ = α₀ x, where ε̂ = σ z + α v̂: ½ e^{−λ} ∇²p/p, from the first
        evaluation of the solver."""
        v, divergence = self.first or self.field(self.clean, (self.z,))
        a, s = alpha(self.clean), sigma(self.clean)
        eps = s * self.z + a * v
        return 0.5 * (
            sum_dims(eps.square()) - s * (s * self.x[0].numel() + a * divergence.mean(1))
        )


def _check_prediction(name: str, said: object) -> None:
    """Raise for what is no prediction."""
    if not isinstance(said, Prediction):
        hint = "wrap the network, which says what it predicts: Denoiser(network, V())"
        raise TypeError(must(name, "model", "return a Prediction", type(said).__name__, hint))


def _check_rounding(name: str, prediction: Prediction, end: Tensor) -> None:
    """Raise where rounding leaves nothing of v̂ at one end of the flow, warn where it leaves
    little."""
    row = prediction.parameterization
    loss, what = (
        max(row.rounding(end[None], prediction.out.dtype)),
        f"{row!r} at λ = {end.item():g}",
    )
    hint = "predict v, bring the schedule's ends closer, or compute in float64"
    if not loss < 1.0:
        raise ValueError(
            must(name, "schedule", "end where the model's output determines x̂ and ε̂", what, hint)
        )
    if loss > DIGITS:
        warnings.warn(
            f"{name}: {what} leaves x̂ or ε̂ with an error of {loss:.1g} by rounding: {hint}",
            stacklevel=2,
        )


__all__ = ["OF_THE_FLOW", "FlowSolver", "OdeLikelihood", "costs", "log_prob", "ode_likelihood"]

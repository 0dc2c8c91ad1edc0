"""A model's probability flow with its divergence, solved from data to the prior."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff._arguments import Model
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import require
from vdiff.flow import solve
from vdiff.gaussian import alpha, sigma, sum_dims
from vdiff.likelihood.conditions import of_rows
from vdiff.likelihood.gradient import EXAMPLES, check_gradient
from vdiff.likelihood.pieces import State, law_of
from vdiff.likelihood.protocol import of_model
from vdiff.likelihood.trace import Trace
from vdiff.loss import clone_if_inference
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import DIGITS
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule
from vdiff.times import generator_of

FOUND = ("nats", "noise", "evaluations", "truncation", "change")


@dataclass(frozen=True)
class FlowSolver:
    """A model's probability flow between the ends of a schedule, and how it is solved for so many
    rows.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Linear
    >>> from vdiff.likelihood.trace import Exact
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> options = {"method": "dopri5", "unit": 0.5, "max_evaluations": 1000, "max_seconds": None}
    >>> FlowSolver(oracle, Linear(15.0, -15.0), None, Exact(), 1e-5, options, {}, 1).protocol()["prior"]
    'N(0, I)'
    """

    model: Model
    schedule: Schedule
    prior: GaussianMixture | None
    trace: Trace
    tolerance: float
    solver: dict[str, Any]
    condition: Mapping[str, Any]
    rows: int
    differentiable: bool = False

    def protocol(self) -> dict[str, object]:
        """What the density depends on, and how it is found."""
        ends = [self.schedule.logsnr_min, self.schedule.logsnr_max]
        law = "N(0, I)" if self.prior is None else f"{law_of(self.prior)} at λ_min"
        solver = {word: self.solver[word] for word in ("method", "unit")}
        known = {"logsnr": ends, "prior": law, "trace": repr(self.trace)}
        return {**of_model(self.model), **known, "tolerance": self.tolerance, **solver}

    def shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """Of what `solved` finds of one example."""
        probes = () if self.trace.exact else self.trace.directions(x[:1], [torch.Generator()])
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(FOUND, ())
        return shapes | {"nats": (len(probes) or 1,), "noise": tuple(x.shape[1:])}

    def solved(self, x: Tensor, rows: Tensor, seed: int, audit: bool) -> State:
        """−log p (n, columns), z₁, evaluations, truncation and the audit's change of examples of
        these numbers."""
        x = clone_if_inference(x)
        generators = [generator_of(seed, 0, f"example {i}") for i in rows.tolist()]
        probes = self.trace.directions(to_float64(x), generators)
        path = _Path(self, x, rows, probes)
        checked = self._check_gradient(x, rows)
        nats, noise, evaluations = path.solve(self.tolerance)
        finer = path.solve(self.tolerance / 2)[0] if audit else nats
        count = torch.full((len(x),), checked + evaluations)
        found = nats.T, noise, count, path.truncation(), (finer - nats).mean(0)
        return dict(zip(FOUND, found, strict=True))

    def _check_gradient(self, x: Tensor, rows: Tensor) -> int:
        """Raise where part of the model is hidden from autograd; return its evaluations."""
        many = math.ceil(EXAMPLES / len(x))
        numbers, several = rows.repeat(many), x.repeat(many, *(1 for _ in x.shape[1:]))
        condition = of_rows(self.condition, numbers, self.rows)
        high, low = (as_float64(end, x.device).detach() for end in self.schedule.ends())
        # a network may be another at other levels: an expert for each, or guidance in between
        place = (torch.arange(len(several), device=x.device) + 0.5) / len(several)
        level = torch.lerp(high, low, to_float64(place))

        several = several.detach().to(at_least_float32(x.dtype))
        return check_gradient(lambda z: self.model(z, level, **condition).out, several, level)


class _Path:
    """One batch and its probes: the field of (z, log p), and what is known at the two ends."""

    def __init__(self, flow: FlowSolver, x: Tensor, rows: Tensor, directions: Tensor) -> None:
        self.flow, self.trace, self.numbers, self.directions = flow, flow.trace, rows, directions
        self.condition = of_rows(flow.condition, rows, flow.rows)
        self.dtype, self.x = at_least_float32(x.dtype), to_float64(x)
        ends = (as_float64(end, x.device).detach() for end in flow.schedule.ends())
        self.clean, self.noisy = ends
        self.z = alpha(self.clean) * self.x
        self.first: tuple[Tensor, Tensor] | None = None

    def field(self, logsnr: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(v̂, div v̂), in float64 but for the network itself."""
        with torch.enable_grad():
            z = state[0] if self.flow.differentiable else state[0].detach()
            z = z if z.requires_grad else z.detach().requires_grad_()
            narrow, level = z.to(self.dtype), logsnr.expand(len(z))
            prediction = self.flow.model(narrow, level, **self.condition)
            if self.first is None:
                for end in (self.clean, self.noisy):
                    _check_rounding(prediction, end)
            row, differentiable = prediction.parameterization, self.flow.differentiable
            v = Prediction(z, level, to_float64(prediction.out), row).v
            options = {"differentiable": differentiable}
            divergence = self.trace.divergence(v, z, self.directions, **options)
            found = v if differentiable else v.detach(), divergence
        self.first = self.first or found
        return found

    def solve(self, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """−log p (replicates, batch), z₁, and the number of evaluations."""
        columns = 1 if self.trace.exact else len(self.directions)
        start = self.z, self.z.new_zeros(len(self.z), columns)
        options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "examples": self.numbers}
        options |= self.flow.solver
        name = "the probability-flow ODE"
        solution = solve(name, self.field, start, self.clean, self.noisy, **options)
        z, gain = solution.state
        at_clean = 0.5 * self.x[0].numel() * torch.nn.functional.logsigmoid(self.clean)  # d log α₀
        return -(self._prior(z) + gain.T + at_clean), z, solution.evaluations

    def _prior(self, z: Tensor) -> Tensor:
        flat, prior = z.flatten(1), self.flow.prior
        if prior is None:
            two_pi = torch.tensor(2 * torch.pi, dtype=flat.dtype)
            return -0.5 * (flat.square() + torch.log(two_pi)).sum(1)
        there = flat.to(prior.means.device)
        level = self.noisy.to(there.device).expand(len(flat))
        return prior.noisy_log_prob(there, level).to(flat.device)

    def truncation(self) -> Tensor:
        """½ (‖ε̂‖² − σ div ε̂) at z₀ = α₀ x, where ε̂ = σ z + α v̂: ½ e^{−λ} ∇²p/p, from the first
        evaluation of the solver."""
        v, divergence = self.first or self.field(self.clean, (self.z,))
        a, s = alpha(self.clean), sigma(self.clean)
        eps = s * self.z + a * v
        of_noise = s * (s * self.x[0].numel() + a * divergence.mean(1))  # σ div ε̂
        return 0.5 * (sum_dims(eps.square()) - of_noise)


def _check_rounding(prediction: Prediction, end: Tensor) -> None:
    """Raise where rounding leaves nothing of v̂ at one end of the flow, warn where it leaves
    little."""
    row = prediction.parameterization
    loss, what = (
        max(row.rounding(end[None], prediction.out.dtype)),
        f"{row!r} at λ = {end.item():g}",
    )
    hint = "predict v, bring the schedule's ends closer, or compute in float64"
    digits = "end where the model's output determines x̂ and ε̂"
    require(loss < 1.0, "schedule", digits, what, hint)
    if loss > DIGITS:
        text = f"{what} leaves x̂ or ε̂ with an error of {loss:.1g} by rounding: {hint}"
        warnings.warn(text, stacklevel=2)


__all__ = ["FOUND", "FlowSolver"]

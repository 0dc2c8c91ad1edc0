"""The probability flow of a model and its divergence, solved from data to the prior."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff._arguments import Model
from vdiff._diffusion import clone_if_inference, standard_normal
from vdiff._partial import Partial
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import require, unchecked
from vdiff.flow import along, solve, solve_path
from vdiff.gaussian import alpha, per_example, sigma, sum_dims
from vdiff.likelihood.chunks import State
from vdiff.likelihood.conditions import select_rows
from vdiff.likelihood.digest import data_hash, distribution_digest, schedule_digest
from vdiff.likelihood.gradient import EXAMPLES, check_gradient
from vdiff.likelihood.replicated import example_generators
from vdiff.likelihood.trace import Trace
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import DIGITS
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule

WHOLE = Partial()
RESULTS = ("nats", "noise", "evaluations", "truncation", "change")


@dataclass(frozen=True)
class FlowSolver:
    """The probability flow of a model between the ends of a schedule, and how it is solved.

    `condition` and `part` have rows for `rows` examples. The other fields are as in
    `ode_likelihood`.
    """

    model: Model
    schedule: Schedule
    prior: GaussianMixture | None
    trace: Trace
    tolerance: float
    method: str
    unit: float
    max_evaluations: int
    max_seconds: float | None
    condition: Mapping[str, Any]
    rows: int
    differentiable: bool = False
    part: Partial = WHOLE

    def protocol(self, ndim: int) -> dict[str, object]:
        """The settings on which the density of an x of `ndim` dimensions and its error depend."""
        given = self.prior
        prior = "N(0, I)" if given is None else f"{distribution_digest(given)} at λ_min"
        masks = {"modelled": self.part.modelled, "absent": self.part.absent}
        path: dict[str, object] = {}
        if self.schedule.over_dims:
            digest = schedule_digest(self.schedule, ndim)
            path = {"schedule": repr(self.schedule), "path": digest}
        return {
            "logsnr": [self.schedule.logsnr_min, self.schedule.logsnr_max],
            **path,
            **{word: data_hash(mask) for word, mask in masks.items() if mask is not None},
            "prior": prior,
            "trace": repr(self.trace),
            "tolerance": self.tolerance,
            "method": self.method,
            "unit": self.unit,
        }

    def shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of one example's results in `solve`."""
        probes = () if self.trace.exact else self.trace.directions(x[:1], [torch.Generator()])
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(RESULTS, ())
        return shapes | {"nats": (len(probes) or 1,), "noise": tuple(x.shape[1:])}

    def solve(self, x: Tensor, rows: Tensor, seed: int, audit: bool) -> State:
        """−log p (n, columns), z₁, evaluations, truncation and the audit's change, of the examples
        x with the numbers `rows`."""
        x = clone_if_inference(x)
        generators = example_generators(seed, 0, rows)
        x = self.part.rows(rows).clean(x)
        directions = self.trace.directions(to_float64(x), generators)
        absent = example_generators(seed, 0, rows, prefix="absent value of ")
        noise = standard_normal(x, absent) if self.part.absent is not None else x
        path = _Path(self, x, noise, rows, directions)
        checked = self._check_gradient(x, noise, rows)
        nats, noise, evaluations = path.solve(self.tolerance)
        finer = path.solve(self.tolerance / 2)[0] if audit else nats
        count = torch.full((len(x),), checked + evaluations)
        values = nats.T, noise, count, path.truncation(), (finer - nats).mean(0)
        return dict(zip(RESULTS, values, strict=True))

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """λ_max and λ_min in float64, numbers or fields that broadcast over x."""
        high, low = (as_float64(v, x.device).detach() for v in self.schedule.ends_of(x.ndim))
        return high, low

    def model_of(self, x: Tensor, noise: Tensor, rows: Tensor) -> Model:
        """The model of the modelled dimensions of some examples, with their conditions."""
        model = partial(self.model, **select_rows(self.condition, rows, self.rows))
        return self.part.rows(rows).model(model, x, noise, *self.ends(x))

    def _check_gradient(self, x: Tensor, noise: Tensor, rows: Tensor) -> int:
        """Raise if part of the model is hidden from autograd. Returns the evaluations it took."""
        copies = math.ceil(EXAMPLES / len(x))
        x, noise = (v.repeat(copies, *(1 for _ in x.shape[1:])) for v in (x, noise))
        x, model = (
            x.detach().to(at_least_float32(x.dtype)),
            self.model_of(x, noise, rows.repeat(copies)),
        )
        # at every λ, because parts of a network may act between some λ alone
        (high, low), t = self.ends(x), (torch.arange(len(x), device=x.device) + 0.5) / len(x)
        t = to_float64(t) if high.ndim < 2 else per_example(to_float64(t), high)
        level = torch.lerp(high, low, t)
        return check_gradient(lambda z: model(z, level).output, x, level)


class _Path:
    """The flow of one batch with its directions: the field of (z, log p), and its two ends."""

    def __init__(
        self, flow: FlowSolver, x: Tensor, noise: Tensor, rows: Tensor, directions: Tensor
    ) -> None:
        self.flow, self.trace, self.rows = flow, flow.trace, rows
        self.dtype, self.x = at_least_float32(x.dtype), to_float64(x)
        self.part, self.over_dims = flow.part.rows(rows), flow.schedule.over_dims
        self.clean, self.noisy = flow.ends(x)
        self.model = flow.model_of(x, noise, rows)
        self.directions, self.z = directions, alpha(self.clean) * self.x
        if self.part.modelled is not None:
            self.directions = self._within(self.part.modelled, directions)
            self.z = torch.where(self.part.modelled, self.z, 0.0)
        self.first: tuple[Tensor, Tensor] | None = None

    def field(self, logsnr: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(v̂, div v̂) in float64."""
        return self._field(logsnr.expand(len(self.z)), None, state)

    def _along(
        self, logsnr: Tensor, rate: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """dφ/dt v̂ and its divergence."""
        v, divergence = self._field(logsnr, rate, state)
        return rate * v, divergence

    def _field(
        self, level: Tensor, weight: Tensor | None, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """v̂ and Σ w_i ∂v̂_i/∂z_i in float64. The network runs in the dtype of x."""
        with torch.enable_grad():
            z = state[0] if self.flow.differentiable else state[0].detach()
            z = z if z.requires_grad else z.detach().requires_grad_()
            prediction = self.model(z.to(self.dtype), level)
            if self.first is None:
                for end in dict.fromkeys(v.item() for v in self._ends()):
                    _check_rounding(prediction, as_float64(end, z.device))
            row, differentiable = prediction.parameterization, self.flow.differentiable
            v = Prediction(z, level, to_float64(prediction.output), row).v
            if prediction.modelled is not None:
                v = torch.where(prediction.modelled, v, 0.0)
            options: dict[str, Any] = {"weight": weight, "differentiable": differentiable}
            divergence = self.trace.divergence(v, z, self.directions, **options)
            value = v if differentiable else v.detach(), divergence
        self.first = self.first or value
        return value

    def solve(self, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """−log p (replicates, batch), z₁, and the number of evaluations."""
        flow, columns = self.flow, 1 if self.trace.exact else len(self.directions)
        state = self.z, self.z.new_zeros(len(self.z), columns)
        options: dict[str, Any] = {
            "method": flow.method, "rtol": tolerance, "atol": tolerance, "examples": self.rows,
            "max_evaluations": flow.max_evaluations, "max_seconds": flow.max_seconds,
            "modelled": self.part.modelled,
        }  # fmt: skip
        if self.over_dims:
            path = along(flow.schedule, len(self.z), self.z.ndim)
            solution = solve_path(self._along, state, path, **options)
        else:
            ends = self.clean, self.noisy
            solution = unchecked(solve)(self.field, state, *ends, unit=flow.unit, **options)
        z, gain = solution.state
        # Σ log α₀
        at_clean = self._total(0.5 * torch.nn.functional.logsigmoid(self.clean))
        return -(self._prior(z) + gain.T + at_clean), z, solution.evaluations

    def _within(self, modelled: Tensor, directions: Tensor) -> Tensor:
        """Directions within the modelled dimensions; of exact ones, those that any example has."""
        directions = torch.where(modelled, directions, 0.0)
        if not self.trace.exact:
            return directions
        kept = directions.flatten(1).any(1)
        return directions[kept] if kept.any() else directions[:1]

    def _ends(self) -> tuple[Tensor, ...]:
        return (*self.clean.aminmax(), *self.noisy.aminmax())

    def _total(self, per_dim: Tensor) -> Tensor:
        """The sum over the modelled dimensions of a number or a field, in float64."""
        if per_dim.ndim == 0:
            return self.part.dims(self.x) * per_dim
        return sum_dims(per_dim.expand_as(self.x), self.part.modelled)

    def _prior(self, z: Tensor) -> Tensor:
        flat, prior = z.flatten(1), self.flow.prior
        if prior is None:
            two_pi = torch.tensor(2 * torch.pi, dtype=flat.dtype)
            if self.part.modelled is not None:
                return -0.5 * sum_dims(z.square() + torch.log(two_pi), self.part.modelled)
            return -0.5 * (flat.square() + torch.log(two_pi)).sum(1)
        device = prior.means.device
        level = self.noisy.to(device).expand(len(flat))
        return prior.noisy_log_prob(flat.to(device), level).to(flat.device)

    def truncation(self) -> Tensor:
        """½ e^{−λ} ∇²p/p = ½ (‖ε̂‖² − σ div ε̂) at z₀ = α₀ x, with ε̂ = σ z + α v̂, from the first
        evaluation of the solver."""
        a, s = alpha(self.clean), sigma(self.clean)
        if self.over_dims:
            level = self.clean.expand(len(self.z), *self.clean.shape[1:])
            v, divergence = self._field(level, s * a, (self.z,))
            of_noise = self._total(s.square()) + divergence.mean(1)
        else:
            v, divergence = self.first or self.field(self.clean, (self.z,))
            of_noise = s * (s * self.part.dims(self.x) + a * divergence.mean(1))  # σ div ε̂
        eps = s * self.z + a * v
        return 0.5 * (sum_dims(eps.square(), self.part.modelled) - of_noise)


def _check_rounding(prediction: Prediction, end: Tensor) -> None:
    """Raise if rounding leaves no digit of v̂ at an end of the flow. Warn if it leaves few."""
    row = prediction.parameterization
    error = max(row.rounding(end[None], prediction.output.dtype))
    what = f"{row!r} at λ = {end.item():g}"
    hint = "predict v, bring the schedule's ends closer, or compute in float64"
    digits = "end where the model's output determines x̂ and ε̂"
    require(error < 1.0, "schedule", digits, what, hint)
    if error > DIGITS:
        text = f"{what} leaves x̂ or ε̂ with an error of {error:.1g} by rounding: {hint}"
        warnings.warn(text, stacklevel=2)

"""The probability flow of a model and its divergence, solved from data to the prior."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff._arguments import Model
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import require, unchecked
from vdiff.flow import solve
from vdiff.gaussian import alpha, sigma, sum_dims
from vdiff.likelihood.chunks import State
from vdiff.likelihood.conditions import select_rows
from vdiff.likelihood.digest import distribution_digest
from vdiff.likelihood.gradient import EXAMPLES, check_gradient
from vdiff.likelihood.replicated import example_generators
from vdiff.likelihood.trace import Trace
from vdiff.loss import clone_if_inference
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import DIGITS
from vdiff.prediction import Prediction
from vdiff.schedule import Schedule

RESULTS = ("nats", "noise", "evaluations", "truncation", "change")


@dataclass(frozen=True)
class FlowSolver:
    """The probability flow of a model between the ends of a schedule, and how it is solved.

    `condition` has rows for `rows` examples. The other fields are as in `ode_likelihood`.
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

    def protocol(self) -> dict[str, object]:
        """The settings on which the density and its error depend."""
        given = self.prior
        prior = "N(0, I)" if given is None else f"{distribution_digest(given)} at λ_min"
        return {
            "logsnr": [self.schedule.logsnr_min, self.schedule.logsnr_max],
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
        path = _Path(self, x, rows, self.trace.directions(to_float64(x), generators))
        checked = self._check_gradient(x, rows)
        nats, noise, evaluations = path.solve(self.tolerance)
        finer = path.solve(self.tolerance / 2)[0] if audit else nats
        count = torch.full((len(x),), checked + evaluations)
        values = nats.T, noise, count, path.truncation(), (finer - nats).mean(0)
        return dict(zip(RESULTS, values, strict=True))

    def _check_gradient(self, x: Tensor, rows: Tensor) -> int:
        """Raise if part of the model is hidden from autograd. Returns the evaluations it took."""
        copies = math.ceil(EXAMPLES / len(x))
        condition = select_rows(self.condition, rows.repeat(copies), self.rows)
        x = x.repeat(copies, *(1 for _ in x.shape[1:])).detach().to(at_least_float32(x.dtype))
        # at every λ, because parts of a network may act between some λ alone
        high, low = (as_float64(end, x.device).detach() for end in self.schedule.ends())
        t = (torch.arange(len(x), device=x.device) + 0.5) / len(x)
        level = torch.lerp(high, low, to_float64(t))
        return check_gradient(lambda z: self.model(z, level, **condition).output, x, level)


class _Path:
    """The flow of one batch with its directions: the field of (z, log p), and its two ends."""

    def __init__(self, flow: FlowSolver, x: Tensor, rows: Tensor, directions: Tensor) -> None:
        self.flow, self.trace, self.rows, self.directions = flow, flow.trace, rows, directions
        self.condition = select_rows(flow.condition, rows, flow.rows)
        self.dtype, self.x = at_least_float32(x.dtype), to_float64(x)
        self.clean, self.noisy = (
            as_float64(end, x.device).detach() for end in flow.schedule.ends()
        )
        self.z = alpha(self.clean) * self.x
        self.first: tuple[Tensor, Tensor] | None = None

    def field(self, logsnr: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(v̂, div v̂) in float64. The network runs in the dtype of x."""
        with torch.enable_grad():
            z = state[0] if self.flow.differentiable else state[0].detach()
            z = z if z.requires_grad else z.detach().requires_grad_()
            level = logsnr.expand(len(z))
            prediction = self.flow.model(z.to(self.dtype), level, **self.condition)
            if self.first is None:
                for end in (self.clean, self.noisy):
                    _check_rounding(prediction, end)
            row, differentiable = prediction.parameterization, self.flow.differentiable
            v = Prediction(z, level, to_float64(prediction.output), row).v
            options = {"differentiable": differentiable}
            divergence = self.trace.divergence(v, z, self.directions, **options)
            value = v if differentiable else v.detach(), divergence
        self.first = self.first or value
        return value

    def solve(self, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """−log p (replicates, batch), z₁, and the number of evaluations."""
        columns = 1 if self.trace.exact else len(self.directions)
        solution = unchecked(solve)(
            self.field, (self.z, self.z.new_zeros(len(self.z), columns)), self.clean, self.noisy,
            unit=self.flow.unit, method=self.flow.method, rtol=tolerance, atol=tolerance,
            max_evaluations=self.flow.max_evaluations, max_seconds=self.flow.max_seconds,
            examples=self.rows,
        )  # fmt: skip
        z, gain = solution.state
        at_clean = 0.5 * self.x[0].numel() * torch.nn.functional.logsigmoid(self.clean)  # d log α₀
        return -(self._prior(z) + gain.T + at_clean), z, solution.evaluations

    def _prior(self, z: Tensor) -> Tensor:
        flat, prior = z.flatten(1), self.flow.prior
        if prior is None:
            two_pi = torch.tensor(2 * torch.pi, dtype=flat.dtype)
            return -0.5 * (flat.square() + torch.log(two_pi)).sum(1)
        device = prior.means.device
        level = self.noisy.to(device).expand(len(flat))
        return prior.noisy_log_prob(flat.to(device), level).to(flat.device)

    def truncation(self) -> Tensor:
        """½ e^{−λ} ∇²p/p = ½ (‖ε̂‖² − σ div ε̂) at z₀ = α₀ x, with ε̂ = σ z + α v̂, from the first
        evaluation of the solver."""
        v, divergence = self.first or self.field(self.clean, (self.z,))
        a, s = alpha(self.clean), sigma(self.clean)
        eps = s * self.z + a * v
        of_noise = s * (s * self.x[0].numel() + a * divergence.mean(1))  # σ div ε̂
        return 0.5 * (sum_dims(eps.square()) - of_noise)


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

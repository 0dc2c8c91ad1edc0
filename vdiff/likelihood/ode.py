"""Exact likelihood along the probability-flow ODE: change of variables from data at λ_max to the prior at λ_min.

With dz/dφ = v̂ (see `vdiff.flow`) the density obeys d log p/dφ = −div v̂, so that for z₀ = α₀ x

    log p(x) = log p(z₁) + ∫_{φ₀}^{φ₁} div v̂ dφ + d log α₀

It is a density of its own, that of z₀/α₀ when z₁ is drawn from the prior, and normalised whatever the network says. The
bound bounds another model, the reverse SDE: for an inexact denoiser the two may differ in either direction.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff.errors import check_data, check_finite, check_positive_int, finite, must
from vdiff.flow import solve
from vdiff.gaussian import alpha, at_least_float32, sigma, sum_dims, wide, wide_number
from vdiff.likelihood.integrand import evaluating
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.trace import Trace, default_trace
from vdiff.loss import Model, check_call
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Prediction
from vdiff.schedule import Schedule
from vdiff.times import generator_of


@dataclass(frozen=True, kw_only=True)
class OdeLikelihood(Replicated):
    """−log p of each example under the ODE's density, nats: one replicate, exact, or one for each of Hutchinson's probes.

    `noise` is z₁, (n, …). `change` is by how much halving the tolerance moved `nats`, None where that was not asked.
    `truncation` estimates log p(x) − log p_∞(x), to first order in e^{−λ_max}: what the noise left at λ_max does to a density that
    is smooth on its scale. It is for information: −log p is that of z₀/α₀, with nothing cut off. `evaluations` counts
    those of the model for the batch that an example was in.

    >>> zero = torch.zeros(1)
    >>> result = OdeLikelihood(zero[None], 1, zero, exact=True, noise=zero[None], truncation=zero, change=None, protocol={})
    >>> result.standard_error
    tensor([0.])
    """

    noise: Tensor
    truncation: Float[Tensor, " batch"]
    change: Float[Tensor, " batch"] | None
    protocol: dict[str, object]


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
    **condition: Any,
) -> OdeLikelihood:
    """−log p(x) under the density that the probability-flow ODE gives a model, nats per example.

    Every example is held to the tolerance by itself, so that its answer depends on its batch within the solver's error alone; probes
    are a function of the seed and its place. z and log p are accumulated in float64, the network runs in the dtype of x.

    Args:
        model: in evaluation mode meanwhile, TF32 off. It must be differentiable in z.
        x: continuous data as the network sees it. Discrete data is dequantised first: `dequantized_ode`.
        schedule: its ends are where the ODE starts and stops; nothing else of it matters.
        prior: the law of clean data whose noisy density at λ_min stands for p(z₁), for instance `Gaussian.fit(training_data)`, whose
            moments match; N(0, I) where none is given.
        trace: `Exact()` or `Hutchinson()`; up to 16 dimensions the first.
        tolerance: of the solver, relative and absolute, for z and for log p in nats.
        audit: solve once more with half the tolerance, and say what changed.
        method, unit, max_evaluations, max_seconds: of the solver, see `vdiff.flow.solve`.
        batch: how many examples are solved at once.
        seed: of the probes.
        condition: passed on to the model, (n, …) tensors by rows.

    Raises:
        SolverError: where the solver gives up.
        ValueError: for data that is not finite, and a model that clips x̂, or hides its gradient.

    Song et al., arXiv:2011.13456, section 4.3; Grathwohl et al., arXiv:1810.01367.

    >>> from vdiff import GaussianMixture, Linear
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[0.25]])
    >>> found = ode_likelihood(oracle, torch.zeros(1, 1), schedule=Linear(15.0, -15.0))
    >>> round(found.nats.item(), 4), round(-oracle.log_prob(torch.zeros(1, 1)).item(), 4)
    (0.2258, 0.2258)
    """
    check_data("ode_likelihood", x)
    check_finite("ode_likelihood", x, "x")
    check_call("ode_likelihood", model, schedule, None, condition)
    check_positive_int("ode_likelihood", "batch", batch)
    tolerance = finite("ode_likelihood", "tolerance", tolerance, above=0.0)
    protocol = _protocol(model, prior, schedule)
    trace = trace or default_trace(x[0].numel())
    solver = {"method": method, "unit": unit, "max_evaluations": max_evaluations, "max_seconds": max_seconds}
    parts: list[tuple[Tensor, ...]] = []
    with evaluating(model):
        for start in range(0, len(x), batch):
            rows = slice(start, start + batch)
            given = {name: v[rows] if isinstance(v, Tensor) and v.shape[:1] == x.shape[:1] else v for name, v in condition.items()}
            probe = [generator_of(seed, 0, f"example {start + i}") for i in range(len(x[rows]))]
            path = _Path(model, x[rows], schedule, prior, trace, trace.directions(wide(x[rows]), probe), given)
            nats, noise, evaluations = path.solve(tolerance, solver)
            finer = path.solve(tolerance / 2, solver)[0] if audit else nats
            count = torch.full((len(noise),), evaluations, device=x.device)
            parts.append((nats, noise, count, path.truncation(), (finer - nats).mean(0)))
    nats, noise, count, truncation, change = (torch.cat(p, 1 if i == 0 else 0) for i, p in enumerate(zip(*parts, strict=True)))
    protocol |= {
        "trace": repr(trace),
        "tolerance": tolerance,
        "method": method,
        "NFE": round(count.double().mean().item(), 1),
        "seed": seed,
    }
    return OdeLikelihood(
        nats, x[0].numel(), count, trace.exact, noise=noise, truncation=truncation, change=change if audit else None, protocol=protocol
    )


class _Path:
    """One batch and its probes: the field of (z, log p), and what is known at the two ends."""

    def __init__(
        self,
        model: Model,
        x: Tensor,
        schedule: Schedule,
        prior: GaussianMixture | None,
        trace: Trace,
        directions: Tensor,
        condition: dict[str, Any],
    ) -> None:
        self.model, self.prior, self.trace, self.directions, self.condition = model, prior, trace, directions, condition
        self.dtype, self.x = at_least_float32(x.dtype), wide(x)
        self.clean, self.noisy = (wide_number(end, x.device).detach() for end in schedule.ends())
        self.z = alpha(self.clean) * self.x
        self.first: tuple[Tensor, Tensor] | None = None

    def field(self, logsnr: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(v̂, div v̂), in float64 but for the network itself."""
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            narrow, level = z.to(self.dtype), logsnr.expand(len(z))
            said = self.model(narrow, level, **self.condition)
            if not isinstance(said, Prediction):
                hint = "wrap the network, which says what it predicts: Denoiser(network, V())"
                raise TypeError(must("ode_likelihood", "model", "return a Prediction", type(said).__name__, hint))
            if not said.out.requires_grad:
                self._check_constant(narrow.detach(), level, said)
            v = Prediction(z, level, wide(said.out), said.parameterization).v
            found = v.detach(), self.trace.divergence(v, z, self.directions)
        self.first = self.first or found
        return found

    def solve(self, tolerance: float, solver: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
        """−log p (replicates, batch), z₁, and the number of evaluations."""
        start = (self.z, self.z.new_zeros(len(self.z), 1 if self.trace.exact else len(self.directions)))
        (z, gain), evaluations = solve(
            "ode_likelihood", self.field, start, self.clean, self.noisy, rtol=tolerance, atol=tolerance, **solver
        )
        at_clean = 0.5 * self.x[0].numel() * torch.nn.functional.logsigmoid(self.clean)  # d log α₀
        return -(self._prior(z) + gain.T + at_clean), z, evaluations

    def _prior(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        if self.prior is None:
            return -0.5 * (flat.square() + torch.log(torch.tensor(2 * torch.pi, dtype=flat.dtype))).sum(1)
        return self.prior.noisy_log_prob(flat, self.noisy.expand(len(flat)))

    def truncation(self) -> Tensor:
        """½ (‖ε̂‖² − σ div ε̂) at z₀ = α₀ x, where ε̂ = σ z + α v̂: ½ e^{−λ} ∇²p/p, from the first evaluation of the solver."""
        v, divergence = self.first or self.field(self.clean, (self.z,))
        a, s = alpha(self.clean), sigma(self.clean)
        eps = s * self.z + a * v
        return 0.5 * (sum_dims(eps.square()) - s * (s * self.x[0].numel() + a * divergence.mean(1)))

    def _check_constant(self, z: Tensor, level: Tensor, said: Prediction) -> None:
        """Raise where the model depends on z without a gradient: its divergence would be silently wrong."""
        if not torch.equal(self.model(z + 0.01 * torch.ones_like(z), level, **self.condition).out, said.out):
            hint = "torch.no_grad, inference_mode or .detach() inside it"
            raise ValueError(
                must("ode_likelihood", "model", "be differentiable in z", "an output that depends on z without a gradient", hint)
            )


def _protocol(model: Model, prior: GaussianMixture | None, schedule: Schedule) -> dict[str, object]:
    done = dict(getattr(model, "protocol", {}))
    for name, value in done.items():
        if name.startswith("x̂ clipped"):
            raise ValueError(
                must("ode_likelihood", "model", "leave x̂ as it is", f"{name} {value}", "clipping changes the flow whose density this is")
            )
    law = "N(0, I)" if prior is None else f"{type(prior).__name__} at λ_min"
    return done | {"λ": f"[{schedule.logsnr_min:g}, {schedule.logsnr_max:g}]", "prior": law}


__all__ = ["OdeLikelihood", "ode_likelihood"]

"""The measurements of two_moons.py: variances of one draw of the bound, of its gradient, and of
sums along a path."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import vdiff
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step, diffuse
from vdiff.loss import Model
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw

ESTIMATORS = {"RB": RaoBlackwell(), "MC": MonteCarlo(), "raw": Raw()}


def spread(draws: Tensor) -> Tensor:
    """The variance of vectors (…, n, p), summed over p: the trace of their covariance."""
    n = draws.shape[-2]
    norm = torch.linalg.vector_norm  # makes no copy of the draws
    return (norm(draws, dim=-1).square().mean(-1) - norm(draws.mean(-2), dim=-1).square()) * (
        n / (n - 1)
    )


def jacobian(network: nn.Module, z: Tensor, logsnr: Tensor) -> Tensor:
    """∂ network(z)/∂θ of every example: (batch, dims, parameters)."""

    def one(parameters: dict[str, Tensor], z: Tensor, logsnr: Tensor) -> Tensor:
        return functional_call(network, parameters, (z[None], logsnr[None]))[0]

    parts = vmap(jacrev(one), (None, 0, 0))(dict(network.named_parameters()), z, logsnr)
    return torch.cat([part.flatten(2) for part in parts.values()], 2)


def at_step(
    network: nn.Module,
    x: Tensor,
    i: int,
    chain: int,
    schedule: vdiff.schedule.Schedule,
    generator: torch.Generator,
    *,
    repeats: int,
    fewer: int,
) -> dict[str, float]:
    """Variances of one draw T·K̂ at step i of a chain, its value and its gradient: x random, and x
    fixed (averaged over x).

    Each point of x is drawn `repeats` times; gradients take `fewer` times as few points and
    repeats. `network` predicts ε. Given z_t, the log-ratio at a sampled z_s is K + √k (ε̂ − ε)·n
    with n ~ N(0, I) and k = expm1(λ_s − λ_t): Monte Carlo adds 2 E[K] to the variance of the
    value, and k E‖∂ε̂/∂θ‖² to that of the gradient ("theory"), whether x is fixed or random.
    """
    by_point = torch.arange(len(x) * repeats).view(len(x), repeats)
    few = by_point[: len(x) // fewer, : repeats // fewer]
    x = x.repeat_interleave(repeats, 0)
    t = torch.full((len(x),), i / chain, dtype=torch.float64)
    logsnr, _ = schedule.at(t)[:2]
    step, eps = Step(logsnr, schedule.delta(t, chain)), torch.randn(x.shape, generator=generator)
    z = diffuse(x, eps, logsnr)
    out = network(z, logsnr).requires_grad_()
    prediction = vdiff.Prediction(z, logsnr, out, vdiff.parameterization.Eps())
    slopes = jacobian(network, z[few.flatten()], logsnr[few.flatten()])
    found: dict[str, float] = {}
    values: dict[str, Tensor] = {}
    for name, estimator in ESTIMATORS.items():
        values[name] = chain * estimator(prediction, x, eps, step, generator)
        draws = {
            f"value {name}": values[name].detach().double()[:, None].view(*by_point.shape, -1)
        }
        # the raw term has MC's gradient: they differ by log q(z_t|x)/q(z_s|x), without weights
        if name != "raw":
            (push,) = torch.autograd.grad(values[name].sum(), out, retain_graph=True)
            draws[f"gradient {name}"] = torch.einsum(
                "nop,no->np", slopes, push[few.flatten()]
            ).view(*few.shape, -1)
        for key, drawn in draws.items():
            found[key], found[f"{key}, x fixed"] = (
                spread(drawn.flatten(0, 1)).item(),
                spread(drawn).mean().item(),
            )
    gain = chain**2 * step.snr_gain[0].item()
    found["value MC, theory"] = found["value RB"] + 2 * chain * values["RB"].mean().item()
    found["gradient MC, theory"] = (
        found["gradient RB"]
        + gain * torch.linalg.vector_norm(slopes.flatten(1), dim=1).square().mean().item()
    )
    return found


@torch.no_grad()
def along_path(
    model: Model,
    x: Tensor,
    chain: int,
    schedule: vdiff.schedule.Schedule,
    generator: torch.Generator,
    *,
    repeats: int,
) -> dict[str, float]:
    """Variances, x fixed (averaged over x), of estimators of the bound: one random step of it, and
    all along one path.

    The log-ratios along a path sum to log q(z_0 … z_1|x)/p(z_0 … z_1, x): for the best model this
    tends to the constant −log p(x) as the chain grows. The KLs along it do not: each has averaged
    over a z_s that another one knows.
    """
    x = x.repeat_interleave(repeats, 0)
    setting: dict[str, Any] = {
        "schedule": schedule,
        "decoder": Gaussian(),
        "steps": chain,
        "generator": generator,
    }
    path = vdiff.chain.path_bound(model, x, **setting)
    found = {"mean of log-ratios": path.log_ratio.mean().item()}
    for name, total in (("RB", path.rao_blackwell), ("MC", path.log_ratio)):
        drawn = vdiff.elbo(model, x, draws=chain, estimator=ESTIMATORS[name], **setting).drawn
        terms = torch.stack(drawn.terms).double().view(chain, -1, repeats)  # T times each step's
        found[f"one step, {name}"] = (
            (terms.square().mean((0, 2)) - terms.mean((0, 2)).square()).mean().item()
        )
        found[f"path, {name}"] = spread(total.view(-1, repeats, 1)).mean().item()
    return found

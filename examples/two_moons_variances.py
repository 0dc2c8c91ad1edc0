"""The measurements of two_moons.py: variances of one draw of the bound, of its gradient, and of sums along a path."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import vdiff
from vdiff.decoder import Gaussian
from vdiff.gaussian import Step, alpha, diffuse, per_example, sigma
from vdiff.loss import Model
from vdiff.reverse import MonteCarlo, RaoBlackwell, Raw, reverse_kl, reverse_log_ratio

ESTIMATORS = {"RB": RaoBlackwell(), "MC": MonteCarlo(), "raw": Raw()}


def spread(draws: Tensor) -> Tensor:
    """The variance of vectors (…, n, p), summed over p: the trace of their covariance."""
    n = draws.shape[-2]
    norm = torch.linalg.vector_norm  # makes no copy of the draws
    return (norm(draws, dim=-1).square().mean(-1) - norm(draws.mean(-2), dim=-1).square()) * (n / (n - 1))


def jacobian(network: nn.Module, z: Tensor, logsnr: Tensor) -> Tensor:
    """∂ network(z)/∂θ of every example: (batch, dims, parameters)."""

    def one(parameters: dict[str, Tensor], z: Tensor, logsnr: Tensor) -> Tensor:
        return functional_call(network, parameters, (z[None], logsnr[None]))[0]

    parts = vmap(jacrev(one), (None, 0, 0))(dict(network.named_parameters()), z, logsnr)
    return torch.cat([part.flatten(2) for part in parts.values()], 2)


def at_step(
    network: nn.Module, x: Tensor, i: int, chain: int, schedule: vdiff.Schedule, generator: torch.Generator, *, repeats: int, fewer: int
) -> dict[str, float]:
    """Variances of one draw T·K̂ at step i of a chain, its value and its gradient: x random, and x fixed (averaged over x).

    Each point of x is drawn `repeats` times; gradients take `fewer` times as few points and repeats. `network` predicts ε.
    Given z_t, the log-ratio at a sampled z_s is K + √k (ε̂ − ε)·n with n ~ N(0, I) and k = expm1(λ_s − λ_t): Monte Carlo adds
    2 E[K] to the variance of the value, and k E‖∂ε̂/∂θ‖² to that of the gradient ("theory"), whether x is fixed or random.
    """
    by_point = torch.arange(len(x) * repeats).view(len(x), repeats)
    few = by_point[: len(x) // fewer, : repeats // fewer]
    x = x.repeat_interleave(repeats, 0)
    t = torch.full((len(x),), i / chain, dtype=torch.float64)
    logsnr, _ = schedule.levels(t)
    step, eps = Step(logsnr, schedule.delta(t, chain)), torch.randn(x.shape, generator=generator)
    z = diffuse(x, eps, logsnr)
    out = network(z, logsnr).requires_grad_()
    prediction = vdiff.Prediction(z, logsnr, out, vdiff.Eps())
    slopes = jacobian(network, z[few.flatten()], logsnr[few.flatten()])
    found: dict[str, float] = {}
    values: dict[str, Tensor] = {}
    for name, estimator in ESTIMATORS.items():
        values[name] = chain * estimator(prediction, x, eps, step, generator)
        draws = {f"value {name}": values[name].detach().double()[:, None].view(*by_point.shape, -1)}
        if name != "raw":  # whose gradient is that of MC: they differ by log q(z_t|x)/q(z_s|x), which knows no weights
            (push,) = torch.autograd.grad(values[name].sum(), out, retain_graph=True)
            draws[f"gradient {name}"] = torch.einsum("nop,no->np", slopes, push[few.flatten()]).view(*few.shape, -1)
        for key, drawn in draws.items():
            found[key], found[f"{key}, x fixed"] = spread(drawn.flatten(0, 1)).item(), spread(drawn).mean().item()
    gain = chain**2 * step.snr_gain[0].item()
    found["value MC, theory"] = found["value RB"] + 2 * chain * values["RB"].mean().item()
    found["gradient MC, theory"] = found["gradient RB"] + gain * torch.linalg.vector_norm(slopes.flatten(1), dim=1).square().mean().item()
    return found


@torch.no_grad()
def along_path(
    model: Model, x: Tensor, chain: int, schedule: vdiff.Schedule, generator: torch.Generator, *, repeats: int
) -> dict[str, float]:
    """Variances, x fixed (averaged over x), of estimators of the bound: one random step of it, and all along one path.

    A path z_1 … z_0 is drawn backwards, by q(z_1|x) and the posteriors q(z_s|z_t, x): the same joint law as forwards.
    The log-ratios along it sum to log q(z_0 … z_1|x)/p(z_0 … z_1, x), ends included: for the best model this tends to the
    constant −log p(x) as the chain grows. The KLs along it do not: each has averaged over a z_s that another one knows.
    """
    x = x.repeat_interleave(repeats, 0)
    decoder, dims = Gaussian(), x[0].numel()
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    logsnr, _ = schedule.levels(torch.ones(len(x), dtype=torch.float64))
    z = diffuse(x, noise, logsnr)
    ends = 0.5 * (z.square() - noise.square()).sum(1) + 0.5 * dims * torch.nn.functional.softplus(logsnr)  # log q(z_1|x)/p(z_1)
    sums = {"RB": torch.zeros(len(x), dtype=torch.float64), "MC": torch.zeros(len(x), dtype=torch.float64)}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}
    for i in range(chain, 0, -1):
        t = torch.full((len(x),), i / chain, dtype=torch.float64)
        logsnr, _ = schedule.levels(t)
        step, prediction = Step(logsnr, schedule.delta(t, chain)), model(z, logsnr)
        eps = (z - per_example(alpha(logsnr), z) * x) / per_example(sigma(logsnr), z)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        for name, term in (("RB", reverse_kl(prediction, x, eps, step)), ("MC", reverse_log_ratio(prediction, x, eps, step, noise))):
            sums[name] += term
            squares[name] += term.double().square()
        z = step.mean(z, x) + per_example(step.variance.sqrt(), z) * noise
    logsnr, _ = schedule.levels(torch.zeros(len(x), dtype=torch.float64))
    ends = ends - decoder.log_prob(x, z / per_example(alpha(logsnr), z), schedule.logsnr_max)
    found = {"mean of log-ratios": (sums["MC"] + ends).mean().item()}
    for name, total in sums.items():
        of_one_step = chain * squares[name].view(-1, repeats).mean(1) - total.view(-1, repeats).mean(1).square()
        of_path = total if name == "RB" else total + ends  # beside the KLs the ends are exact, and constant
        found[f"one step, {name}"] = of_one_step.mean().item()
        found[f"path, {name}"] = spread(of_path.view(-1, repeats, 1)).mean().item()
    return found

"""What a chain is made of, as figures: its signal and weights, the gradient of a learned variance,
and the bins of the decoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vdiff import Prediction
from vdiff.decoder import DiscretizedGaussian
from vdiff.gaussian import Step, alpha, sigma
from vdiff.parameterization import Eps, PosteriorMean, X
from vdiff.plots import COLORS, REFERENCE, figure, finish, save
from vdiff.reverse import reverse_kl
from vdiff.schedule import Schedule, Tabulated
from vdiff.variance import LearnedLogVariance, LearnedVariance, ReverseVariance

DDPM = Tabulated.linear_betas()


def chain_steps(schedule: Tabulated) -> Step:
    """All steps of a table, the least noisy first: number i ends at level i + 2."""
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    return Step(schedule.at(t)[0], schedule.delta(t, schedule.steps))


def step_weights(schedule: Tabulated) -> dict[str, Tensor]:
    """What multiplies the squared error of each target in the bound's step, ½ expm1(Δ)/κ²: for the
    posterior mean this is 1/(2β̃), for x half the difference in SNR.
    """
    step = chain_steps(schedule)
    targets = {"posterior mean": PosteriorMean(schedule, schedule.steps), "x": X(), "ε": Eps()}
    return {
        name: 0.5 * step.snr_gain * target.inverse_kappa2(step.logsnr_t)
        for name, target in targets.items()
    }


def variance_gradients(
    variances: Tensor, posterior: float = 0.01, error: float = 0.05
) -> dict[str, tuple[Tensor, Tensor]]:
    """dK/dΣ and dK/dlog Σ of the step's KL at each Σ: by autograd through the library, and in
    closed form.

    For a posterior of variance σ̃² and a squared error δ² of the mean, dK/dΣ = ½(1/Σ − (σ̃² +
    δ²)/Σ²), and Σ times that with respect to log Σ.
    """
    n = len(variances)
    logsnr_t = torch.zeros(n, dtype=torch.float64)
    step = Step(logsnr_t, torch.full_like(logsnr_t, _delta_of(posterior)))
    eps_error = error**0.5 / step.coefficient_eps[:, None]
    nothing = torch.zeros(n, 1, dtype=torch.float64)

    def by_autograd(variance: ReverseVariance, leaf: Tensor, head: Tensor) -> Tensor:
        prediction = Prediction(nothing, logsnr_t, eps_error, Eps(), variance, head)
        kl = reverse_kl(prediction, nothing, nothing, step)
        return torch.autograd.grad(kl.sum(), leaf)[0]

    direct, log = variances.clone().requires_grad_(), variances.log().requires_grad_()
    slope = 0.5 * (1 / variances - (posterior + error) / variances.square())
    head = torch.log(torch.expm1(direct))[:, None]  # the softplus undone
    return {
        "Σ": (by_autograd(LearnedVariance(), direct, head), slope),
        "log Σ": (by_autograd(LearnedLogVariance(), log, log[:, None]), variances * slope),
    }


def _delta_of(variance: float) -> float:
    """Δ of the step that ends at λ_t = 0 with posterior variance (1 − e^{−Δ}) sigmoid(−Δ), by
    bisection."""
    low, high, zero = 0.0, 0.5, torch.zeros((), dtype=torch.float64)
    for _ in range(60):
        middle = 0.5 * (low + high)
        found = Step(zero, zero + middle).variance.item()
        low, high = (middle, high) if found < variance else (low, middle)
    return low


def draw_gradients(path: Path) -> None:
    """The gradient of a learned variance: autograd's points on the closed form's line, and what a
    softplus does to it."""
    variances = torch.logspace(-4.5, 0.5, 26, dtype=torch.float64)
    line = torch.logspace(-4.5, 0.5, 800, dtype=torch.float64)
    _, axes = figure(1, 2, height=4.4)
    points, closed = variance_gradients(variances), variance_gradients(line)
    for place, (name, (found, _)) in zip(axes, points.items(), strict=True):
        place.loglog(line, closed[name][1].abs(), label="closed form")
        place.loglog(variances, found.abs(), "o", markersize=4, label="autograd")
        for value in (1e-3, 1e-4):
            exact = variance_gradients(torch.tensor([value], dtype=torch.float64))[name][1].item()
            text, beside = f"Σ = {value:g}: {exact:.4g}", {"textcoords": "offset points"}
            place.annotate(text, (value, abs(exact)), xytext=(14, 4), fontsize=8, **beside)
            place.plot(value, abs(exact), "ks", markersize=7, fillstyle="none")
        place.axvline(0.06, label="the best Σ, 0.06", **REFERENCE)
        place.set(
            xlabel="Σ (posterior variance 0.01, squared error 0.05)",
            ylabel=f"|dK/d {name}|, nats",
            title=f"the gradient by {name} is {'∝ 1/Σ²' if name == 'Σ' else '∝ 1/Σ'} for small Σ",
        )
    axes[1].loglog(
        line,
        (-torch.expm1(-line) * closed["Σ"][1]).abs(),
        label="by the output of a softplus that says Σ",
    )
    for place in axes:
        finish(place, place.get_title())
        place.set_title("")
    save(path, axes)


def draw_chain(path: Path, table: Tabulated) -> None:
    """√ᾱ by level, the weight of each step's error in three units, and β̃/β, for DDPM's 1000
    levels."""
    _, (signal, weights, ratio) = figure(1, 3, height=4.2)
    schedules: dict[str, Schedule] = {
        "DDPM's linear β": DDPM,
        "cosine": Tabulated.cosine_betas(),
        f"this ladder, {len(table.table)} levels": table,
    }
    for (name, one), style in zip(schedules.items(), ("-", "-", "--"), strict=True):
        t = torch.linspace(0, 1, 501, dtype=torch.float64)
        (drawn,) = signal.plot(t, alpha(one(t)), style, label=f"√ᾱ, {name}")
        if style == "-":
            signal.plot(t, sigma(one(t)), ":", color=drawn.get_color(), label=f"√(1 − ᾱ), {name}")
    signal.set(
        xlabel="level over the number of levels",
        ylabel="scale",
        title="signal and noise",
        ylim=(0, 1.02),
    )
    level = torch.arange(2, len(DDPM.table) + 1)
    for name, weight in step_weights(DDPM).items():
        weights.loglog(level, weight, label=f"{name}: {weight.min():.3g} … {weight.max():.4g}")
    weights.set(xlabel="level t, DDPM's linear β", ylabel="weight of the squared error")
    weights.set(title="the bound's weight of each step", ylim=(1e-7, 1e7))
    for name, one in {"DDPM's linear β": DDPM, "cosine": Tabulated.cosine_betas()}.items():
        step = chain_steps(one)
        ratio.semilogx(level, torch.exp(-step.log_variance_ratio), label=name)
    ratio.set(xlabel="level t", ylabel="β̃ / β", ylim=(0.4, 1.02))
    ratio.set_title("posterior over forward variance")
    for place in (signal, weights, ratio):
        finish(place, place.get_title())
        place.set_title("")
    save(path, signal)


def draw_decoder(path: Path, std: float = 0.3, grey_levels: int = 17) -> None:
    """The bins of the discretized Gaussian, the last open to +∞, and their total mass with the
    edges told by x or by x − μ."""
    _, (left, right) = figure(1, 2, height=4.0)
    decoder, mean = DiscretizedGaussian(grey_levels, variance=std**2), 0.8
    half = decoder.spacing / 2
    axis = torch.linspace(-0.4, 2.0, 600, dtype=torch.float64)
    density = torch.exp(-0.5 * ((axis - mean) / std) ** 2) / std / (2 * torch.pi) ** 0.5
    left.plot(axis, density, color="black", linewidth=1)
    for level, color in ((grey_levels - 5, COLORS[0]), (grey_levels - 1, COLORS[1])):
        center = decoder.level_values[level].item()
        last = level == grey_levels - 1
        inside = (axis >= center - half) & ((axis <= center + half) | last)
        mass = decoder.log_prob(torch.tensor([[level]]), torch.tensor([[mean]]), 0.0).exp().item()
        style = {"alpha": 0.5, "color": color, "where": inside.tolist()}
        label = f"level {level}: {mass:.3f}" + (", open to +∞" if last else "")
        left.fill_between(axis, 0, density, label=label, **style)
    left.vlines(decoder.level_values[4:] - half, 0, 0.06, color="gray", linewidth=0.7)
    left.set(
        xlabel="x",
        ylabel=f"N(x; {mean}, {std}²)",
        title="a level's probability is its bin's",
        ylim=(0, 1.5),
    )
    means = torch.linspace(-1, 1, 201)
    right.plot(means, total_mass(decoder, means), label="edges told by x (right: 1)")
    right.plot(means, mass_of_shifted_edges(decoder, means), label="edges told by x − μ (wrong)")
    right.set(
        xlabel="mean μ",
        ylabel=f"sum over the {grey_levels} levels",
        title=f"edges told by x − μ lose probability, σ = {std}",
        ylim=(0.5, 1.05),
    )
    for place in (left, right):
        finish(place, place.get_title())
        place.set_title("")
    save(path, left)


def total_mass(decoder: DiscretizedGaussian, means: Tensor) -> Tensor:
    """The decoder's probabilities summed over all levels, at each mean."""
    levels = torch.arange(decoder.levels).repeat(len(means))[:, None]
    repeated = means.double().repeat_interleave(decoder.levels)[:, None]
    return decoder.log_prob(levels, repeated, 0.0).double().exp().view(len(means), -1).sum(1)


def mass_of_shifted_edges(decoder: DiscretizedGaussian, means: Tensor) -> Tensor:
    """The same sum where x − μ is asked whether it is below −0.999 or above 0.999, as a published
    algorithm does."""
    assert decoder.variance is not None
    center = decoder.level_values - means.double()[:, None]
    edges = (center - decoder.spacing / 2, center + decoder.spacing / 2)
    below, above = (torch.special.ndtr(edge / decoder.variance**0.5) for edge in edges)
    inner = torch.where(center > 0.999, 1 - below, above - below)
    return torch.where(center < -0.999, above, inner).sum(1)

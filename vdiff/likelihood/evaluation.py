"""Bits per dimension of a model on a whole data set, each number with its errors."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.bound import Bound
from vdiff.decoder import Decoder
from vdiff.errors import check_positive_int, must
from vdiff.loss import Model, elbo
from vdiff.parameterization import Prediction
from vdiff.profile import Profile
from vdiff.schedule import Schedule
from vdiff.times import generator_of, on_chain, stratified


@dataclass(frozen=True)
class Estimate:
    """A mean over images in bits/dim, with its two errors.

    `monte_carlo` is the standard error on the given images (what more draws would lessen); `images` that over images
    (what another test set would give). The spread over images already contains the Monte Carlo part: never add them.

    >>> print(Estimate(1.7966, 0.0012, 0.0131))
    1.7966 ± 0.0012 (Monte Carlo) ± 0.0131 (images)
    """

    value: float
    monte_carlo: float
    images: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.monte_carlo:.4f} (Monte Carlo) ± {self.images:.4f} (images)"


@dataclass(frozen=True)
class Report:
    """The bound and its parts as `Estimate`s in bits/dim, and what was done to get them.

    >>> part = Estimate(0.5, 0.001, 0.01)
    >>> print(Report(part, part, part, Estimate(1.5, 0.002, 0.02), {"draws": 8}))
    bits/dim            value   Monte Carlo SE   SE over images
    prior              0.5000           0.0010           0.0100
    diffusion          0.5000           0.0010           0.0100
    reconstruction     0.5000           0.0010           0.0100
    total              1.5000           0.0020           0.0200
    draws 8
    """

    prior: Estimate
    diffusion: Estimate
    reconstruction: Estimate
    total: Estimate
    protocol: dict[str, object]

    def __str__(self) -> str:
        rows = [f"{'bits/dim':<16}{'value':>9}{'Monte Carlo SE':>17}{'SE over images':>17}"]
        for name in ("prior", "diffusion", "reconstruction", "total"):
            e: Estimate = getattr(self, name)
            rows.append(f"{name:<16}{e.value:>9.4f}{e.monte_carlo:>17.4f}{e.images:>17.4f}")
        return "\n".join([*rows, ", ".join(f"{k} {v}" for k, v in self.protocol.items())])


@torch.no_grad()
def evaluate(
    model: Model,
    data: Tensor,
    *,
    schedule: Schedule,
    decoder: Decoder,
    steps: int | None = None,
    draws: int = 32,
    replicates: int = 4,
    batch: int = 1024,
    seed: int = 0,
    profile: Profile | None = None,
    progress: Callable[[int, int], None] | None = None,
    **condition: Tensor,
) -> Report:
    """The bound of a model on a whole data set, with honest standard errors.

    Each image gets `replicates` independent stratified grids of `draws` times, with noise of its own; the spread of an
    image's replicates is its Monte Carlo error. An image's draws are a function of the seed and its place in the data,
    so that its answer does not depend on the batches. Every image counts once; the model is in evaluation mode and
    TF32 is off meanwhile.

    Args:
        model, data, schedule, decoder, steps: as in `elbo`.
        draws: times in a grid, hence model evaluations per image and replicate.
        replicates: independent grids per image, at least 2.
        batch: how many (image, time) pairs the model sees at once, but at least one image's grid.
        seed: of times and noise.
        profile: collects ‖ε − ε̂‖² by λ on the way, clustered by image.
        progress: called as progress(done, all) with numbers of model evaluations.
        condition: handed to the model, a row for each image.

    A model may say what was done to it (`Guided`, `Clipped`): its `protocol` goes into the report's.

    Raises:
        ValueError: where the bound of an image is not finite, and as `elbo`.

    >>> from vdiff import Categorical, Denoiser, Linear, X
    >>> model = Denoiser(lambda z, logsnr: torch.zeros_like(z), X())
    >>> report = evaluate(model, torch.randint(0, 17, (8, 1, 8, 8)), schedule=Linear(), decoder=Categorical(17), draws=8)
    >>> report.total.value > 4.09
    True
    """
    for name, number in (("draws", draws), ("replicates", replicates), ("batch", batch)):
        check_positive_int("evaluate", name, number)
    if replicates < 2:
        raise ValueError(must("evaluate", "replicates", "be at least 2", replicates, "one grid has no standard error"))
    for name, value in condition.items():
        if not isinstance(value, Tensor) or value.shape[:1] != data.shape[:1]:
            came = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(must("evaluate", name, f"be a tensor with a row for each of {len(data)} images", came))
    images, chunk, done = len(data), max(1, batch // draws), 0
    parts = torch.zeros(3, replicates, images, dtype=torch.float64)
    with evaluating(model):
        for start in range(0, images, chunk):
            rows = data[start : start + chunk]
            repeated = rows.repeat_interleave(draws, 0)
            given: dict[str, Any] = {name: value[start : start + chunk].repeat_interleave(draws, 0) for name, value in condition.items()}
            seen = []
            for replicate in range(replicates):
                t, eps = _draws(
                    decoder.encode(rows),
                    draws,
                    [generator_of(seed, replicate, f"image {start + i}", rows.device) for i in range(len(rows))],
                )
                t = t if steps is None else on_chain(t, steps)
                watched = _Watched(model)
                bound = elbo(watched, repeated, schedule=schedule, decoder=decoder, steps=steps, t=t, eps=eps, **given)
                parts[:, replicate, start : start + len(rows)] = _means(bound, draws)
                if profile is not None:
                    seen.append((watched.first.logsnr, watched.first.squared_error(decoder.encode(repeated), eps)))
                done += len(t)
                if progress is not None:
                    progress(done, replicates * images * draws)
            if profile is not None:
                cluster = torch.arange(len(rows), device=data.device).repeat_interleave(draws).repeat(replicates)
                profile.update(torch.cat([logsnr for logsnr, _ in seen]), torch.cat([error for _, error in seen]), cluster)
    parts = torch.cat([parts, parts.sum(0, keepdim=True)]) / (data[0].numel() * math.log(2))
    bad = ~torch.isfinite(parts[3])
    if bad.any():
        raise ValueError(
            must(
                "evaluate",
                "model",
                "give a finite bound",
                f"NaN or infinity on image {int(bad.any(0).nonzero()[0])} (first of {int(bad.any(0).sum())})",
            )
        )
    protocol: dict[str, object] = {
        "images": images,
        "T": "∞" if steps is None else steps,
        "decoder": repr(decoder),
        "draws": draws,
        "replicates": replicates,
        "seed": seed,
    }
    protocol.update(getattr(model, "protocol", {}))
    prior, diffusion, reconstruction, total = (_estimate(part) for part in parts)
    return Report(prior, diffusion, reconstruction, total, protocol)


class _Watched:
    """A model that keeps its first prediction: the diffusion term's, before a decoder's that looks at the network."""

    first: Prediction

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        prediction: Prediction = self.model(z, logsnr, **condition)
        if not hasattr(self, "first"):
            self.first = prediction
        return prediction


def _draws(x: Tensor, draws: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """For each image of x a stratified grid of times and its noise, from a generator of its own."""
    t = [stratified(draws, generator=generator, device=x.device) for generator in generators]
    eps = [torch.randn(draws, *x.shape[1:], dtype=x.dtype, device=x.device, generator=generator) for generator in generators]
    return torch.cat(t), torch.cat(eps)


def _means(bound: Bound, draws: int) -> Tensor:
    """The three parts averaged over each image's draws: (3, images), in float64 on the CPU."""
    parts = torch.stack([bound.prior, bound.diffusion, bound.reconstruction]).double()
    return parts.view(3, -1, draws).mean(2).cpu()


def _estimate(part: Tensor) -> Estimate:
    """From (replicates, images) to a mean and its two standard errors."""
    replicates, images = part.shape
    by_image = part.mean(0)
    monte_carlo = (part.var(0).sum() / replicates).sqrt() / images
    over_images = by_image.std().item() / math.sqrt(images) if images > 1 else math.nan
    return Estimate(by_image.mean().item(), monte_carlo.item(), over_images)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """The model in evaluation mode and TF32 off; both back as they were."""
    modules = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    precision = matmul.allow_tf32, convolution.allow_tf32
    try:
        if isinstance(model, nn.Module):
            model.eval()
        matmul.allow_tf32 = convolution.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = precision
        for module in modules:
            module.training = True


__all__ = ["Estimate", "Report", "evaluate"]

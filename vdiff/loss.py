"""Every objective is one equation, L_w(x) = ½ E_{t, ε}[ w(λ_t) (−dλ/dt) ‖ε − ε̂(z_t, λ_t)‖² ]."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._arguments import (
    Condition,
    Data,
    Model,
    decoder_factorises,
    decoder_fits,
    decoder_of_process,
    dims_fit_data,
    dims_fit_x,
    estimator_on_chain,
    finite_end,
    fixed_for_draws,
    known_range,
    noise_on_chain,
    one_draw_of_given_times,
    original,
    same_noise_for_all,
    synchronised,
    variance_on_chain,
    variance_trained,
    weight_of_noise,
)
from vdiff._diffusion import GAUSSIAN, Diffusion, clone_if_inference, diffusion_of
from vdiff._inputs import Mask, Noise, OneTime, Random, Steps, Times
from vdiff._known_range import note_training
from vdiff._partial import Partial
from vdiff._validate import Count, validated
from vdiff.bound import Bound, Drawn
from vdiff.decoder import Decoder
from vdiff.gaussian import diffuse, masked
from vdiff.prediction import Prediction
from vdiff.reverse import Estimator, RaoBlackwell
from vdiff.schedule import Schedule
from vdiff.times import grid
from vdiff.weighting import ELBO, WeightFunction
from vdiff.weighting._check import divides_table, same_chain, sound_on_cpu

_ELBO = ELBO()
_RAO_BLACKWELL = RaoBlackwell()
ENCODED = "elbo takes a decoder; here x is encoded already"
WEIGHTED = "the bound's weighting is ELBO(); weighted_elbo takes another"


@validated(
    rules=[
        synchronised, variance_trained, noise_on_chain, divides_table, same_chain, sound_on_cpu,
        weight_of_noise, known_range, same_noise_for_all,
        dims_fit_x, fixed_for_draws,
    ],
    elsewhere={"decoder": ENCODED, "draws": "elbo(…, draws=) averages several draws"},
)  # fmt: skip
def weighted_elbo(
    model: Model,
    x: Data,
    *,
    schedule: Schedule,
    weighting: WeightFunction = _ELBO,
    steps: Steps | None = None,
    mask: Mask | None = None,
    absent: Mask | None = None,
    t: Times | None = None,
    eps: Noise | None = None,
    generator: Random | None = None,
    condition: Condition = None,
) -> Float[Tensor, " batch"]:
    """The weighted diffusion loss of each example, in nats. Take `.mean()` to train.

        L_w(x) = ½ E_{t ~ U(0,1), ε}[ w(λ_t) · (−dλ/dt) · ‖ε − ε̂(z_t, λ_t)‖² ]

    in continuous time, and on a chain of T steps with t = i/T and s = t − 1/T

        L_w(x) = ½ E_{i ~ U{1..T}, ε}[ w(λ_t) · T expm1(λ_s − λ_t) · ‖ε − ε̂(z_t, λ_t)‖² ]

    with the norm summed over dimensions. Each call draws one (t, ε) per example. The times of a
    batch are stratified, and each of them is uniform, so every example's loss is unbiased. With
    `weighting=ELBO()` this is the diffusion term of the negative evidence lower bound; on a chain,
    with the posterior's variance. `elbo` adds the other two terms.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr, **condition), such as a
            `Denoiser` or an oracle. With a `vdiff.discrete.TokenDenoiser`, x are tokens, and its
            process says how they are corrupted and what ½ ‖ε − ε̂‖² is there.
        x: (batch, …) floating data as the network sees it. Half precision is computed in float32.
            Or integer tokens.
        schedule: λ(t). In continuous time it changes the variance of the loss, and never its
            expectation between given ends; one over dimensions also changes the expectation,
            unless the denoiser is exact and the weighting ELBO(). On a chain it also sets the
            bound, and the last λ of a table may be −∞. Learned ends get no gradient here, because
            the diffusion term alone would shrink the range without limit. A learned shape gets the
            gradient of the loss's variance (`vdiff.schedule.learned`).
        weighting: w(λ), a `Weighting` or any function of (batch,) log-SNR.
        steps: T for the discrete chain; None for continuous time. On a chain this loss never
            draws t = 0, where the last step of `sample` calls the network. `hybrid_loss` does, and
            `elbo` with a decoder that uses the network.
        mask: bool, True where x is modelled; it broadcasts over x, or over one example. The other
            dimensions are given: the model sees them clean, at λ_max, and the loss is of
            −log p(x_modelled | x_given), summed over the modelled dimensions. The model must take
            a field of λ (`Denoiser`).
        absent: bool, True where a value is missing or padded. The model sees noise there, at
            λ_min, and the loss leaves it out. x is not read there, and may be NaN.
        t: (batch,) times in [0, 1] instead of drawn ones; on a chain, i/T. Their values are
            checked on a CPU, and on other devices where no gradient is recorded. Or a field of
            times that broadcasts over x, such as (batch, tokens, 1): each dimension has its own
            λ(t), and the sum of their losses bounds nothing (Diffusion Forcing,
            arXiv:2407.01392).
        eps: noise of the shape of x instead of drawn noise; several draws share it.
        generator: for drawing t and eps.
        condition: what the network gets besides z and its time, by the names of its arguments:
            `condition={"label": labels}`. A name may be `steps` too.

    Raises:
        TypeError: if x is not a floating tensor, or a keyword is unknown.
        ValueError: if shapes, devices or times do not fit, if the batch is empty, if a weight is
            infinite at λ = −∞, or if x is not finite outside of what is absent (checked with a
            mask or absent values).

    Kingma et al., Variational Diffusion Models, arXiv:2107.00630; Kingma & Gao, arXiv:2303.00848.

    >>> from vdiff.oracle import GaussianMixture
    >>> from vdiff.schedule import Cosine
    >>> from vdiff.weighting import Sigmoid
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> loss = weighted_elbo(oracle, oracle.sample(64), schedule=Cosine(), weighting=Sigmoid(2.0))
    >>> loss.shape
    torch.Size([64])
    """
    part, process = Partial.of(x, mask, absent), diffusion_of(model)
    x = part.clean(x, process.blank)
    x, t, eps = complete(x, t, eps, steps, generator, process, part.modelled)
    at = process.levels(schedule, t, steps, ndim=x.ndim)
    model = part.model_of(model, x, partial(process.pure, x, eps), schedule)
    prediction = model(process.corrupt(x, eps, at.logsnr), at.logsnr, **(condition or {}))
    loss = prediction.loss(x, eps, at, weighting(at.logsnr))
    note_training(original(model), schedule, loss)
    return at.learn(loss, x[0].numel())


@validated(
    rules=[
        synchronised, finite_end, divides_table, decoder_fits, one_draw_of_given_times,
        estimator_on_chain, variance_on_chain, known_range, decoder_factorises,
        dims_fit_data, decoder_of_process, fixed_for_draws,
    ],
    elsewhere={"weighting": WEIGHTED},
)  # fmt: skip
def elbo(
    model: Model,
    data: Tensor,
    *,
    schedule: Schedule,
    decoder: Decoder | None = None,
    steps: Steps | None = None,
    draws: Count = 1,
    estimator: Estimator = _RAO_BLACKWELL,
    mask: Mask | None = None,
    absent: Mask | None = None,
    t: OneTime | None = None,
    eps: Noise | None = None,
    generator: Random | None = None,
    condition: Condition = None,
) -> Bound:
    """The negative evidence lower bound of each example, in its three parts.

        −log p(x) ≤ KL(q(z₁|x) ‖ N(0, I)) + E[−log p(x|z₀)] + L(x)

    The prior is exact. The reconstruction is exact too, unless the decoder uses the network. The
    diffusion term is the mean of `draws` unbiased draws per example. The bound trains everything,
    including learned ends of the schedule.

    Args:
        model, schedule, steps, mask, absent, t, eps, generator, condition: as in `weighted_elbo`.
            With a mask the three parts and `dims` are those of the modelled dimensions. A
            schedule over dimensions is a path from noise to data, and each has a bound of its own.
            `t` is (batch,): independent times lie on no path.
        data: (batch, …) integer levels for a discrete decoder, floating data for a Gaussian one;
            tokens for a `TokenDenoiser`.
        decoder: p(data | z₀) with its encoding, for instance `Categorical(levels=256)`. A
            `TokenDenoiser` has none: its process decodes.
        draws: how many (t, ε) per example, one t in each of as many equal strata. Each costs one
            evaluation of the network. `draws=steps` sums a chain over all its steps.
        estimator: of a chain's step: `RaoBlackwell()`, its KL in closed form, or `MonteCarlo()`,
            `Raw()`. A chain's bound depends on the model's reverse variance. In continuous time
            every variance that tends to the posterior's gives the same bound.

    Returns:
        A `Bound` in nats per example, with `.total`, `.bits_per_dim` and, on a chain, `.terms()`.

    Raises:
        TypeError, ValueError: as `weighted_elbo`; also if data does not fit the decoder, and for
            learned ends with a Gaussian decoder, under which λ_max would grow without limit.

    >>> from vdiff import Denoiser
    >>> from vdiff.decoder import Categorical
    >>> from vdiff.parameterization import X
    >>> from vdiff.schedule import Linear
    >>> model = Denoiser(lambda z, logsnr: torch.zeros_like(z), X())
    >>> data, decoder = torch.randint(0, 17, (8, 1, 8, 8)), Categorical(levels=17)
    >>> elbo(model, data, schedule=Linear(), decoder=decoder).bits_per_dim.shape
    torch.Size([8])
    """
    part, process = Partial.of(data, mask, absent), diffusion_of(model)
    x = process.encode(data := part.clean(data, process.blank), decoder)
    times = draw_times(x, draws, steps, generator) if t is None else (clone_if_inference(t),)
    latent: Tensor | float = 0.0
    if schedule.depends_on_data:
        schedule, latent = schedule.for_data(x, generator)
    logsnr_max, logsnr_min = ends = schedule.ends_of(x.ndim, detach=False)
    diffusion = []
    for t in times:
        at = process.levels(schedule, t, steps, detach_ends=False, ndim=x.ndim)
        noise = process.noise(x, eps, generator, part.modelled)
        pure = partial(process.pure, x, noise)
        predict = part.model(partial(model, **(condition or {})), x, pure, *ends)
        prediction = predict(process.corrupt(x, noise, at.logsnr), at.logsnr)
        loss = process.term(prediction, x, noise, at, steps, estimator, generator)
        note_training(original(model), schedule, loss)
        diffusion.append(at.learn(loss, x[0].numel()))
    return Bound(
        prior=process.prior(x, logsnr_min, part.modelled)
        + (part.total(estimator.ends(logsnr_max, logsnr_min), x) + part.where_any(latent)),
        diffusion=torch.stack(diffusion).mean(0),
        reconstruction=process.decoded(
            decoder, data, x, logsnr_max, predict, eps, generator, **masked(part.modelled)
        ),
        dims=part.dims(x),
        drawn=None if steps is None else Drawn(steps, times, tuple(diffusion)),
    )


def complete(
    x: Tensor,
    t: Tensor | None,
    eps: Tensor | None,
    steps: int | None,
    generator: torch.Generator | None,
    process: Diffusion = GAUSSIAN,
    modelled: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x as it is computed with (float32 or wider), with a time and noise for each example, drawn
    if not given."""
    x = process.ready(x)
    t = draw_times(x, 1, steps, generator)[0] if t is None else clone_if_inference(t)
    return x, t, process.noise(x, eps, generator, modelled)


def draw_times(
    x: Tensor, draws: int, steps: int | None, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """Stratified times for each example, `draws` of them."""
    return grid(len(x), draws, steps=steps, generator=generator, device=x.device).unbind()


def predict_at(
    model: Model, x: Tensor, eps: Tensor, logsnr: Tensor, condition: dict[str, Any]
) -> Prediction:
    """The model's prediction at z = α x + σ ε."""
    return model(diffuse(x, eps, logsnr), logsnr, **condition)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Turns autocast off if it is on. The meta device has no autocast."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


__all__ = ["Model", "WeightFunction", "elbo", "weighted_elbo"]

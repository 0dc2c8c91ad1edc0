"""The one equation: every objective is L_w(x) = ½ E_{t, ε}[ w(λ_t) (−dλ/dt) ‖ε − ε̂(z_t, λ_t)‖²
]."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vdiff.bound import Bound, Drawn
from vdiff.condition import Condition, conditions
from vdiff.decoder import Decoder, Gaussian
from vdiff.denoiser import check_no_data_parallel, note_training, warn_beyond
from vdiff.errors import (
    check_data,
    check_generator,
    check_like,
    check_positive_int,
    check_steps,
    check_times,
    checking,
    must,
    out_of_memory,
    readable,
    shown,
)
from vdiff.gaussian import PURE, Step, at_least_float32, diffuse, prior_kl
from vdiff.parameterization import Prediction
from vdiff.reverse import Estimator, RaoBlackwell
from vdiff.schedule import Schedule
from vdiff.schedule.base import check_schedule
from vdiff.times import grid
from vdiff.weighting import (
    ELBO,
    check_chain,
    check_values_once,
    check_weight,
    check_weight_function,
)

Model = Callable[..., Prediction]
WeightFunction = Callable[[Tensor], Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None

LARGEST = 1e30  # a weight beyond it is infinite, where −600 stands for −∞
_ELBO = ELBO()
_RAO_BLACKWELL = RaoBlackwell()


def weighted_elbo(
    model: Model,
    x: Tensor,
    *,
    schedule: Schedule,
    weighting: WeightFunction = _ELBO,
    steps: int | None = None,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    condition: Condition = None,
    **keywords: Any,
) -> Float[Tensor, " batch"]:
    """The weighted diffusion loss of this model on this data: a (batch,) tensor, nats per example;
    take `.mean()`.

        L_w(x) = ½ E_{t ~ U(0,1), ε}[ w(λ_t) · (−dλ/dt) · ‖ε − ε̂(z_t, λ_t)‖² ]
        (continuous time) L_w(x) = ½ E_{i ~ U{1..T}, ε}[ w(λ_t) · T expm1(λ_s − λ_t) · ‖ε − ε̂(z_t,
        λ_t)‖² ],   t = i/T, s = t − 1/T

    with the norm summed over dimensions. Each call draws one (t, ε) per example: the times of a
    batch are one grid, and each of them is uniform by itself, so that every example's loss is
    unbiased. With `weighting=ELBO()` this is the diffusion term of the negative evidence lower
    bound (on a chain, of one with the posterior's variance); `elbo` adds the other two.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr, **condition), such as a
            `Denoiser` or an oracle.
        x: (batch, …) data as the network sees it, floating. Half precision is computed in float32.
        schedule: where to look. In continuous time it moves only the variance of the loss, never
            its expectation between given ends; a chain of T steps has the bound of its own levels.
            On a chain the last level of a table may be λ = −∞. Learned ends get no gradient here:
            the diffusion term alone would shrink the range for ever. A learned shape gets that of
            the variance (`vdiff.schedule.learned`).
        weighting: w(λ), a `Weighting` or any function of (batch,) log-SNR.
        steps: T for the discrete chain; None for continuous time. On a chain no draw trains the
            level t = 0, at which the last step of `sample` asks the network: `hybrid` and `elbo`
            with a decoder that looks at the network do.
        t: (batch,) times in [0, 1] to use as they are, instead of drawing (on a chain, i/T). Their
            values are checked on a CPU, and elsewhere where no gradient is recorded.
        eps: noise of the shape of x to use instead of drawing (with several draws, in each of
            them).
        generator: for drawing t and eps.
        condition: what the model is told beside z and λ, by name: `condition={"label": labels}`.
            Any name may be used, `steps` for instance. Keywords that are no argument of this
            function are conditions too: `label=labels`. A value that is no mapping is passed on as
            the network's own argument `condition`.

    Raises:
        TypeError: for x that is not a floating tensor, a misspelt keyword, and a condition that is
            given both ways.
        ValueError: for shapes, devices or times that do not fit, and an empty batch; for a weight
            that is infinite at λ = −∞.

    Kingma et al., Variational Diffusion Models, arXiv:2107.00630; Kingma & Gao, arXiv:2303.00848.

    >>> from vdiff import Cosine, GaussianMixture, Sigmoid
    >>> oracle = GaussianMixture([1.0], [[0.0]], [[1.0]])
    >>> loss = weighted_elbo(oracle, oracle.sample(64), schedule=Cosine(), weighting=Sigmoid(2.0))
    >>> loss.shape
    torch.Size([64])
    """
    condition = conditions("weighted_elbo", condition, keywords)
    if checking():
        check_data("weighted_elbo", x)
        check_call("weighted_elbo", model, schedule, steps, to_noise=True)
        check_steps_to_noise("weighted_elbo", schedule, steps)
        check_chain("weighted_elbo", weighting, schedule, steps)
        check_weight_function("weighted_elbo", weighting)
        if x.device.type == "cpu":  # elsewhere values are not read
            check_values_once("weighted_elbo", weighting, schedule)
    x, (t,), eps = draw("weighted_elbo", x, steps, t, eps, generator)
    logsnr, measure, follow = schedule.look(t, steps)
    pure = schedule.reaches_noise
    loss = _diffusion(model, x, eps, logsnr, measure, weighting, condition, pure=pure)
    if checking():
        note_training(model, schedule, loss)
    return follow(loss, x[0].numel())


def elbo(
    model: Model,
    data: Tensor,
    *,
    schedule: Schedule,
    decoder: Decoder,
    steps: int | None = None,
    draws: int = 1,
    estimator: Estimator = _RAO_BLACKWELL,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    condition: Condition = None,
    **keywords: Any,
) -> Bound:
    """The whole negative evidence lower bound of this model on this data, in its three parts.

        −log p(x) ≤ KL(q(z₁|x) ‖ N(0, I)) + E[−log p(x|z₀)] + L(x)

    The prior is exact, the reconstruction too unless the decoder looks at the network, and the
    diffusion term is the mean of `draws` unbiased draws per example. It trains everything, learned
    ends of the schedule included.

    Args:
        model, schedule, steps, t, eps, generator, condition: as in `weighted_elbo`.
        data: (batch, …) data as it is: integer levels for a discrete decoder, floating for a
            Gaussian one.
        decoder: p(data | z₀) with its encoding, for instance `Categorical(levels=256)`.
        draws: how many (t, ε) per example, one t in each of as many equal strata; `draws=steps`
            sums a chain over all its steps. Each costs an evaluation of the network.
        estimator: of a chain's step: `RaoBlackwell()`, its KL in closed form, or `MonteCarlo()`,
            `Raw()`. The model's own reverse variance counts on a chain; in continuous time every
            choice that tends to the posterior's has the same bound.

    Returns:
        A `Bound`: nats per example, positive, with `.total` and `.bits_per_dim`; on a chain
        `.terms()` by name.

    Raises:
        TypeError, ValueError: as `weighted_elbo`; also where data does not fit the decoder, and
            for learned ends with a Gaussian decoder, under which λ_max runs to infinity.

    >>> from vdiff import Categorical, Denoiser, Linear, X
    >>> model = Denoiser(lambda z, logsnr: torch.zeros_like(z), X())
    >>> bound = elbo(model, torch.randint(0, 17, (8, 1, 8, 8)), schedule=Linear(), decoder=Categorical(levels=17))
    >>> bound.bits_per_dim.shape
    torch.Size([8])
    """
    condition = conditions("elbo", condition, keywords)
    if checking():
        check_call("elbo", model, schedule, steps)
        check_chain("elbo", None, schedule, steps)
        check_decoder("elbo", decoder, schedule)
        check_draws("elbo", draws, t)
        _check_estimator(estimator, steps)
    given = eps  # the noise of z₀ too, for a decoder that looks at the network
    x, times, eps = draw("elbo", decoder.encode(data), steps, t, eps, generator, draws)
    logsnr_max, logsnr_min = schedule.ends(pin=False)
    chain = None if steps is None else _Chain(steps, estimator, generator)
    diffusion: list[Tensor] = []
    for one in times:
        logsnr, measure, follow = schedule.look(one, steps, pin=False)
        noise = eps if given is not None or not diffusion else standard_normal(x, generator)
        diffusion.append(
            follow(
                _diffusion(model, x, noise, logsnr, measure, _ELBO, condition, chain), x[0].numel()
            )
        )

    if checking():
        note_training(model, schedule, diffusion[0])

    def predict(z: Tensor, level: Tensor) -> Prediction:
        return model(z, level, **condition)

    prior = prior_kl(x, logsnr_min)
    if not isinstance(estimator, RaoBlackwell):
        prior = prior + estimator.ends(x[0].numel(), logsnr_max, logsnr_min)
    return Bound(
        prior=prior,
        diffusion=diffusion[0] if draws == 1 else torch.stack(diffusion).mean(0),
        reconstruction=decoder.reconstruction(
            usable(data), x, logsnr_max, predict, None if given is None else eps, generator
        ),
        dims=x[0].numel(),
        drawn=None if steps is None else Drawn(steps, times, tuple(diffusion)),
    )


def draw(
    name: str,
    x: Tensor,
    steps: int | None,
    t: Tensor | None,
    eps: Tensor | None,
    generator: torch.Generator | None,
    draws: int = 1,
    first: int = 1,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """x in float32 at least, with the times of each of `draws` and the first noise, where they
    were not given.

    On a chain given times are not before 1/T, but for 0 where `first` is 0.
    """
    if eps is not None and checking():
        check_like(name, "eps", eps, x)
    if generator is not None and checking():
        check_generator(name, generator, x)
    x = x.to(at_least_float32(x.dtype))
    if t is None:
        times = tuple(grid(x.shape[0], draws, steps=steps, generator=generator, device=x.device))
    else:
        if checking():
            check_times(name, t, x, steps, first)
        times = (usable(t),)
    return (
        usable(x),
        times,
        usable(standard_normal(x, generator) if eps is None else eps.to(x.dtype)),
    )


def standard_normal(
    x: Tensor, generator: Generators, draw: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """Noise of the shape of x; of several generators, each draws as many rows as another, in
    order."""
    if generator is None or isinstance(generator, torch.Generator):
        return draw(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    rows = (len(x) // len(generator), *x.shape[1:])
    return torch.cat(
        [draw(rows, dtype=x.dtype, device=one.device, generator=one) for one in generator]
    ).to(x.device)


def usable(v: Tensor) -> Tensor:
    """A tensor made under `inference_mode` cannot be saved for a backward pass outside it: its
    copy can."""
    return (
        v.clone()
        if checking() and v.is_inference() and not torch.is_inference_mode_enabled()
        else v
    )


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off where it is on (the meta device knows none)."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


class _Chain(NamedTuple):
    """A T-step chain whose steps are estimated term by term."""

    steps: int
    estimator: Estimator
    generator: torch.Generator | None


def _diffusion(
    model: Model,
    x: Tensor,
    eps: Tensor,
    logsnr: Tensor,
    measure: Tensor,
    weighting: WeightFunction,
    condition: dict[str, Any],
    chain: _Chain | None = None,
    pure: bool = False,
) -> Float[Tensor, " batch"]:
    """½ w(λ) · measure · ‖ε − ε̂‖² at given levels, or a chain's step times T: the one diffusion
    term under every loss."""
    weight = weighting(logsnr)
    if checking():
        check_weight("weighted_elbo", weight, logsnr)
    name = "weighted_elbo" if chain is None else "elbo"
    prediction = predict_at(model, x, eps, logsnr, condition, name)
    if chain is None:
        _refuse_untrained_variance(prediction)
        factor = 0.5 * weight * measure
        if pure and checking():
            _check_weight_of_noise(prediction, factor, logsnr)
        with full_precision(x.device):
            return prediction.squared_error(x, eps, factor=factor)
    with full_precision(x.device):
        step = Step(logsnr, torch.log1p(measure / chain.steps))
        return chain.steps * chain.estimator(prediction, x, eps, step, chain.generator)


def predict_at(
    model: Model,
    x: Tensor,
    eps: Tensor,
    logsnr: Tensor,
    condition: dict[str, Any],
    name: str = "weighted_elbo",
) -> Prediction:
    """What the model says of z at given levels."""
    with full_precision(x.device):
        z = diffuse(x, eps, logsnr)
    prediction = (
        model(z, logsnr, **condition)
        if not checking()
        else _asked(name, model, z, logsnr, condition)
    )
    if not isinstance(prediction, Prediction):
        raise TypeError(
            must(
                name,
                "model",
                "return a Prediction",
                type(prediction).__name__,
                "wrap the network, which says what it predicts: Denoiser(network, V())",
            )
        )
    return prediction


def _asked(
    name: str, model: Model, z: Tensor, logsnr: Tensor, condition: dict[str, Any]
) -> Prediction:
    """The model's answer; an error inside it says that a bare network, which is no model, was told
    λ in float64 and no more."""
    try:
        return model(z, logsnr, **condition)
    except Exception as error:
        if not hasattr(model, "parameterization") and not out_of_memory(error):
            error.add_note(
                f"{name}: this came from within model(z, logsnr), with logsnr in float64. If it is a bare network, wrap it, and say what it "
                "predicts and wants to be told: Denoiser(network, V(), time=…)"
            )
        raise


def _refuse_untrained_variance(prediction: Prediction) -> None:
    if prediction.head is not None and prediction.head.requires_grad and torch.is_grad_enabled():
        hint = "the squared error does not see it, nor does anything in continuous time, where u = O(λ_s − λ_t): train with elbo(…, steps=T) or hybrid(…, steps=T)"
        raise ValueError(
            must(
                "weighted_elbo",
                "model",
                "have no learned reverse variance: it would get no gradient",
                repr(prediction.variance),
                hint,
            )
        )


def _check_weight_of_noise(prediction: Prediction, factor: Tensor, logsnr: Tensor) -> None:
    """Raise where the weight of the network's own error is infinite at λ = −∞. Reads values, on a
    CPU alone.
    """
    if logsnr.device.type != "cpu" or not readable(logsnr, factor):
        return
    what = prediction.parameterization
    bad = (logsnr < 0.5 * PURE) & ~(factor / what.kappa2(logsnr) < LARGEST)
    if bad.any():
        hint = "pure noise says nothing of x: predict v or x, with MSE(schedule, V(), steps=T)"
        finite = "be finite for what the network predicts at λ = −∞"
        came = f"an infinite weight for {what!r}"
        raise ValueError(must("weighted_elbo", "weighting", finite, came, hint))


def check_steps_to_noise(name: str, schedule: Schedule, steps: int | None) -> None:
    """Raise where λ = −∞ is to be reached in continuous time."""
    if schedule.reaches_noise and steps is None:
        hint = f"its levels are those of a chain: steps={getattr(schedule, 'steps', 'T')}"
        raise ValueError(
            must(name, "steps", "be given where the last level is λ = −∞", None, hint)
        )


def check_call(
    name: str,
    model: object,
    schedule: object,
    steps: object,
    *,
    to_noise: bool = False,
    watch: bool = True,
    evaluation: bool = False,
) -> None:
    """Raise for what is no model, schedule or number of steps. Unless `to_noise`, raise also for a
    schedule that reaches λ = −∞. If `watch`, warn where the model is asked beyond what it knows,
    in an `evaluation` also beyond what it was trained on."""
    if not callable(model) or isinstance(model, type):
        raise TypeError(
            must(
                name,
                "model",
                "be called as model(z, logsnr) and return a Prediction",
                shown(model),
                "for instance Denoiser(network, V())",
            )
        )
    if isinstance(model, nn.DataParallel):
        check_no_data_parallel(name, "model", model)
    check_schedule(name, schedule)
    if isinstance(schedule, Schedule) and schedule.reaches_noise and not to_noise:
        hint = "the prior term needs some signal; weighted_elbo(…, steps=T) trains such a table"
        raise ValueError(must(name, "schedule", "have a finite last level", "λ = −∞", hint))
    if (
        isinstance(schedule, Schedule)
        and (schedule.learns_ends or schedule.learns_shape)
        and torch.is_grad_enabled()
    ):
        _check_synchronised(name, model)
    if steps is not None:
        check_steps(name, steps)
    if watch and isinstance(schedule, Schedule):
        chain = steps if isinstance(steps, int) else None
        warn_beyond(name, model, schedule, chain, evaluation=evaluation)


def _check_synchronised(name: str, model: object) -> None:
    """Raise where DDP wraps the network beside a schedule that learns."""
    if isinstance(model, nn.Module) and any(
        type(m).__name__ == "DistributedDataParallel" for m in model.modules()
    ):
        hint = "wrap the Objective: the schedule's gradients are not synchronised otherwise"
        raise ValueError(
            must(
                name,
                "model",
                "not be wrapped in DDP where the schedule is learned",
                "DistributedDataParallel",
                hint,
            )
        )


def _check_estimator(estimator: object, steps: int | None) -> None:
    """Raise for what is no estimator, and for a choice of one in continuous time."""
    if not isinstance(estimator, Estimator):
        raise TypeError(
            must(
                "elbo",
                "estimator",
                "be an Estimator",
                shown(estimator),
                "an instance: RaoBlackwell(), MonteCarlo() or Raw()",
            )
        )
    if steps is None and not isinstance(estimator, RaoBlackwell):
        hint = "in continuous time a step's KL is all there is: give steps=T"
        raise ValueError(
            must("elbo", "estimator", "be left out without steps", repr(estimator), hint)
        )


def check_draws(name: str, draws: int, t: Tensor | None) -> None:
    """Raise unless `draws` is a count, and 1 where the times are given."""
    check_positive_int(name, "draws", draws)
    if draws > 1 and t is not None:
        raise ValueError(
            must(
                name,
                "draws",
                "be 1 where t is given",
                draws,
                "call once for each t, or leave t to be drawn",
            )
        )


def check_decoder(name: str, decoder: object, schedule: Schedule) -> None:
    """Raise for what is no decoder, and for a Gaussian one under a schedule with learned ends."""
    if not isinstance(decoder, Decoder):
        raise TypeError(
            must(
                name,
                "decoder",
                "be a Decoder",
                shown(decoder),
                "an instance, for instance Categorical(levels=256), or Gaussian() for continuous data",
            )
        )
    if schedule.learns_ends and isinstance(decoder, Gaussian):
        raise ValueError(
            must(
                name,
                "schedule",
                "have fixed ends with a Gaussian decoder",
                repr(schedule),
                "on continuous data the bound improves for ever as λ_max grows",
            )
        )


__all__ = ["elbo", "weighted_elbo"]

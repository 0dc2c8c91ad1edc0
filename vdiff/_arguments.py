"""What the verbs accept: models, conditions, and rules over several arguments."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vdiff._diffusion import diffusion_of
from vdiff._inputs import data as floating_data
from vdiff._known_range import warn_beyond
from vdiff._network import check_no_data_parallel
from vdiff._precision import PURE_NOISE
from vdiff._validate import Given, require
from vdiff.decoder import Decoder, Gaussian
from vdiff.denoiser import Denoiser
from vdiff.errors import InvalidType, InvalidValue, has_values, out_of_memory, shown
from vdiff.prediction import Prediction, as_output
from vdiff.reverse import Estimator, RaoBlackwell
from vdiff.schedule import Schedule

LARGEST = 1e30  # a weight beyond it is infinite, where −600 stands for −∞


class CheckedModel:
    """A model that is not a Denoiser. It must return a Prediction, and an error inside it gets a
    note that a bare network is not a model."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Any:
        try:
            returned = self.model(z, logsnr, **condition)
        except Exception as error:
            if not hasattr(self.model, "parameterization") and not out_of_memory(error):
                error.add_note(
                    "this came from within model(z, logsnr), with logsnr in float64. If it is a "
                    "bare network, wrap it: Denoiser(network, V(), time=…) says what it predicts "
                    "and which time it expects"
                )
            raise
        return as_output(returned)


def checked_model(model: Any) -> Any:
    """A model whose output is checked."""
    return model if isinstance(model, Denoiser | CheckedModel) else CheckedModel(model)


def _model(model: Any, argument: str, given: Given) -> Any:
    if not callable(model) or isinstance(model, type):
        called = "be called as model(z, logsnr) and return a Prediction"
        raise InvalidType(argument, called, shown(model), "for instance Denoiser(network, V())")
    if isinstance(model, nn.DataParallel):
        check_no_data_parallel("model", model)
    return checked_model(model)


def _condition(condition: object, argument: str, given: Given) -> object:
    if not isinstance(condition, Mapping):
        hint = 'condition={"label": labels}, by the names of the network\'s arguments'
        raise InvalidType(argument, "be a mapping from names to values", shown(condition), hint)
    for name in condition:
        if not isinstance(name, str):
            raise InvalidType(argument, "have the names of the network's arguments", repr(name))
        if name in ("z", "logsnr"):
            call = f"call=lambda network, z, t, other: network(z, t, {name}=other)"
            hint = f"rename it: Denoiser(…, {call})"
            raise InvalidType(argument, "have other names than z and logsnr", repr(name), hint)
    return condition


def _of_real_numbers(model: Any, argument: str, given: Given) -> Any:
    """A model of real numbers, not of tokens."""
    process, hint = diffusion_of(model), "evaluate(…) and elbo(…) give the bound over tokens"
    require(process.continuous, argument, "be a model of real numbers", repr(process), hint)
    return model


Model = Annotated[Callable[..., Prediction], _model]
GaussianModel = Annotated[Callable[..., Prediction], _model, _of_real_numbers]


def _data(x: Any, argument: str, given: Given) -> Any:
    """Data of the process of the model."""
    return diffusion_of(given["model"]).check(x, argument, given)


Data = Annotated[Tensor, _data]
Condition = Annotated[Mapping[str, Any], _condition] | None


def original(model: Any) -> Any:
    """The model that the user gave."""
    return model.model if isinstance(model, CheckedModel) else model


def known_range(model: Any, schedule: Schedule, steps: int | None = None) -> None:
    """Rule: warn if the schedule leaves the model's known range."""
    warn_beyond(original(model), schedule, steps)


def of_no_batch(schedule: Schedule) -> None:
    """Rule: the latents of a schedule are not drawn yet."""
    hint = "without their KL the loss is no bound: give the schedule that for_data was called on"
    what, got = "be without latents", "that of one batch"
    require(not schedule.latents_drawn, "schedule", what, got, hint)


def same_noise_for_all(schedule: Schedule) -> None:
    """Rule: the noise does not depend on the data."""
    of_no_batch(schedule)
    hint = "the KL of its latent is a part of the bound: train elbo, or Objective(loss=VLB(…))"
    what = "not depend on the data"
    require(not schedule.depends_on_data, "schedule", what, type(schedule).__name__, hint)


def dims_fit_x(schedule: Schedule, x: Tensor) -> None:
    """Rule: a schedule over dimensions is one over those of x."""
    schedule.check_shape(x)


def dims_fit_z(schedule: Schedule | None, z: Tensor) -> None:
    """Rule: a schedule over dimensions is one over those of z."""
    if schedule is not None:
        schedule.check_shape(z)


def dims_fit_data(schedule: Schedule, data: Tensor) -> None:
    """Rule: a schedule over dimensions is one over those of the data, for all of it."""
    of_no_batch(schedule)
    schedule.check_shape(data)


def decoder_factorises(
    decoder: Decoder | None, mask: Tensor | None, absent: Tensor | None
) -> None:
    """Rule: a mask needs a decoder that is a product over dimensions."""
    unmasked = mask is None and absent is None
    hint = (
        "the term of some dimensions is not known without the others; set factorises = True where "
        "log_prob and expected_nll take mask="
    )
    if unmasked or decoder is None:
        return
    what = "factorise over dimensions where there is a mask"
    require(decoder.factorises, "decoder", what, decoder, hint)
    for method in ("log_prob", "expected_nll"):
        takes = "mask" in inspect.signature(getattr(decoder, method)).parameters
        what, form = f"take mask= in {method}, for factorises is True", "(self, …, mask=None)"
        require(takes, "decoder", what, decoder, f"def {method}{form}")


def noise_on_chain(schedule: Schedule, steps: int | None) -> None:
    """Rule: λ = −∞ needs a chain."""
    if steps is None and schedule.reaches_noise:
        hint = f"the table is one of a chain: steps={getattr(schedule, 'steps', 'T')}"
        raise InvalidValue("steps", "be given where λ_min is −∞", None, hint)


def finite_end(schedule: Schedule) -> None:
    """Rule: the bound's prior term needs some signal."""
    hint = "the prior term needs some signal; weighted_elbo(…, steps=T) trains such a table"
    require(not schedule.reaches_noise, "schedule", "have a finite λ_min", "λ = −∞", hint)


def synchronised(model: Any, schedule: Schedule) -> None:
    """Rule: with a learned schedule, DDP wraps the Objective and not the network."""
    model, ddp = original(model), "DistributedDataParallel"
    learned = (schedule.learns_ends or schedule.learns_shape) and torch.is_grad_enabled()
    modules = model.modules() if learned and isinstance(model, nn.Module) else ()
    wrapped = any(type(module).__name__ == ddp for module in modules)
    what = "not be wrapped in DDP where the schedule is learned"
    hint = "wrap the Objective: the schedule's gradients are not synchronised otherwise"
    require(not wrapped, "model", what, ddp, hint)


def denoisers(model: Any) -> list[Denoiser]:
    """The Denoisers in a model."""
    model = original(model)
    if isinstance(model, Denoiser):  # a network within one is no model
        return [model]
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, Denoiser)]


def variance_trained(model: Any) -> None:
    """Rule: a learned variance gets a gradient."""
    what = "have no learned reverse variance: it would get no gradient"
    hint = (
        "the squared error does not depend on it, nor does any loss in continuous time: train "
        "with elbo(…, steps=T) or hybrid_loss(…, steps=T)"
    )
    for denoiser in denoisers(model) if torch.is_grad_enabled() else ():
        if denoiser.variance.learned and any(p.requires_grad for p in denoiser.parameters()):
            raise InvalidValue("model", what, repr(denoiser.variance), hint)


def variance_on_chain(model: Any, steps: int | None) -> None:
    """Rule: a learned variance is trained on a chain."""
    if steps is None:
        variance_trained(model)


def weight_of_noise(
    model: Any, weighting: Any, schedule: Schedule, steps: int | None, t: Tensor | None
) -> None:
    """Rule: at λ = −∞ the weight of the network's own error is finite."""
    if not schedule.reaches_noise or steps is None:
        return
    if t is not None and t.device.type == "cpu" and t.max() < 1:
        return
    for denoiser in denoisers(model):
        at = schedule.at(torch.ones(1, dtype=torch.float64, device="cpu"), steps)
        per_kappa2 = denoiser.parameterization.inverse_kappa2(at.logsnr)
        factor = 0.5 * weighting(at.logsnr) * at.rate * per_kappa2
        if at.logsnr < 0.5 * PURE_NOISE and has_values(factor) and not factor < LARGEST:
            hint = "pure noise says nothing of x: predict v or x, with MSE(schedule, V(), steps=T)"
            finite = "be finite for what the network predicts at λ = −∞"
            got = f"an infinite weight for {denoiser.parameterization!r}"
            raise InvalidValue("weighting", finite, got, hint)


def one_draw_of_given_times(draws: int, t: Tensor | None) -> None:
    """Rule: given times mean one draw."""
    hint = "call once for each t, or leave t to be drawn"
    require(draws == 1 or t is None, "draws", "be 1 where t is given", draws, hint)


def decoder_fits(decoder: Decoder | None, schedule: Schedule) -> None:
    """Rule: learned ends need a discrete decoder."""
    hint = "on continuous data the bound improves without limit as λ_max grows"
    fits = not (schedule.learns_ends and isinstance(decoder, Gaussian))
    fixed = "have fixed ends with a Gaussian decoder"
    require(fits, "schedule", fixed, schedule, hint)


def estimator_on_chain(estimator: Estimator, steps: int | None) -> None:
    """Rule: only a chain has several estimators."""
    fits = steps is not None or isinstance(estimator, RaoBlackwell)
    hint = "continuous time has one estimator: give steps=T"
    require(fits, "estimator", "be left out without steps", estimator, hint)


def decoder_of_process(model: Any, decoder: Decoder | None, estimator: Estimator) -> None:
    """Rule: the decoder and the estimator are those of the model's process."""
    process = diffusion_of(model)
    process.check_decoder(decoder)
    closed = process.continuous or isinstance(estimator, RaoBlackwell)
    require(closed, "estimator", "be RaoBlackwell() for tokens", estimator)


def fixed_for_draws(model: Any, schedule: Schedule, steps: int | None) -> None:
    """Rule: where z does not move with λ at given noise, only a shape that learns as a density is
    learned, in continuous time."""
    learned = torch.is_grad_enabled() and any(p.requires_grad for p in schedule.parameters())
    fits = not learned or (steps is None and schedule.learns_by_density)
    what = "have no trained parameters but a shape, in continuous time, over tokens"
    name = type(schedule).__name__ if schedule.learns_shape else "Spline"
    hint = f"they do not move with λ: {name}(learn_ends=False), or Adaptive"
    fits = fits or diffusion_of(model).continuous
    require(fits, "schedule", what, type(schedule).__name__, hint)


def decoder_with_network(schedule: Schedule, decoder: Decoder | None) -> None:
    """Rule: a decoder that is trained uses the network."""
    if decoder is not None:
        decoder_fits(decoder, schedule)
        hint = (
            "a decoder of z₀ alone has nothing to train: leave it out (elbo takes it), or "
            "DiscretizedGaussian(…, uses_network=True)"
        )
        require(decoder.uses_network, "decoder", "use the network", decoder, hint)


def learned_variance(model: Any, bound_weight: float) -> None:
    """Rule: the bound's term needs a learned variance."""
    for denoiser in denoisers(model) if bound_weight > 0 else ():
        hint = (
            "Denoiser(network, Eps(), variance=LearnedRange()), with twice the output channels; "
            "bound_weight=0 is the simple loss alone"
        )
        variance = denoiser.variance
        require(variance.learned, "model", "learn its reverse variance", variance, hint)


def over_reals(model: Any) -> None:
    """Rule: the process of the model is Gaussian."""
    what, hint = "be Gaussian", "Tempered is for tokens"
    require(diffusion_of(model).continuous, "model", what, "a model over tokens", hint)


def over_tokens(model: Any) -> None:
    """Rule: the process of the model is one of tokens."""
    what, hint = "be over tokens, as a TokenDenoiser", "Clipped is for Gaussian models"
    require(not diffusion_of(model).continuous, "model", what, "a Gaussian model", hint)


def data_without_decoder(data: Tensor, decoder: Decoder | None) -> None:
    """Rule: without a decoder, data is floating."""
    if decoder is None:
        floating_data(data, "data", {})


def fixed_shape(schedule: Schedule) -> None:
    """Rule: the shape of the schedule is fixed."""
    hint = "the simple loss would move with it: elbo(…, steps=T) trains γ_η and the variance"
    require(not schedule.learns_shape, "schedule", "have a fixed shape", schedule, hint)


def fixed_ends(schedule: Schedule) -> None:
    """Rule: the ends of the schedule are fixed."""
    hint = "elbo(…, steps=T) trains them"
    require(not schedule.learns_ends, "schedule", "have fixed ends", schedule, hint)


def generators_divide(data: Tensor, generator: Any) -> None:
    """Rule: several generators draw equal shares of the batch."""
    if isinstance(generator, Sequence):
        fits = bool(generator) and len(data) % len(generator) == 0
        divide = f"be as many as divide {len(data)} examples"
        require(fits, "generator", divide, len(generator))

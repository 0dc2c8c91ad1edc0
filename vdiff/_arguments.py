"""What the verbs accept: models, weightings, conditions, and what must hold between them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vdiff._known_range import warn_beyond
from vdiff._network import check_no_data_parallel
from vdiff._validate import Given, require
from vdiff._validate import data as floating_data
from vdiff.decoder import Decoder, Gaussian
from vdiff.denoiser import Denoiser
from vdiff.errors import InvalidType, InvalidValue, has_values, out_of_memory, shown
from vdiff.gaussian import PURE
from vdiff.prediction import Prediction
from vdiff.reverse import Estimator, RaoBlackwell
from vdiff.schedule import Schedule
from vdiff.weighting.base import sound

LARGEST = 1e30  # a weight beyond it is infinite, where −600 stands for −∞


class Asked:
    """A model that is no Denoiser: an error inside it says that a bare network is no model, and
    what it returns must be a Prediction."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def __call__(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        try:
            prediction = self.model(z, logsnr, **condition)
        except Exception as error:
            if not hasattr(self.model, "parameterization") and not out_of_memory(error):
                error.add_note(
                    "this came from within model(z, logsnr), with logsnr in float64. If it is a "
                    "bare network, wrap it: Denoiser(network, V(), time=…) says what it predicts "
                    "and what it is told"
                )
            raise
        if not isinstance(prediction, Prediction):
            hint = "wrap the network, which says what it predicts: Denoiser(network, V())"
            raise InvalidType("model", "return a Prediction", type(prediction).__name__, hint)
        return prediction


def asked(model: Any) -> Any:
    """A model whose answers are checked."""
    return model if isinstance(model, Denoiser | Asked) else Asked(model)


def _model(model: Any, argument: str, given: Given) -> Any:
    if not callable(model) or isinstance(model, type):
        called = "be called as model(z, logsnr) and return a Prediction"
        raise InvalidType(argument, called, shown(model), "for instance Denoiser(network, V())")
    if isinstance(model, nn.DataParallel):
        check_no_data_parallel("model", model)
    return asked(model)


def _condition(condition: object, argument: str, given: Given) -> object:
    if condition is None:
        return condition
    if not isinstance(condition, Mapping):
        hint = 'condition={"label": labels}, by the names of the network\'s arguments'
        raise InvalidType(argument, "be a mapping from names to values", shown(condition), hint)
    for name in condition:
        if not isinstance(name, str):
            raise InvalidType(argument, "have the names of the network's arguments", repr(name))
        if name in ("z", "logsnr"):
            call = f"call=lambda network, z, t, other: network(z, t, {name}=other)"
            hint = f"Denoiser(…, {call}) gives it another"
            raise InvalidType(argument, "have other names than z and logsnr", repr(name), hint)
    return condition


Model = Annotated[Callable[..., Prediction], _model]
Condition = Annotated[Mapping[str, Any] | None, _condition]


def original(model: Any) -> Any:
    """The model that the user gave."""
    return model.model if isinstance(model, Asked) else model


def known_range(model: Any, schedule: Schedule, steps: int | None) -> None:
    """A rule: warn where the model is asked beyond what it knows."""
    warn_beyond(original(model), schedule, steps)


def known_range_of(model: Any, schedule: Schedule) -> None:
    """A rule: `known_range` in continuous time."""
    known_range(model, schedule, None)


def sound_on_cpu(x: Tensor, weighting: Any, schedule: Schedule) -> None:
    """A rule: the values of a function are weights. They are read on a CPU."""
    if x.device.type == "cpu":
        sound(weighting, schedule)


def noise_on_chain(schedule: Schedule, steps: int | None) -> None:
    """A rule: λ = −∞ is a level of a chain."""
    if steps is None and schedule.reaches_noise:
        hint = f"its levels are those of a chain: steps={getattr(schedule, 'steps', 'T')}"
        raise InvalidValue("steps", "be given where the last level is λ = −∞", None, hint)


def finite_end(schedule: Schedule) -> None:
    """A rule: the bound's prior term needs some signal."""
    hint = "the prior term needs some signal; weighted_elbo(…, steps=T) trains such a table"
    finite = not schedule.reaches_noise
    require(finite, "schedule", "have a finite last level", "λ = −∞", hint)


def synchronised(model: Any, schedule: Schedule) -> None:
    """A rule: DDP does not wrap the network beside a schedule that learns."""
    model = original(model)
    if not (schedule.learns_ends or schedule.learns_shape) or not torch.is_grad_enabled():
        return
    if isinstance(model, nn.Module) and any(
        type(m).__name__ == "DistributedDataParallel" for m in model.modules()
    ):
        hint = "wrap the Objective: the schedule's gradients are not synchronised otherwise"
        what = "not be wrapped in DDP where the schedule is learned"
        raise InvalidValue("model", what, "DistributedDataParallel", hint)


def denoisers(model: Any) -> list[Denoiser]:
    """The Denoisers that a model is or holds."""
    model = original(model)
    if isinstance(model, Denoiser):  # a network within one is no model
        return [model]
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return [module for module in modules if isinstance(module, Denoiser)]


def variance_trained(model: Any) -> None:
    """A rule: no learned variance goes without a gradient."""
    for denoiser in denoisers(model) if torch.is_grad_enabled() else ():
        if denoiser.variance.learned and any(p.requires_grad for p in denoiser.parameters()):
            hint = (
                "the squared error does not see it, nor does anything in continuous time, where "
                "u = O(λ_s − λ_t): train with elbo(…, steps=T) or hybrid_loss(…, steps=T)"
            )
            what = "have no learned reverse variance: it would get no gradient"
            raise InvalidValue("model", what, repr(denoiser.variance), hint)


def variance_on_chain(model: Any, steps: int | None) -> None:
    """A rule: continuous time trains no variance."""
    if steps is None:
        variance_trained(model)


def weight_of_noise(
    model: Any, weighting: Any, schedule: Schedule, steps: int | None, t: Tensor | None
) -> None:
    """A rule: at λ = −∞ the weight of the network's own error is finite."""
    if not schedule.reaches_noise or steps is None:
        return
    if t is not None and t.device.type == "cpu" and t.max() < 1:
        return
    for denoiser in denoisers(model):
        at = schedule.at(torch.ones(1, dtype=torch.float64, device="cpu"), steps)
        kappa2 = denoiser.parameterization.kappa2(at.logsnr)
        factor = 0.5 * weighting(at.logsnr) * at.rate / kappa2
        if at.logsnr < 0.5 * PURE and has_values(factor) and not factor < LARGEST:
            hint = "pure noise says nothing of x: predict v or x, with MSE(schedule, V(), steps=T)"
            finite = "be finite for what the network predicts at λ = −∞"
            came = f"an infinite weight for {denoiser.parameterization!r}"
            raise InvalidValue("weighting", finite, came, hint)


def one_draw_of_given_times(draws: int, t: Tensor | None) -> None:
    """A rule: given times are one draw."""
    hint = "call once for each t, or leave t to be drawn"
    require(draws == 1 or t is None, "draws", "be 1 where t is given", draws, hint)


def decoder_fits(decoder: Decoder, schedule: Schedule) -> None:
    """A rule: learned ends have a discrete decoder."""
    hint = "on continuous data the bound improves without limit as λ_max grows"
    fits = not (schedule.learns_ends and isinstance(decoder, Gaussian))
    fixed = "have fixed ends with a Gaussian decoder"
    require(fits, "schedule", fixed, schedule, hint)


def estimator_on_chain(estimator: Estimator, steps: int | None) -> None:
    """A rule: in continuous time a step's KL is all there is."""
    fits = steps is not None or isinstance(estimator, RaoBlackwell)
    hint = "in continuous time a step's KL is all there is: give steps=T"
    require(fits, "estimator", "be left out without steps", estimator, hint)


def looking_decoder(schedule: Schedule, decoder: Decoder | None) -> None:
    """A rule: a decoder has a term of a chain where it looks at the network."""
    if decoder is not None:
        decoder_fits(decoder, schedule)
        hint = (
            "a decoder that reads z₀ alone has nothing to train: leave it out (elbo takes it), or "
            "DiscretizedGaussian(…, uses_network=True)"
        )
        require(decoder.uses_network, "decoder", "look at the network", decoder, hint)


def learned_variance(model: Any, bound_weight: float) -> None:
    """A rule: the bound's term trains a variance."""
    for denoiser in denoisers(model) if bound_weight > 0 else ():
        hint = (
            "Denoiser(network, Eps(), variance=LearnedRange()), with twice the output channels; "
            "bound_weight=0 is the simple loss alone"
        )
        variance = denoiser.variance
        require(variance.learned, "model", "learn its reverse variance", variance, hint)


def data_without_decoder(data: Tensor, decoder: Decoder | None) -> None:
    """A rule: data that no decoder encodes is floating."""
    if decoder is None:
        floating_data(data, "data", {})


def fixed_shape(schedule: Schedule) -> None:
    """A rule: the shape of the schedule is fixed."""
    hint = "the simple loss would move with it: elbo(…, steps=T) trains γ_η and the variance"
    require(not schedule.learns_shape, "schedule", "have a fixed shape", schedule, hint)


def fixed_ends(schedule: Schedule) -> None:
    """A rule: the ends of the schedule are fixed."""
    hint = "elbo(…, steps=T) trains them"
    require(not schedule.learns_ends, "schedule", "have fixed ends", schedule, hint)


def generators_divide(data: Tensor, generator: Any) -> None:
    """A rule: each of several generators draws for as many examples."""
    if isinstance(generator, Sequence):
        fits = bool(generator) and len(data) % len(generator) == 0
        divide = f"be as many as divide {len(data)} examples"
        require(fits, "generator", divide, len(generator))

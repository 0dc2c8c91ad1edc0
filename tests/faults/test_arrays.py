"""Arrays and lists where a tensor is meant are named, and no error repeats what came at length."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from registry import DECODERS, WEIGHTINGS, objective_of
from torch import Tensor, nn

import vdiff
from vdiff import Denoiser, Objective
from vdiff.augmentation import Augmentation, augmented_elbo
from vdiff.decoder import Categorical, Decoder, DiscretizedGaussian, Gaussian
from vdiff.gaussian import bits_per_dim, diffuse, prior_kl
from vdiff.likelihood import (
    Uniform,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    ode_likelihood,
    path_importance,
)
from vdiff.likelihood.importance import chain_log_prob, importance_weighted
from vdiff.metrics import mmd
from vdiff.objective import Weighted
from vdiff.oracle import Gaussian as GaussianData
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import V
from vdiff.profile import Profile
from vdiff.resampling import LossSecondMoment
from vdiff.sampling import (
    Clipped,
    Guided,
    adams_bashforth,
    ddim,
    heun,
    invert,
    noise_like,
    ode,
    sample,
    to_levels,
    to_uint8,
    trajectory,
)
from vdiff.schedule import Custom, Linear, Tabulated
from vdiff.training import Validation, train
from vdiff.weighting import loss_factor

from .common import Net, data_of

MODEL = Denoiser(Net(), V())
LABELLED = Guided(Denoiser(lambda z, t, label: z, V()), 2.0, {"label": 0})
LINE, MIXTURE = GaussianData([0.0], [1.0]), GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 1.0]])
X, LEVELS, T, LAM = (
    torch.zeros(4, 2),
    torch.ones(4, 2).long(),
    torch.full((4,), 0.5),
    torch.zeros(4),
)
SCHEDULE, CATEGORICAL, LOOKING = (
    Linear(),
    Categorical(17),
    DiscretizedGaussian(17, uses_network=True),
)
BOUND: dict[str, Any] = {"schedule": SCHEDULE, "decoder": CATEGORICAL}
CHAIN: dict[str, Any] = {"schedule": SCHEDULE, "decoder": LOOKING, "steps": 4}
PREDICTION = MODEL(X, LAM)
FACTOR = loss_factor(vdiff.weighting.Sigmoid(), SCHEDULE, V())
AUGMENTATION = Augmentation(vdiff.weighting.ELBO(), SCHEDULE.logsnr_max, SCHEDULE.logsnr_min)
AUGMENTED: dict[str, Any] = {"augmentation": AUGMENTATION, "schedule": SCHEDULE}
RESAMPLED = objective_of(MODEL, resampling=LossSecondMoment(4), steps=4, **BOUND)


def decoding(decoder: Decoder) -> dict[str, tuple[Tensor, Callable[[Any], Any]]]:
    name, data = type(decoder).__name__, data_of(decoder)
    x = torch.zeros(4, 2)
    return {
        f"{name}.encode": (data, decoder.encode),
        f"{name}.log_prob data": (data, lambda v: decoder.log_prob(v, x, 5.0)),
        f"{name}.log_prob mean": (x, lambda v: decoder.log_prob(data, v, 5.0)),
        f"{name}.nll": (x, lambda v: decoder.nll(data, v, 5.0, MODEL)),
        **({} if isinstance(decoder, Gaussian) else {f"{name}.decode": (x, decoder.decode)}),
        **(
            {}
            if decoder.uses_network
            else {f"{name}.expected_nll": (data, lambda v: decoder.expected_nll(v, 5.0))}
        ),
    }


PLACES: dict[
    str, tuple[Tensor, Callable[[Any], Any]]
] = {  # what is right there, and a call with something in its place
    "weighted_elbo x": (X, lambda v: vdiff.weighted_elbo(MODEL, v, schedule=SCHEDULE)),
    "weighted_elbo t": (T, lambda v: vdiff.weighted_elbo(MODEL, X, schedule=SCHEDULE, t=v)),
    "weighted_elbo eps": (X, lambda v: vdiff.weighted_elbo(MODEL, X, schedule=SCHEDULE, eps=v)),
    "elbo data": (LEVELS, lambda v: vdiff.elbo(MODEL, v, **BOUND)),
    "elbo data of points": (
        X,
        lambda v: vdiff.elbo(MODEL, v, schedule=SCHEDULE, decoder=Gaussian()),
    ),
    "elbo t": (T, lambda v: vdiff.elbo(MODEL, LEVELS, t=v, **BOUND)),
    "elbo eps": (X, lambda v: vdiff.elbo(MODEL, LEVELS, eps=v, **BOUND)),
    "hybrid data": (
        X,
        lambda v: vdiff.hybrid_loss(MODEL, v, schedule=SCHEDULE, steps=4, bound_weight=0),
    ),
    "hybrid t": (
        T,
        lambda v: vdiff.hybrid_loss(MODEL, X, schedule=SCHEDULE, steps=4, bound_weight=0, t=v),
    ),
    "vlb data": (LEVELS, lambda v: vdiff.chain.vlb(MODEL, v, **CHAIN)),
    "vlb eps": (X, lambda v: vdiff.chain.vlb(MODEL, LEVELS, eps=v, **CHAIN)),
    "path_bound": (LEVELS, lambda v: vdiff.chain.path_bound(MODEL, v, **CHAIN)),
    "Objective x": (X, Objective(MODEL, schedule=SCHEDULE)),
    "Objective x and u": (X, lambda v: Objective(MODEL, schedule=SCHEDULE)(v, u=T)),
    "Objective u": (T, lambda v: Objective(MODEL, schedule=SCHEDULE)(X, u=v)),
    "Objective u on a chain": (
        T,
        lambda v: Objective(MODEL, schedule=SCHEDULE, loss=Weighted(steps=4))(X, u=v),
    ),
    "Objective data": (LEVELS, objective_of(MODEL, **BOUND)),
    "Objective data, weighted": (
        LEVELS,
        objective_of(MODEL, weighting=vdiff.weighting.Sigmoid(), **BOUND),
    ),
    "Objective data, resampled": (LEVELS, RESAMPLED),
    "Objective.bound": (LEVELS, objective_of(MODEL, **BOUND).bound),
    "Objective.times": (T, Objective(MODEL, schedule=SCHEDULE, loss=Weighted(steps=4)).times),
    "evaluate": (LEVELS, lambda v: evaluate(MODEL, v, draws=4, **BOUND)),
    "evaluate, skipping": (
        LEVELS,
        lambda v: evaluate(MODEL, v, draws=4, skip_nonfinite=True, **BOUND),
    ),
    "compare": (LEVELS, lambda v: compare(MODEL, MIXTURE, v, draws=4, **BOUND)),
    "Validation": (LEVELS, lambda v: Validation(v)(objective_of(MODEL, **BOUND))),
    "path_importance": (LEVELS, lambda v: path_importance(MODEL, v, samples=2, **CHAIN)),
    "chain_log_prob": (
        X[:, :1],
        lambda v: chain_log_prob(
            LINE, v, schedule=Linear(6.0, -5.0), steps=2, decoder=Gaussian(), points=101
        ),
    ),
    "importance_weighted": (X, importance_weighted),
    "ode_likelihood": (X, lambda v: ode_likelihood(MODEL, v, schedule=Linear(1.0, -1.0))),
    "dequantized_ode": (
        LEVELS,
        lambda v: dequantized_ode(
            MODEL, v, schedule=Linear(1.0, -1.0), dequantization=Uniform(CATEGORICAL)
        ),
    ),
    "Dequantization.draw": (
        LEVELS,
        lambda v: Uniform(CATEGORICAL).draw(v, [torch.Generator() for _ in range(4)]),
    ),
    "immse": (
        X,
        lambda v: immse(
            MODEL,
            v,
            schedule=Linear(12.0, -12.0),
            gaussian=GaussianData([0.0, 0.0], [1.0, 1.0]),
            draws=2,
        ),
    ),
    "sample": (X, lambda v: sample(MODEL, v, schedule=SCHEDULE, steps=1)),
    "trajectory": (X, lambda v: list(trajectory(MODEL, v, schedule=SCHEDULE, steps=1))),
    "invert": (X, lambda v: invert(MODEL, v, schedule=Linear(1.0, -1.0))),
    "noise_like": (X, noise_like),
    "to_uint8": (X, to_uint8),
    "mmd": (torch.randn(4, 2), lambda v: mmd(v, torch.randn(4, 2))),
    "Categorical.fit": (LEVELS, lambda v: Categorical.fit(v, 17)),
    "Categorical prior": (torch.zeros(17), lambda v: Categorical(17, prior=v)),
    "Gaussian.fit": (torch.randn(9, 2), GaussianData.fit),
    "Denoiser z": (X, lambda v: MODEL(v, LAM)),
    "Denoiser logsnr": (LAM, lambda v: MODEL(X, v)),
    "Denoiser, by name": (LAM, lambda v: MODEL(z=X, logsnr=v)),
    "Guided z": (X, lambda v: LABELLED(v, LAM, label=LEVELS[:, 0])),
    "Guided logsnr": (LAM, lambda v: LABELLED(X, v, label=LEVELS[:, 0])),
    "Clipped z": (X, lambda v: Clipped(MODEL)(v, LAM)),
    "mixture z": (X, lambda v: MIXTURE(v, LAM)),
    "mixture logsnr": (LAM, lambda v: MIXTURE(X, v)),
    "mixture.log_prob": (X, MIXTURE.log_prob),
    "mixture.noisy_log_prob": (X, lambda v: MIXTURE.noisy_log_prob(v, LAM)),
    "mixture.mmse": (LAM, LINE.mmse),
    "mixture.mutual_information": (LAM, LINE.mutual_information),
    "Lattice.log_prob": (torch.tensor([[-0.5]]), Lattice([-0.5, 0.5], [0.5, 0.5]).log_prob),
    "ancestral": (X, lambda v: vdiff.sampling.ancestral(MODEL, v, LAM - 1, LAM)),
    "ddim": (LAM, lambda v: ddim(MODEL, X, LAM - 1, v)),
    "heun": (X, lambda v: heun(MODEL, v, LAM - 1, LAM)),
    "adams_bashforth": (LAM, lambda v: adams_bashforth(MODEL, X, v, LAM + 1)),
    "ode": (LAM, lambda v: ode(MODEL, X, v, LAM + 1)),
    "squared_error x": (X, lambda v: PREDICTION.squared_error(v, X)),
    "squared_error eps": (X, lambda v: PREDICTION.squared_error(X, v)),
    "error": (X, lambda v: PREDICTION.error(v, X)),
    "target": (X, lambda v: V().target(v, X, LAM)),
    "kappa": (LAM, V().kappa),
    "flow_time": (LAM, vdiff.denoiser.flow_time),
    "sigma_time": (LAM, vdiff.denoiser.sigma_time),
    "ScheduleTime": (LAM, vdiff.denoiser.ScheduleTime(SCHEDULE)),
    "TableStep": (LAM, vdiff.denoiser.TableStep(Tabulated.linear_betas())),
    "schedule": (T, SCHEDULE),
    "schedule.inverse": (LAM, SCHEDULE.inverse),
    "schedule.density": (LAM, SCHEDULE.density),
    "schedule.rate": (T, SCHEDULE.rate),
    "schedule.delta": (T, lambda v: SCHEDULE.delta(v, 4)),
    "loss_factor": (LAM, FACTOR),
    "augmentation": (LAM, AUGMENTATION),
    "augmentation.icdf": (T, AUGMENTATION.icdf),
    "augmented_elbo x": (X, lambda v: augmented_elbo(MODEL, v, **AUGMENTED)),
    "augmented_elbo eps": (X, lambda v: augmented_elbo(MODEL, X, eps=v, **AUGMENTED)),
    "Profile.update logsnr": (
        LAM,
        lambda v: Profile(logsnr_max=1.0, logsnr_min=-1.0).update(v, LAM),
    ),
    "Profile.update value": (
        LAM,
        lambda v: Profile(logsnr_max=1.0, logsnr_min=-1.0).update(LAM, v),
    ),
    "Profile.at": (LAM, Profile(logsnr_max=1.0, logsnr_min=-1.0).at),
    "LossSecondMoment.update t": (torch.ones(4), lambda v: LossSecondMoment(4).update(v, T)),
    "LossSecondMoment.update loss": (T, lambda v: LossSecondMoment(4).update(torch.ones(4), v)),
    "LossSecondMoment.at": (T, LossSecondMoment(4).at),
    "LossSecondMoment.note": (torch.ones(4), lambda v: LossSecondMoment(4).note(v, T)),
    "diffuse": (X, lambda v: diffuse(X, v, LAM)),
    "prior_kl": (X, lambda v: prior_kl(v, -5.0)),
    **{f"weighting {name}": (LAM, make()) for name, make in WEIGHTINGS.items()},
    **{
        place: case
        for name in ("categorical", "discretized gaussian", "gaussian")
        for place, case in decoding(DECODERS[name]()).items()
    },
}


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize("place", PLACES)
def test_an_array_and_a_list_are_named(place: str, kind: str) -> None:
    right, call = PLACES[place]
    call(right)
    with pytest.raises(TypeError) as caught:
        call(right.numpy() if kind == "array" else right.tolist())
    came = "ndarray" if kind == "array" else "list"
    pattern = (
        rf"\w+(\.\w+)?: argument '(\w+)' must be a (torch\.Tensor|floating tensor); got {came} "
        rf"\(.*(torch\.\w+\(|schedule\(t\)|t = step)"
    )
    assert re.match(pattern, str(caught.value)), caught.value


def test_a_number_is_named_too() -> None:
    for call in (
        vdiff.denoiser.sigma_time,
        lambda v: bits_per_dim([v], 3),
        lambda v: MODEL(X, v),
        Profile(logsnr_max=1.0, logsnr_min=-1.0).at,
        vdiff.weighting.Sigmoid(),
    ):
        with pytest.raises(
            TypeError,
            match=(
                r"argument '\w+' must be a torch.Tensor; got (float|list) "
                r"\(torch.as_tensor\(\w+\)\)"
            ),
        ):
            call(0.5)
    assert bits_per_dim(torch.tensor(2.0), 1) > 0


def test_training_names_an_array() -> None:
    from points import data_of as data_of_points
    from points import points

    config = points(steps=1)
    with pytest.raises(
        TypeError,
        match=(
            r"train: argument 'data' must be a tensor, Images, .*; got ndarray "
            r"\(vdiff.data.load\(path\).train, or torch.from_numpy\(array\)\)"
        ),
    ):
        train(config.objective(), data_of_points(config).numpy(), config, quiet=True)


def test_an_error_of_the_network_stays_its_own() -> None:
    def network(z: Tensor, time: Tensor, label: Any) -> Tensor:
        return z.mean(label)

    with pytest.raises(TypeError, match=r"mean\(\)"):
        Denoiser(network, V())(X, LAM, label=np.arange(4.0))


LONG = [0.5] * 100_000
DEEP = nn.Sequential(*[nn.Linear(2, 2) for _ in range(2000)])


class NoText(nn.Module):
    """A module whose repr fails, as that of one that is half built."""

    def __repr__(self) -> str:
        raise AttributeError("not built yet")


WRONG: dict[str, Any] = {
    "list": LONG,
    "tuple": tuple(LONG),
    "tensor": torch.tensor(LONG),
    "array": np.array(LONG),
    "text": "x" * 100_000,
    "dict": dict.fromkeys(range(50_000)),
    "module": DEEP,
    "integer": 10**5000,
    "nested": {"list": [LONG] * 4, "tensors": [torch.zeros(9)] * 1000},
    "no text": NoText(),
}
LENGTHS: dict[str, Callable[[Any], Any]] = {
    "schedule": lambda v: vdiff.weighted_elbo(MODEL, X, schedule=v),
    "model": lambda v: vdiff.weighted_elbo([v], X, schedule=SCHEDULE),  # type: ignore[arg-type]
    "decoder": lambda v: vdiff.elbo(MODEL, LEVELS, schedule=SCHEDULE, decoder=v),
    "weighting": lambda v: vdiff.weighted_elbo(MODEL, X, schedule=SCHEDULE, weighting=[v]),  # type: ignore[arg-type]
    "estimator": lambda v: vdiff.elbo(MODEL, LEVELS, estimator=v, **BOUND),
    "steps": lambda v: vdiff.weighted_elbo(MODEL, X, schedule=SCHEDULE, steps=v),
    "generator": lambda v: vdiff.weighted_elbo(MODEL, X, schedule=SCHEDULE, generator=v),
    "bound_weight": lambda v: vdiff.hybrid_loss(MODEL, X, schedule=SCHEDULE, steps=4,
    bound_weight=v),
    "parameterization": lambda v: Denoiser(Net(), v),
    "network": lambda v: Denoiser([v], V()),  # type: ignore[arg-type]
    "variance": lambda v: Denoiser(Net(), V(), variance=v),
    "time": lambda v: Denoiser(Net(), V(), time=[v]),  # type: ignore[arg-type]
    "levels": lambda v: Categorical(v),
    "prior": lambda v: Categorical(17, prior=v),
    "table": lambda v: vdiff.denoiser.TableStep(v),
    "sample step": lambda v: sample(MODEL, X, schedule=SCHEDULE, steps=1, step=[v]),  # type: ignore[arg-type]
    "sample levels": lambda v: sample(MODEL, X, levels=v),
    "sample generator": lambda v: sample(MODEL, X, schedule=SCHEDULE, steps=1, generator=[v]),
    "unconditional": lambda v: Guided(MODEL, 2.0, v)(X, LAM, label=LEVELS),
    "unconditional label": lambda v: Guided(MODEL, 2.0, {"label": v})(X, LAM, label=LEVELS),
    "interval": lambda v: Guided(MODEL, 2.0, {"label": 0}, interval=v),
    "dequantization": lambda v: dequantized_ode(MODEL, LEVELS, schedule=SCHEDULE,
    dequantization=v),
    "gaussian": lambda v: immse(MODEL, X, schedule=SCHEDULE, gaussian=v),
    "recipe": lambda v: vdiff.recipe(v),
    "to_levels": lambda v: to_levels(v, PREDICTION),
    "custom schedule": lambda v: Custom(v),
    "output": lambda v: Denoiser(lambda z, t: v, V())(X, LAM),
    "ode": lambda v: ode(MODEL, X, torch.tensor(LONG), LAM),
    "Tabulated": lambda v: Tabulated(v),
    "Histogram": lambda v: vdiff.schedule.Histogram(v),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("place", LENGTHS)
def test_an_error_is_a_few_hundred_characters(place: str, kind: str) -> None:
    said = ""
    try:
        LENGTHS[place](WRONG[kind])
    except Exception as error:
        said = str(error)
    assert len(said) < 700, f"{len(said):,} characters: {said[:400]}"


@pytest.mark.parametrize("place", ["schedule", "model", "steps", "bound_weight", "sample step"])
@pytest.mark.parametrize("kind", ["integer", "no text"])
def test_a_value_without_a_text_is_named_by_its_type(place: str, kind: str) -> None:
    """Python writes no int of more than 4,300 digits, and a repr may fail."""
    with pytest.raises(
        (TypeError, ValueError), match=r"argument '\w+' must .*; got a value of type"
    ):
        LENGTHS[place](WRONG[kind])


def test_a_tensor_is_told_by_its_shape() -> None:
    with pytest.raises(
        TypeError, match=r"be a Schedule.*; got a tensor of shape \(2, 3\), torch.float32, cpu"
    ):
        vdiff.weighted_elbo(MODEL, X, schedule=torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"got an array of shape \(2, 3\), float64"):
        vdiff.weighted_elbo(MODEL, X, schedule=np.zeros((2, 3)))

"""Networks that are asked beyond the log-SNRs that they are given of, or were trained on."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from points import data_of, points
from registry import objective_of
from torch import nn

from vdiff import Denoiser, elbo, hybrid_loss, sample, weighted_elbo
from vdiff.chain import path_bound
from vdiff.decoder import Categorical
from vdiff.denoiser import ScaledGamma, ScheduleTime, TableStep
from vdiff.likelihood import compare, evaluate, ode_likelihood, path_importance
from vdiff.nn import MLP, FourierFeatures
from vdiff.parameterization import Eps, V
from vdiff.sampling import Clipped, ddim, logistic, trailing
from vdiff.schedule import (
    Cosine,
    Custom,
    Histogram,
    Karras,
    LearnedLinear,
    Linear,
    LinearBeta,
    Shifted,
    SignalPower,
    Tabulated,
)
from vdiff.training import Config, Run, train

TABLE = Tabulated.linear_betas()
DECODER = Categorical(17)
DATA = torch.randint(0, 17, (8, 2), generator=torch.Generator().manual_seed(0))
X = DATA / 8.0 - 1.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, z, time):
        return self.layer(z) + 0.001 * time[:, None].to(z.dtype)


def told(time, parameterization=None):
    return Denoiser(Net(), parameterization or Eps(), time=time)


def warned(call):
    """The warnings of a call, by text."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found if "the network" in str(one.message)]


@pytest.mark.parametrize(
    ("time", "schedule", "steps", "known", "asked", "share"),
    [
        (
            TableStep(TABLE),
            Cosine(),
            None,
            "TableStep, which knows λ from -10.12 to 9.21",
            "-15 to 15",
            None,
        ),
        (
            TableStep(TABLE, integer=True),
            Linear(20.0, -20.0),
            None,
            "-10.12 to 9.21",
            "-20 to 20",
            20.67 / 40,
        ),
        (
            ScheduleTime(LinearBeta()),
            Linear(9.0, -20.0),
            None,
            "ScheduleTime, which knows λ from -10.05 to 9.115",
            "-20 to 9",
            9.95 / 29,
        ),
        (
            ScheduleTime(Custom(lambda t: 5 - 10 * t)),
            Linear(6.0, -5.0),
            None,
            "-5 to 5",
            "-5 to 6",
            1 / 11,
        ),
        (
            ScheduleTime(Linear()),
            Linear(13.3, -8.0),
            None,
            "ScheduleTime, which knows λ from -5 to 13.3",
            "-8 to 13.3",
            3 / 21.3,
        ),
        (ScheduleTime(Linear(5.0, -5.0)), Linear(10.0, -10.0), 4, "-5 to 5", "-10 to 5", 0.25),
        (
            ScheduleTime(Linear(5.0, -5.0)),
            Histogram([1.0, 1.0, 2.0], 10.0, -5.0),
            None,
            "-5 to 5",
            "-5 to 10",
            0.5,
        ),
        (
            ScheduleTime(Linear(5.0, -5.0)),
            LearnedLinear(10.0, -5.0),
            None,
            "-5 to 5",
            "-5 to 10",
            1 / 3,
        ),
        (
            TableStep(Tabulated([5.0, 0.0, -4.0])),
            Tabulated([5.0, 0.0, -4.0, -math.inf]),
            3,
            "-4 to 5",
            "-inf to 0",
            1 / 3,
        ),
        (TableStep(TABLE), Shifted(TABLE, -3.0), 999, "-10.12 to 9.21", "-13.12 to 5", None),
    ],
)
def test_times_that_are_asked_beyond_what_they_know(time, schedule, steps, known, asked, share):
    model = told(time, V())
    call = lambda: weighted_elbo(model, X, schedule=schedule, steps=steps)  # noqa: E731
    (said,) = warned(call)
    assert said.startswith("the network has time=")
    assert f"{known}" in said
    assert f"is called with λ from {asked}" in said
    if share is not None:
        assert f"{100 * share:.3g} % of the draws lie outside" in said
    assert warned(call) == []  # once
    assert (
        len(warned(lambda: weighted_elbo(copy.deepcopy(model), X, schedule=schedule, steps=steps)))
        == 1
    )


@pytest.mark.parametrize(
    ("time", "schedule", "steps"),
    [
        (TableStep(TABLE), TABLE, 999),
        (TableStep(TABLE), TABLE, None),
        (TableStep(TABLE), LinearBeta(), None),
        (TableStep(TABLE), Cosine(9.3, -10.2), None),
        (ScheduleTime(Cosine()), Cosine(10.0, -10.0), None),
        (ScheduleTime(Linear()), LearnedLinear(), None),
        (ScaledGamma(), Cosine(), None),  # it goes on in a straight line
        (lambda logsnr: logsnr, Cosine(), None),
        (TableStep(Tabulated([5.0, 0.0, -math.inf])), Tabulated([5.0, 0.0, -math.inf]), 2),
        (
            ScheduleTime(Linear(9.0, -10.0)),
            Linear(10.0, -10.0),
            2,
        ),  # the chain's first level is the decoder's
    ],
)
def test_nothing_is_said_within(time, schedule, steps):
    model = told(time, V())
    assert warned(lambda: weighted_elbo(model, X, schedule=schedule, steps=steps)) == []


def test_every_loss_evaluation_and_sampler_says_it():
    wide = Linear(13.0, -13.0)
    options = {"schedule": wide, "decoder": DECODER}
    z = torch.randn(4, 2)
    calls = {
        "elbo": lambda one: elbo(one, DATA, **options),
        "Objective": lambda one: objective_of(one, **options),
        "hybrid_loss": lambda one: hybrid_loss(one, X, schedule=wide, steps=4, bound_weight=0.0),
        "path_bound": lambda one: path_bound(one, DATA, steps=4, **options),
        "evaluate": lambda one: evaluate(one, DATA, draws=2, replicates=2, **options),
        "compare": lambda one: compare(
            told(lambda logsnr: logsnr), one, DATA, draws=2, replicates=2, **options
        ),
        "ode_likelihood": lambda one: ode_likelihood(one, X, schedule=wide),
        "path_importance": lambda one: path_importance(one, DATA, steps=4, samples=2, **options),
        "sample": lambda one: sample(one, z, schedule=wide, steps=4, step=ddim),
    }
    for name, call in calls.items():
        said = warned(lambda call=call: call(told(TableStep(TABLE), V())))
        assert len(said) == 1, (name, said)
        assert said[0].startswith(
            "the network has time=TableStep, which knows λ from -10.12 to 9.21"
        ), said
        assert said[0].endswith("% of the draws lie outside (give both the same ends)")
        assert warned(lambda call=call: call(told(TableStep(TABLE), V()).eval())) != []
        assert warned(lambda call=call: call(told(lambda logsnr: logsnr, V()))) == []


def test_samplers_are_watched_by_their_levels():
    model = told(TableStep(TABLE), V())
    z = torch.randn(4, 2)
    assert warned(lambda: sample(model, z, levels=trailing(TABLE, 4), step=ddim)) == []
    (said,) = warned(lambda: sample(model, z, levels=[-9.0, 0.0, 10.0, 11.0], step=ddim))
    assert "50 % of the draws lie outside" in said
    (said,) = warned(lambda: sample(model, z, schedule=logistic(), steps=4, step=ddim))
    assert "is called with λ from -8.8 to 12.4: 20 % of the draws lie outside" in said
    assert warned(lambda: sample(model, z, schedule=logistic(), steps=4, step=ddim)) == []  # once
    assert warned(lambda: sample(model, z, schedule=Karras(0.02, 80.0), steps=4, step=ddim)) == []


def test_sampling_beyond_the_training_is_named():
    model, z = trained_between(Linear(9.0, -7.0)), torch.randn(4, 2)
    assert warned(lambda: sample(model, z, schedule=Cosine(9.0, -7.0), steps=4)) == []
    for _ in range(2):
        said = warned(lambda: sample(model, z, schedule=Linear(13.0, -7.0), steps=4))
    assert said == []  # once
    (said,) = warned(lambda: sample(model, z, levels=[-9.0, 0.0, 9.0]))
    assert said.startswith("the network was trained on λ from -7 to 9, and is called with λ from")
    assert "33.3 % of the draws lie outside (use it between the ends of its" in said


def test_what_a_network_has_inside_is_found():
    network = MLP(2)
    network.time = FourierFeatures(32, of=TableStep(TABLE))
    inside = Denoiser(network, V())
    held = nn.ModuleDict({"one": Denoiser(network, V())})["one"]
    for model in (inside, Clipped(inside), held):
        assert (
            len(
                warned(
                    lambda model=model: sample(
                        model, torch.randn(2, 2), schedule=Cosine(), steps=2, step=ddim
                    )
                )
            )
            == 1
        )

    class Own:
        logsnr_range = (3.0, -3.0)

        def __call__(self, logsnr):
            return logsnr / 3

    (said,) = warned(lambda: weighted_elbo(told(Own()), X, schedule=SignalPower()))
    assert "has time=Own, which knows λ from -3 to 3" in said


def trained_between(schedule, **options):
    model = told(lambda logsnr: logsnr, V())
    weighted_elbo(model, X, schedule=schedule, **options).mean().backward()
    return model


def test_an_evaluation_beyond_the_training_is_named():
    model = trained_between(Linear(9.0, -7.0))
    assert model.trained == (9.0, -7.0)
    options = {"decoder": DECODER, "draws": 2, "replicates": 2}
    assert warned(lambda: evaluate(model, DATA, schedule=Cosine(9.0, -7.0), **options)) == []
    assert warned(lambda: evaluate(model, DATA, schedule=Linear(8.0, -6.0), **options)) == []
    (said,) = warned(lambda: evaluate(model, DATA, schedule=Cosine(13.3, -7.0), **options))
    assert said.startswith(
        "the network was trained on λ from -7 to 9, and is called with λ from -7 to 13.3: 21.2 % "
        "of the draws lie outside"
    )
    assert said.endswith("outside (use it between the ends of its training)")
    assert (
        warned(lambda: evaluate(model, DATA, schedule=Cosine(13.3, -7.0), **options)) == []
    )  # once
    for call in (
        lambda wide: ode_likelihood(model, X, schedule=wide),
        lambda wide: path_importance(
            model, DATA, schedule=wide, decoder=DECODER, steps=100, samples=2
        ),
        lambda wide: compare(model, told(lambda logsnr: logsnr), DATA, schedule=wide, **options),
        lambda wide: compare(told(lambda logsnr: logsnr), model, DATA, schedule=wide, **options),
        lambda wide: elbo(model.eval(), DATA, schedule=wide, decoder=DECODER),
    ):
        width = 10.0 + torch.rand(()).item()
        assert len(warned(lambda call=call, width=width: call(Linear(width, -7.0)))) == 1
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(trained_picklable()))):
        assert copied.trained == (9.0, -7.0)


def trained_picklable():
    model = Denoiser(Net(), V())
    weighted_elbo(model, X, schedule=Linear(9.0, -7.0)).mean().backward()
    return model


def test_training_on_more_is_known():
    model = trained_between(Linear(9.0, -7.0))
    elbo(model, DATA, schedule=Linear(10.0, -3.0), decoder=DECODER).total.mean().backward()
    assert model.trained == (10.0, -7.0)
    hybrid_loss(model, X, schedule=Cosine(5.0, -12.0), steps=4, bound_weight=0.0).mean().backward()
    assert model.trained == (10.0, -12.0)
    with torch.no_grad():
        warned(lambda: weighted_elbo(model, X, schedule=Cosine(15.0, -15.0)))
    assert model.trained == (10.0, -12.0)
    model.eval()
    warned(lambda: weighted_elbo(model, X, schedule=Cosine(15.0, -15.0)).mean().backward())
    assert model.trained == (10.0, -12.0)
    model.trained = (15.0, -15.0)  # as its user knows
    options = {"decoder": DECODER, "draws": 2, "replicates": 2}
    assert warned(lambda: evaluate(model, DATA, schedule=Cosine(), **options)) == []


def test_learned_ends_are_noted_as_they_move():
    schedule, model = LearnedLinear(9.0, -7.0), told(lambda logsnr: logsnr, V())
    for _ in range(2):
        elbo(model, DATA, schedule=schedule, decoder=DECODER).total.mean().backward()
        with torch.no_grad():
            schedule.low -= 1.0
    high, low = (float(end) for end in model.trained)
    assert (low, high) == pytest.approx((-8.0, 9.0), abs=1e-6)
    options = {"decoder": DECODER, "draws": 2, "replicates": 2}
    assert (
        len(warned(lambda: evaluate(model, DATA, schedule=schedule, **options))) == 1
    )  # at −9 it never was
    assert warned(lambda: evaluate(model, DATA, schedule=Linear(9.0, -8.0), **options)) == []
    copy.deepcopy(model)


def test_a_run_knows_what_it_was_trained_on(tmp_path):
    config = points(steps=2, schedule={"name": "Linear", "logsnr_max": 9.0, "logsnr_min": -7.0})
    data = data_of(config)
    with Run.open(tmp_path, config) as run:
        averaged = train(config.objective(), data, config, run=run, quiet=True)
    for objective in (averaged, Run(tmp_path).load()):
        assert objective.model.trained == (9.0, -7.0)
        options = {"decoder": objective.decoder, "draws": 2, "replicates": 2}
        assert (
            warned(
                lambda o=objective, options=options: evaluate(
                    o.model, data[:4], schedule=o.schedule, **options
                )
            )
            == []
        )
        (said,) = warned(
            lambda o=objective, options=options: evaluate(
                o.model, data[:4], schedule=Linear(), **options
            )
        )
        assert (
            "the network was trained on λ from -7 to 9, and is called with λ from -5 to 13.3"
            in said
        )
    assert isinstance(config, Config)

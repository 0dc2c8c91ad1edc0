"""What a config can name: public classes and constructors of the rooms, and nothing else."""

import inspect
import re
from types import ModuleType

import pytest
from watch import nothing_happens

from vdiff import decoder, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff.schedule import Cosine, Linear, Schedule, Shifted, law
from vdiff.training import Config
from vdiff.training.spec import KINDS, build, registry, spec_errors

UNET = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}
ROOMS = {
    "network": networks,
    "schedule": schedule,
    "parameterization": parameterization,
    "weighting": weighting,
    "decoder": decoder,
    "variance": variance,
}


def test_a_config_names_what_the_rooms_make_public():
    assert set(registry(networks)) == {
        "MLP", "DDPMUNet", "IDDPMUNet", "Transformer", "UNet", "UNet1d", "VDMUNet",
    }  # fmt: skip
    assert set(registry(variance)) == {
        "FixedLarge",
        "LearnedLogVariance",
        "FixedSmall",
        "LearnedRange",
        "LearnedVariance",
    }
    assert set(registry(decoder)) == {"Categorical", "DiscretizedGaussian", "Gaussian"}
    tables = ["from_betas", "from_alphas_cumprod", "linear_betas", "cosine_betas"]
    tables = [f"Tabulated.{name}" for name in tables]
    assert [name for name in registry(schedule) if "." in name] == tables
    # no final class, or made of a function, of a list of schedules, of a network
    left_out = {"Schedule", "Law", "Custom", "Path", "PerDimension", "MuLAN"}
    left_out |= {"resolution_shift", "sequence_shift"}
    assert set(registry(schedule)) == {*schedule.__all__, *tables} - left_out
    left_out = {"Weighting", "Factor", "Custom", "loss_factor"}
    assert set(registry(weighting)) == set(weighting.__all__) - left_out
    assert set(registry(law)) == set(law.__all__) - {"Law", *schedule.__all__}


def test_annotations_are_types_that_a_config_can_be_checked_against():
    """A string would have to be evaluated; an argument without an annotation cannot be given."""
    for room in KINDS:
        for made in registry(room).values():
            for one in inspect.signature(made).parameters.values():
                if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                    assert not isinstance(one.annotation, str), one
                    assert one.annotation is not one.empty, one


def test_nothing_is_run_where_a_config_is_read():
    table = {"name": "Tabulated.linear_betas"}
    text = {"network": UNET, "schedule": table, "variance": {"name": "LearnedRange"}, "chain": 999}
    with nothing_happens():
        Config.from_dict(text)
    with nothing_happens(), pytest.raises(ValueError, match="must be a class of"):
        Config.from_dict(text | {"weighting": {"name": "MSE", "schedule": {"name": "Tensor"}}})


@pytest.mark.parametrize("room", KINDS, ids=lambda room: room.__name__)
def test_what_needs_no_argument_can_be_made_by_its_name(room: ModuleType):
    for name in registry(room):
        if not spec_errors("x", room, {"name": name}):
            assert isinstance(build(room, {"name": name}), KINDS[room].base)


def test_a_new_schedule_is_known_where_its_room_exports_it(monkeypatch):
    class Steep(Linear):
        """A schedule of somebody's own."""

        def __init__(self, logsnr_max: float = 3.0, *, turns: int = 1) -> None:
            super().__init__(logsnr_max, -3.0)

        @classmethod
        def high(cls, by: float) -> "Steep":
            """Another constructor."""
            return cls(3.0 + by)

        @classmethod
        def words(cls) -> str:
            """Of another type."""
            return "no schedule"

    monkeypatch.setattr(schedule, "Steep", Steep, raising=False)
    with pytest.raises(ValueError, match=r"must be a class of vdiff.schedule; got 'Steep'"):
        Config(network=UNET, schedule={"name": "Steep"})
    monkeypatch.setattr(schedule, "__all__", [*schedule.__all__, "Steep"])
    assert Config(network=UNET, schedule={"name": "Steep"}).objective().schedule.logsnr_max == 3.0
    high = {"name": "Shifted", "schedule": {"name": "Steep.high", "by": 1}, "shift": 1}
    assert Config(network=UNET, schedule=high).objective().schedule.logsnr_max == 5.0
    with pytest.raises(ValueError, match=r"'schedule.turns' must be a Python int; got 1.5"):
        Config(network=UNET, schedule={"name": "Steep", "turns": 1.5})
    assert "Steep.words" not in registry(schedule)


# modules, functions, bases, types of annotations, methods, what needs a function or a tensor
BEYOND = [
    "", "Tensor", "Callable", "Any", "math", "torch", "nn", "Schedule", "Levels", "Law",
    "Weighting", "Parameterization", "Decoder", "ReverseVariance", "Prediction", "LevelHead",
    "FourierFeatures", "Custom", "AnalyticVariance", "loss_factor", "__init__", "__class__",
    "Tabulated.__init__", "Tabulated.register_buffer", "Tabulated.compile", "Linear.mro",
    "Linear.__subclasses__",
    "Cosine.check", "Histogram.proportional", "Histogram.optimal", "Adaptive.optimal",
    "Categorical.fit", "UNet.forward", "Eps.row",
]  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_nothing_else_can_be_named(name: str):
    for field, room in ROOMS.items():
        plain = r"( whose arguments are plain data)?"
        message = rf"'{field}\.name' must be a class of {room.__name__}{plain}; got '{name}'"
        with pytest.raises(ValueError, match=message):
            Config(**{"network": UNET, field: {"name": name}})  # type: ignore[arg-type]
    for base, key in (("MSE", "schedule"), ("MSE", "parameterization"), ("Product", "factor")):
        said = "\n".join(
            map(str, spec_errors("w", weighting, {"name": base, key: {"name": name}}))
        )
        assert f"'w.{key}.name' must be a class of" in said


INT = "a Python int"
NUMBER = "a finite number"
NEED_A_SCHEDULE = 'a Schedule with its arguments, {"name": …}'
NEED_EITHER = f'{NEED_A_SCHEDULE} or a Law with its arguments, {{"name": …}}'


@pytest.mark.parametrize(
    ("name", "key", "value", "requirement", "got"),
    [
        ("UNet", "width", None, INT, "null"),
        ("UNet", "width", 8.0, INT, "8.0"),
        ("UNet", "width", "8", INT, "'8'"),
        ("UNet", "width", True, INT, "true"),
        ("UNet", "width", [8], INT, "[8]"),
        ("UNet", "width", {"name": "X"}, "a plain value", "{'name': 'X'}"),
        ("UNet", "width", 10**9, "at most 1,048,576", "1000000000"),
        ("UNet", "width", -(10**9), "at most 1,048,576", "-1000000000"),
        ("UNet", "multipliers", [1, 10**9], "at most 1,048,576", "[1, 1000000000]"),
        ("UNet", "multipliers", [1, None], f"a list, each {INT}", "[1, None]"),
        ("UNet", "multipliers", 3, f"a list, each {INT}", "3"),
        ("UNet", "labels", 2.5, f"{INT} or null", "2.5"),
        ("UNet", "dropout", float("nan"), NUMBER, "nan"),
        ("UNet", "scale_shift", 1, "true or false", "1"),
        ("UNet", "time", 3, "null", "3"),
        ("Cosine", "shift", False, NUMBER, "false"),
        ("Cosine", "logsnr_max", float("inf"), NUMBER, "inf"),
        ("LinearBeta", "logsnr_max", [], f"{NUMBER} or null", "[]"),
        ("Histogram", "mass", "11", f"a list, each {NUMBER}", "'11'"),
        ("Shifted", "schedule", "Cosine", NEED_A_SCHEDULE, "'Cosine'"),
        ("MSE", "schedule", None, NEED_EITHER, "null"),
        ("ELBO", "args", 1, "an argument of ELBO", "1"),
        ("ELBO", "self", 1, "an argument of ELBO", "1"),
        ("Categorical", "prior", [0.5, 0.5], "null", "[0.5, 0.5]"),
        ("LearnedRange", "\x1b[2J", 1, "an argument of LearnedRange", "1"),
    ],
)
def test_a_wrong_type_is_named(name: str, key: str, value: object, requirement: str, got: str):
    room = next(room for room in KINDS if name in registry(room))
    key_shown = repr(key)[1:-1]
    message = f"argument 'x.{key_shown}' must be {requirement}; got {got}"
    said = spec_errors("x", room, {"name": name, key: value})
    assert any(message in str(line) for line in said), said
    with pytest.raises(ValueError, match=re.escape(f"build: {message.replace('x.', '', 1)}")):
        build(room, {"name": name, key: value})


def test_a_law_is_no_schedule():
    said = spec_errors("x", schedule, {"name": "Shifted", "schedule": {"name": "Logistic"}})
    assert "'x.schedule.name' must be a class of vdiff.schedule; got 'Logistic'" in str(said[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (UNET | {"width": 0}, "UNet: argument 'width' must be at least 1; got 0"),
        (UNET | {"multipliers": [-2]}, "UNet: argument 'multipliers' must be at least 1; got -2"),
        (UNET | {"labels": 0}, "UNet: argument 'labels' must be at least 1; got 0"),
        (UNET | {"dropout": 1.5}, "UNet: argument 'dropout' must lie in [0, 1]; got 1.5"),
        (UNET | {"heads": 3}, "Attention: argument 'heads' must divide its 16 channels; got 3"),
        ({"name": "DDPMUNet", "channels": -1}, "DDPMUNet: argument 'channels' must be at least 1"),
        ({"name": "VDMUNet", "width": -4}, "VDMUNet: argument 'width' must be at least 1; got -4"),
        ({"name": "MLP", "dims": 0}, "MLP: argument 'dims' must be at least 1; got 0"),
        ({"name": "MLP", "dims": 2, "dims_out": -1}, "MLP: argument 'dims_out' must be"),
        ({"name": "MLP", "dims": 2, "features": -2}, "build: argument 'MLP' must have arguments"),
        ({"name": "IDDPMUNet", "width": 0}, "build: argument 'IDDPMUNet' must have arguments"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match="argument '") as refused:
        build(networks, spec)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_error_of_the_machine_is_no_error_of_the_arguments(monkeypatch):
    """torch asks for a temporary folder where it builds a network, and a full disk has none."""

    def full(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("torch.nn.Conv2d.__init__", full)
    with pytest.raises(FileNotFoundError, match="No usable temporary directory found"):
        build(networks, UNET)


def test_an_old_name_is_refused_with_the_new_one():
    spec = {"name": "DiscretizedGaussian", "levels": 17, "uses_network": True, "clip": 0.01}
    (fault,) = spec_errors("decoder", decoder, spec)
    assert str(fault) == (
        "argument 'decoder.clip' must be an argument of DiscretizedGaussian; got 0.01 "
        "(it is called 'posterior_variance' now)"
    )
    (fault,) = spec_errors(
        "decoder", decoder, {"name": "Categorical", "levels": 17, "closed": True}
    )
    assert fault.hint == "it is called 'levels_at_ends' now"


def test_specs_are_nested_as_their_annotations_say():
    law = {"name": "Logistic"}
    ends = {"logsnr_max": 5, "logsnr_min": -5}
    truncated = build(schedule, {"name": "Truncated", "law": law, **ends})
    assert repr(truncated.law) == "Logistic(mean=0.0, scale=2.0)"
    made = build(schedule, {"name": "Shifted", "schedule": {"name": "Cosine"}, "shift": -2})
    assert isinstance(made, Shifted)
    assert isinstance(made.schedule, Cosine)
    flow = {"name": "VarianceExploding", "parameterization": {"name": "V", "sigma_data": 0.5}}
    assert (
        repr(build(parameterization, flow))
        == "VarianceExploding(parameterization=V(sigma_data=0.5))"
    )
    mean = {"name": "PosteriorMean", "schedule": {"name": "Linear"}, "steps": 3}
    assert isinstance(build(parameterization, mean).schedule, Schedule)

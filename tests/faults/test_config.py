"""Settings that are wrong: every one is named at once, with what it must be and the nearest
name."""

import random

import pytest

from vdiff import decoder, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff.training import Config
from vdiff.training.config import CHECKS
from vdiff.training.spec import registry

UNET = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}


@pytest.mark.parametrize(("words", "messages"), [
    (["stpes=3"], ["'stpes' must be a field; got 3 (did you mean 'steps'?)"]),
    (["schedul.name=Cosine"], [
      "'schedul' must be a field; got {'name': 'Cosine'} "
      "(did you mean 'schedule'?)"
    ]),
    (["steps"], ["'override' must be name=value; got 'steps'"]),
    (["=3"], ["'override' must be name=value; got '=3'"]),
    (["schedule.name=cosin"], [
      "'schedule.name' must be a class of vdiff.schedule; got "
      "'cosin' (did you mean 'Cosine'?)"
    ]),
    (["schedule.name=PerDimension"], [
      "'schedule.name' must be a class of vdiff.schedule whose arguments are plain data; got "
      "'PerDimension' (make it in your own code: train(Objective(model, schedule=…), data, "
      "config))"
    ]),
    (["schedule.name=Tabulated.linear_beta"], [
      "must be a class of vdiff.schedule; got 'Tabulated.linear_beta' (did you mean "
      "'Tabulated.linear_betas'?)"
    ]),
    (["network.widht=3"], [
      "'network.widht' must be an argument of UNet; got 3 "
      "(did you mean 'width'?)"
    ]),
    (["network.name=MLP"], [(
      "'network.channels' must be an argument of MLP; got 1 (all of it is replaced by "
      "network={\"name\": \"MLP\", …})"
    ), "'network.dims' must be given for MLP"]),
    (["weighting=Sigmoid"], [
      "'weighting' must be a class with its arguments, "
      "{\"name\": …}; got 'Sigmoid'"
    ]),
    (["weighting.name=MSE", "weighting.schedule.name=Cosin",
      "weighting.parameterization.name=Eps"], [
      "'weighting.schedule.name' must be a class of vdiff.schedule; got 'Cosin' (did you mean "
      "'Cosine'?)"
    ]),
    (["network.heads.name=Eps"], ["'network.heads' must be a plain value; got {'name': 'Eps'}"]),
    (["steps=0", "batch=1.5", "lr=-1", "seed=true", "betas=[0.9]", "ema=[]", "decay=linear",
      "data=cifar-10", "shape=3"],
      ["'steps' must be a whole number of at least 1; got 0", "'batch' must be a whole number",
      "'lr' must be a finite number greater than 0; got -1", "'seed' must be a whole",
      "'betas' must be two numbers in [0, 1)", "'ema' must be decays in [0, 1)",
      "'decay' must be one of cosine, constant", "(did you mean 'cifar10'?)",
      "'shape' must be a list of sizes"]),
    (["lr=NaN", "clip=Infinity", "weight_decay=-0.1", "warmup=-1", "folder="], ["'lr' must",
      "'clip' must", "'weight_decay' must", "'warmup' must", "'folder' must be text"]),
    (["accumulate=3", "conditional=true", "augment=flip-turn", "bound_weight=0.1",
      "resampling=true"],
      ["'accumulate' must divide the batch of 128; got 3",
      "'conditional' must come with a network that has labels",
      "'augment' must come with a network that takes `augmented`",
      "'bound_weight' must come with a chain",
      "'resampling' must come with the bound of a chain"]),
    (["chain=10", "bound_weight=0", "weighting.name=Sigmoid"],
      ["'weighting' must be left out where bound_weight is given"]),
    (["weighting.name=MinSNR"], [
      "'weighting' must be a total; got the factor {'name': 'MinSNR'} (a factor multiplies a "
      "base: {\"name\": \"Product\", \"base\": {\"name\": \"MSE\", …}, \"factor\": {\"name\": "
      "\"MinSNR\"}})"
    ]),
    (["weighting.name=Product", "weighting.base.name=P2", "weighting.factor.name=Debiased"],
      ["'weighting' must be a total; got the factor {'name': 'Product'"]),
    (["network.width=null"], ["'network.width' must be a Python int; got null"]),
    (["schedule.logsnr_max='9'"], ["'schedule.logsnr_max' must be a finite number; got '9'"]),
    (["network.width=1000000000"], ["'network.width' must be at most 1,048,576; got 1000000000"]),
    (["schedule.name=Tensor"], ["'schedule.name' must be a class of vdiff.schedule; got 'Tens"]),
    (["weighting.name=Product", "weighting.base.name=Callable"],
      ["'weighting.base.name' must be a class of vdiff.weighting; got 'Callable'"]),
    (["resampling=true", "chain=2000000"],
      ["'chain' must be at most 1,048,576 with resampling; got 2000000"]),
    (["network=" + "[" * 2000 + "]" * 2000],
      ["'network' must be plain data; got a value that is nested more than 32 deep"]),
    (["network=" + "-" * 10**5 + "1"],
      ["'network' must be plain data; got a value that is nested too deep"]),
    ([".".join(["network"] + ["x"] * 2000) + "=1"],
      ["'network' must be plain data; got a value that is nested more than 32 deep"]),
    (["seed=" + "9" * 30],
      ["'seed' must be plain data; got a whole number of more than 63 bits"]),
    (["shape=(1, {2})", "betas=b'x'"],
      ["'shape' must be plain data; got a set", "'betas' must be plain data; got a bytes"]),
    (["data=" + "x" * 10**6, "a\x1b[2Jb=1"], ["'a\\x1b[2Jb' must be a field; got 1"]),
    (["data=" + "x" * 10**6], ["must be one of cifar10, digits, patches, or a path; got 'xxx"]),
    (["decoder=null"], ["'decoder' must be given where the bound is trained; got None"]),
])  # fmt: skip
def test_what_is_wrong_is_said_of_all_fields_at_once(
    words: list[str], messages: list[str]
) -> None:
    with pytest.raises(ValueError, match="Config: argument ") as refused:
        Config(network=UNET).override(words)
    lines = str(refused.value).splitlines()
    assert all(line.startswith("Config: argument '") for line in lines)
    for message in messages:
        assert any(message in line for line in lines), f"{message}\nis not in\n{refused.value}"
    assert all(len(line) < 500 and line.isprintable() for line in lines)


ROOMS = {
    "network": networks,
    "schedule": schedule,
    "parameterization": parameterization,
    "weighting": weighting,
    "decoder": decoder,
    "variance": variance,
}
VALUES = [
    "null", "true", "false", "0", "1", "-1", "3", "8", "1.5", "-0.5", "1e9", "1000000000", "NaN",
    "Infinity", "1e400", "x", "'x'", "Tensor", "Cosine", "[]", "[1]", "[0.5]", "[null]", "[[1]]",
    "{}", '{"name":"Cosine"}', '{"name":"Tensor"}', '{"a":1}', "(1,)", "{1}", "{1:2}", "b'x'", "=",
    "λ", "\x1b[2J", "[1,", "-", "[" * 2000 + "]" * 2000, "(" * 2000, "-" * 3000 + "1",
    "1+" * 3000 + "1", '{"a":' * 2000, "9" * 5000, "a" * 10**5,
]  # fmt: skip
ARGUMENTS = {
    "network": ["width", "channels", "labels", "dropout", "heads", "multipliers", "time"],
    "schedule": ["logsnr_max", "mean", "levels", "hidden", "bins", "schedule", "mass"],
    "weighting": ["schedule", "parameterization", "steps", "gamma", "bias", "base", "factor"],
    "parameterization": ["sigma_data", "schedule", "steps"],
    "decoder": [
        "levels",
        "levels_at_ends",
        "prior",
        "variance",
        "uses_network",
        "posterior_variance",
    ],
    "variance": ["profile"],
}


def refusal(words: list[str]) -> list[str]:
    """The lines in which settings are refused, or none where they make an objective."""
    try:
        Config(network=UNET).override(words).objective()
    except (TypeError, ValueError) as error:
        return str(error).split("\n")
    return []


@pytest.mark.filterwarnings("error")
def test_any_setting_makes_an_objective_or_is_refused_in_words():
    dice, made = random.Random(0), 0
    for _ in range(500):
        field = dice.choice([*CHECKS, *6 * list(ARGUMENTS)])
        places = ["", ".name", ".foo", *(f".{name}" for name in ARGUMENTS.get(field, []))]
        words = [f"{field}{dice.choice(places)}={dice.choice(VALUES)}"]
        if field in ROOMS and dice.random() < 0.5:
            words.insert(0, f"{field}.name={dice.choice(list(registry(ROOMS[field])))}")
        lines = refusal(words)
        assert all("argument '" in line and "; got " in line for line in lines), words
        assert all(line.isprintable() and len(line) < 1000 for line in lines), words
        made += not lines
    assert made >= 5


def test_a_factor_times_a_total_is_a_weighting() -> None:
    words = ["weighting.name=Product", "weighting.base.name=P2", "weighting.factor.name=ELBO"]
    assert (
        repr(Config(network=UNET).override(words).objective().loss.weighting)
        == "Product(P2(gamma=1.0, k=1.0), ELBO())"
    )

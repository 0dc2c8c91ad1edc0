"""Fields of a config that do not go together."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from vdiff import nn as networks
from vdiff.discrete import parameterization as of_tokens
from vdiff.errors import InvalidValue
from vdiff.training.fields import is_own, target_room
from vdiff.training.spec import LARGEST

Values = Mapping[str, Any]


def misfits(values: Values) -> list[InvalidValue]:
    """What is wrong with fields that are right by themselves."""
    takes: Collection[str] = ("label", "augmented")
    if not is_own(values["network"]):
        network = getattr(networks, values["network"]["name"].partition(".")[0])
        takes = inspect.signature(network.forward).parameters
    return [*_of_network(values, takes), *_of_tokens(values, takes), *_of_loss(values)]


def _of_network(values: Values, takes: Collection[str]) -> list[InvalidValue]:
    """Against what the network takes, and the batch."""
    labels = values["network"].get("labels") or 0
    conditional, dropout = values["conditional"], values["label_dropout"]
    fits, batch = values["batch"] % values["accumulate"] == 0, values["batch"]
    wrong = _unless(fits, values, "accumulate", f"divide the batch of {batch}")
    fits, hint = ("label" in takes and labels) or not conditional, 'network: {"labels": 10, …}'
    wrong += _unless(fits, values, "conditional", "come with a network that has labels", hint)
    fits = not dropout or (conditional and labels > 1)
    hint = "conditional=true, and the network has one class more than the data"
    wrong += _unless(fits, values, "label_dropout", "come with a conditional network", hint)
    fits = "augmented" in takes or values["augment"] != "flip-turn"
    hint = "another network would learn turned images: VDMUNet, or augment='flip'"
    what = "come with a network that takes `augmented`"
    return wrong + _unless(fits, values, "augment", what, hint)


def _of_tokens(values: Values, takes: Collection[str]) -> list[InvalidValue]:
    """Against a process over tokens, or none."""
    tokens, spec = values["process"] is not None, values["parameterization"]
    fits = (target_room(spec) is of_tokens) is tokens
    names = ", ".join(of_tokens.__all__[:2])
    what = f"be one of {names} with a process" if tokens else "come with a process over tokens"
    wrong = [] if fits else [InvalidValue("parameterization", what, spec["name"])]
    if not tokens:
        fits = is_own(values["network"]) or "logsnr" in takes
        return wrong + _unless(fits, values, "process", "be given for a network over tokens")
    for name in ("decoder", "variance", "bound_weight"):
        wrong += _unless(values[name] is None, values, name, "be left out for tokens")
    wrong += _unless(values["augment"] == "none", values, "augment", "be 'none' for tokens")
    return wrong + _unless(not values["resampling"], values, "resampling", "be false for tokens")


def _of_loss(values: Values) -> list[InvalidValue]:
    """Against the loss: the bound, a weighting, or the hybrid loss."""
    chained, hybrid = values["chain"] is not None, values["bound_weight"] is not None
    bound, resampling = values["weighting"] is None and not hybrid, values["resampling"]
    fits = not bound or values["decoder"] is not None or values["process"] is not None
    wrong = _unless(fits, values, "decoder", "be given where the bound is trained")
    fits = not hybrid or values["weighting"] is None
    hint = "the hybrid loss has the plain squared error of ε"
    what = "be left out where bound_weight is given"
    wrong += _unless(fits, values, "weighting", what, hint)
    fits, hint = chained or values["variance"] is None, "in continuous time it trains nothing"
    wrong += _unless(fits, values, "variance", "come with a chain", hint)
    wrong += _unless(chained or not hybrid, values, "bound_weight", "come with a chain", hint)
    fits, hint = not resampling or (chained and bound), "chain=T, without a weighting"
    wrong += _unless(fits, values, "resampling", "come with the bound of a chain", hint)
    fits = not resampling or (values["chain"] or 0) <= LARGEST
    what, hint = f"be at most {LARGEST:,} with resampling", "it remembers every step"
    return wrong + _unless(fits, values, "chain", what, hint)


def _unless(
    holds: object, values: Values, field: str, what: str, hint: str = ""
) -> list[InvalidValue]:
    return [] if holds else [InvalidValue(field, what, values[field], hint)]

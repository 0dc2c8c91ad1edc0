"""What a model is told beside z and λ: keywords of a call, or one mapping with names of any
kind."""

from collections.abc import Mapping
from typing import Any

from vdiff.errors import checking, did_you_mean, must, shown

Condition = Mapping[str, Any] | Any | None  # what is no mapping is the argument `condition` itself

_WORDS = (
    "schedule",
    "weighting",
    "decoder",
    "steps",
    "generator",
    "draws",
    "estimator",
    "bound_weight",
)
_ELSEWHERE = {
    ("weighted_elbo", "decoder"): "elbo takes a decoder; here x is encoded already",
    ("elbo", "weighting"): "the bound's weighting is ELBO(); weighted_elbo takes another",
    ("path_bound", "t"): "a path visits every step",
    ("path_bound", "eps"): "a path draws the noise of every step",
}


def conditions(function: str, condition: Condition, keywords: dict[str, Any]) -> dict[str, Any]:
    """The mapping `condition` as a dictionary; raises TypeError for keywords.

    >>> conditions("elbo", {"steps": 3}, {})
    {'steps': 3}
    """
    for word in keywords:
        hint = f"what the network is given goes into condition={{'{word}': …}}"
        hint = _ELSEWHERE.get((function, word)) or did_you_mean(word, _WORDS, cutoff=0.8) or hint
        raise TypeError(f"{function}: argument '{word}' is unknown; {hint}")
    return merged(function, condition, {})


def merged(function: str, condition: Condition, keywords: dict[str, Any]) -> dict[str, Any]:
    """The mapping `condition` and keywords as one dictionary. Raises TypeError for what is no
    mapping, and for the names `z` and `logsnr`, which every model is called with.

    >>> merged("elbo", {"label": 5}, {"scale": 2.0})
    {'label': 5, 'scale': 2.0}
    """
    given = {} if condition is None else condition
    if not isinstance(given, Mapping):
        hint = 'condition={"label": labels}, by the names of the network\'s arguments'
        what = "be a mapping from names to values"
        raise TypeError(must(function, "condition", what, shown(given), hint))
    for name in (*given, *keywords) if checking() else ():
        if not isinstance(name, str):
            what = "have the names of the network's arguments"
            raise TypeError(must(function, "condition", what, repr(name)))
        if name in ("z", "logsnr"):
            call = f"call=lambda network, z, t, other: network(z, t, {name}=other)"
            what = "have other names than z and logsnr"
            hint = f"Denoiser(…, {call}) gives it another"
            raise TypeError(must(function, "condition", what, repr(name), hint))
    return {**given, **keywords}


__all__ = ["Condition", "conditions", "merged"]

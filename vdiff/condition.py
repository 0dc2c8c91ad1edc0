"""What a model is told beside z and λ: keywords of a call, or one mapping with names of any
kind."""

from collections.abc import Mapping
from typing import Any

from vdiff.errors import checking, did_you_mean, must

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
    """`merged`, after a check that no keyword is a misspelt argument of the function.

    The mapping is not checked: its names may be those of the function's own arguments.

    >>> conditions("elbo", {"steps": 3}, {"label": 5})
    {'steps': 3, 'label': 5}
    """
    for word in keywords if checking() else ():
        if elsewhere := _ELSEWHERE.get((function, word)):
            raise TypeError(f"{function}: argument '{word}' is unknown; {elsewhere}")
        if word in _WORDS:
            what = "it belongs to other functions of vdiff and is no condition of a model"
            raise TypeError(f"{function}: argument '{word}' is unknown; {what}")
        if hint := did_you_mean(word, _WORDS, cutoff=0.87):
            raise TypeError(f"{function}: argument '{word}' is unknown; {hint}")
    return merged(function, condition, keywords)


def merged(function: str, condition: Condition, keywords: dict[str, Any]) -> dict[str, Any]:
    """The mapping `condition` and the keywords as one dictionary.

    A `condition` that is no mapping is passed on by that name. Raises TypeError for a name that is
    given both ways, and for `z` and `logsnr`, which every model is called with.

    >>> merged("elbo", {"label": 5}, {"scale": 2.0})
    {'label': 5, 'scale': 2.0}
    """
    if condition is None:
        condition = {}
    given = condition if isinstance(condition, Mapping) else {"condition": condition}
    for name in (*given, *keywords) if checking() else ():
        if not isinstance(name, str):
            what = "have the names of the network's arguments"
            raise TypeError(must(function, "condition", what, repr(name)))
        if name in given and name in keywords:
            raise TypeError(
                must(function, name, "be given once", "a keyword and a key of condition")
            )
        if name in ("z", "logsnr"):
            call = f"call=lambda network, z, t, other: network(z, t, {name}=other)"
            what, hint = (
                "have other names than z and logsnr",
                f"Denoiser(…, {call}) gives it another",
            )
            raise TypeError(must(function, "condition", what, repr(name), hint))
    return {**given, **keywords}


__all__ = ["Condition", "conditions", "merged"]

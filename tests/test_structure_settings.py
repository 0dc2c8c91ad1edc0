"""A run keeps what was trained, and gives back that or nothing: an objective that its config does
not describe, and a config of another run.
"""

import inspect
from typing import Any

import torch
from structures import model, objective

from vdiff import decoder, parameterization, schedule, weighting
from vdiff.parameterization import V
from vdiff.schedule import Cosine, law
from vdiff.training.structure import parts_of
from vdiff.weighting import Sigmoid

# arguments with which every public class of a config can be made
NEEDED: dict[str, dict[str, Any]] = {
    "schedule": {"schedule": Cosine()}, "shift": {"shift": 0.5}, "logsnr": {"logsnr": [3.0, 1.0,
    -2.0]}, "mass": {"mass": [1.0, 2.0]},
    "variances": {"variances": [1.0, 0.5]}, "parameterization": {"parameterization": V()},
    "levels": {"levels": 17}, "base": {"base": Sigmoid()},
    "factor": {"factor": weighting.MinSNR()}, "law": {"law": law.Logistic()},
    "steps": {"steps": 10}, "logsnr_max": {"logsnr_max": 9.0},
    "logsnr_min": {"logsnr_min": -7.0}, "weight": {"weight": torch.sigmoid}, "profile": {},
    "power": {"power": 1.0},
}  # fmt: skip
WITHIN = {  # where an instance stands in an objective
    schedule: lambda made: objective(schedule=made),
    parameterization: lambda made: objective(model=model(parameterization=made)),
    weighting: lambda made: objective(weighting=made),
    decoder: lambda made: objective(decoder=made),
}
HIDDEN = {  # settings that weights or tables hold, which a weights file brings
    ("LearnedLinear", "logsnr_max"), ("LearnedLinear", "logsnr_min"), ("Spline", "logsnr_max"),
    ("Spline", "logsnr_min"),
    ("Monotone", "logsnr_max"), ("Monotone", "logsnr_min"), ("Monotone", "sharpness"),
    # with a function of one's own, which no config names
    ("Custom", "logsnr_min"), ("Custom", "logsnr_max"),
}  # fmt: skip


def instances() -> list[tuple[Any, type, dict[str, Any], str, object]]:
    """Every public class that a config can name, its arguments, and one number among them changed
    a little.
    """
    found = []
    for home in WITHIN:
        for name in home.__all__:
            made = getattr(home, name)
            if not inspect.isclass(made) or inspect.isabstract(made):
                continue
            taken = {
                key: one
                for key, one in inspect.signature(made).parameters.items()
                if one.default is not one.empty
            }
            needed = [
                key
                for key, one in inspect.signature(made).parameters.items()
                if one.default is one.empty
            ]
            if any(key not in NEEDED for key in needed):
                continue
            given = {key: value for one in needed for key, value in NEEDED[one].items()}
            for key, one in taken.items():
                if isinstance(one.default, bool):
                    found.append((home, made, given, key, not one.default))
                elif isinstance(one.default, int | float):
                    found.append(
                        (
                            home,
                            made,
                            given,
                            key,
                            one.default + (1 if isinstance(one.default, int) else 0.125),
                        )
                    )
    return found


def test_every_setting_of_every_class_makes_a_difference():
    """Which a table of cases would forget for the next class."""
    seen = 0
    for home, made, given, key, value in instances():
        try:
            pair = [made(**given), made(**given | {key: value})]
            one, other = (parts_of(WITHIN[home](each)) for each in pair)
        except (TypeError, ValueError):  # abstract, or not a value that it takes
            continue
        seen += 1
        if (made.__name__, key) not in HIDDEN:
            assert one != other, f"{made.__name__}({key}={value!r}) is the same to parts_of"
    assert seen > 40

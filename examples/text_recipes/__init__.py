"""Published training settings over tokens, one file each, as in `recipes`: its docstring says what
it reproduces and where each number comes from, and `CONFIG` is all of it.

    vdiff train examples/text_recipes/mdlm.py:CONFIG --data tokens.npy --out runs/mdlm

Data are tokens (n, length), such as uint16 in a .npy file. The network is `vdiff.nn.Transformer`,
of the published sizes; the authors' own networks differ in details. The mathematics of MD4, LLaDA
and GIDD is `vdiff.recipe(name)`'s; their settings are not here.
"""

import importlib
from pathlib import Path

from vdiff.training import Config

NAMES = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
)


def load(name: str) -> Config:
    """The settings of a recipe."""
    config: Config = importlib.import_module(f"text_recipes.{name}").CONFIG
    return config

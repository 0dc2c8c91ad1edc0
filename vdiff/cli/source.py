"""What a command measures or samples: a run, or weights that no run holds.

    RUN           a run folder, as a training writes it
    FILE.py:NAME  a builder, a function without arguments, which returns an Objective with its
                  weights loaded
    FOLDER        what objective.save_pretrained(FOLDER) wrote

Only a run says which data and which classes its network takes; for the others they are given.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vdiff._diffusion import diffusion_of
from vdiff._validate import require
from vdiff.cli.load import DATA
from vdiff.cli.own import RUNS, Builder, add_model, builder_of, load_run
from vdiff.cli.parser import positive
from vdiff.disk import absolute

if TYPE_CHECKING:
    from vdiff.training import Config, Run
    from vdiff.training.loading import Loaded

RETURNS = "return an Objective with its weights loaded, whose loss has a decoder"
EXAMPLE = "Objective(model, schedule=…, loss=VLB(Categorical(256, levels_at_ends=True)))"

HINTS = {"data": "--data test_photos/", "shape": "--shape 3 32 32"}


class Source(NamedTuple):
    """A run with its trained weights, and the builder of its network if that is the user's.

    Weights that no run holds come as a run without files, whose config says what was given;
    `is_run` is then false.
    """

    run: "Run"
    loaded: "Loaded"
    builder: Builder | None
    is_run: bool


def add_source(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a source."""
    text = "run folder of a training; or, without a run, FILE.py:NAME, a function that returns an "
    text += f"Objective with its weights, or a folder of save_pretrained. {RUNS}"
    parser.add_argument("run", metavar="RUN", help=text)
    add_model(parser)
    text = "without a run: number of classes, if the network takes label="
    parser.add_argument("--classes", type=positive, metavar="N", help=text)


def open_source(name: str, model: str | None, classes: int | None, **given: Any) -> Source:
    """The source of that name. `given` is the `data` to measure on, or the `shape` of a sample:
    weights that no run holds need it.

    Raises ValueError for what is missing, and unless a builder returns an Objective with a
    decoder.
    """
    from vdiff.training import Run
    from vdiff.training.pretrained import is_saved

    path, saved = Path(name.rpartition(":")[0]), is_saved(Path(name))
    builds = path.suffix == ".py" or (":" in name and path.is_file())
    if not builds and not saved:
        for word, value in {"classes": classes, "shape": given.get("shape")}.items():
            require(value is None, word, "be left out for a run, whose config says it", value)
        run = Run(name)
        return Source(run, *load_run(run, model), True)
    for word, value in given.items():
        what = "be given for weights that no run holds"
        require(value is not None, word, what, None, HINTS[word])
    fits = model is None or not builds
    require(fits, "model", "be left out where RUN is a builder", model)
    return _without_run(name, name if builds else model, classes, given)


def _without_run(
    name: str, builder_name: str | None, classes: int | None, given: dict[str, Any]
) -> Source:
    """The source of a builder's own weights, or of a saved folder with the parts of a builder."""
    from vdiff.training import Run
    from vdiff.training.loading import Loaded
    from vdiff.training.pretrained import load_with

    builder = None if builder_name is None else builder_of(builder_name)
    config = _config(f"{name}:saved" if builder is None else builder.name, classes, given)
    objective = None if builder is None else builder.objective(config)
    if name == builder_name and objective is not None:
        came = "an objective without one, or a model alone"
        decodes = objective.decoder is not None or not diffusion_of(objective.model).continuous
        require(decodes, "FILE.py:NAME", RETURNS, came, EXAMPLE)
        path, _, function = name.rpartition(":")
        folder = Path(f"{Path(path).stem}-{function}")  # beside neither the program nor a run
    else:
        folder, objective = Path(name), load_with(Path(name), objective)
    record = {"run": None, "ema": None, "weights of": name}
    loaded = Loaded(objective.eval(), record, list(objective.trained_on))
    return Source(Run(folder, config), loaded, builder, False)


def _config(name: str, classes: int | None, given: dict[str, Any]) -> "Config":
    """A config that says what was given. It has no decoder, so that none is made up for a network
    that comes without."""
    from vdiff.training import Config

    network: dict[str, Any] = {"name": name} | ({} if classes is None else {"labels": classes})
    settings: dict[str, Any] = {
        "decoder": None,
        "weighting": {"name": "ELBO"},
        "level_head": False,
    }
    settings |= {"conditional": classes is not None, **given}
    if (data := given.get("data")) and data not in DATA:
        settings["data"] = str(absolute("data", data))
    return Config(network, **settings)

"""A network of your own: the builder FILE.py:NAME, given on the command line each time.

A builder is a function without arguments, such as a class. It returns

    a network     an nn.Module that is called as network(z, λ); the config says what it predicts
    a Denoiser    the network with its parameterization and the time that it expects
    an Objective  the whole of it, with its own schedule and loss

A run folder stores the builder's name and the hash of its file, never code.
"""

import argparse
import copy
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vdiff._validate import require
from vdiff.cli.load import load_object
from vdiff.errors import InvalidValue
from vdiff.objective import Objective

if TYPE_CHECKING:
    from vdiff.training import Config, Run
    from vdiff.training.loading import Loaded

RETURNS = "name a function that returns a network, a Denoiser or an Objective"
RUNS = "FILE.py is run as a Python program: name only a file that you trust"


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option --model."""
    text = "for a run with your own network: function that returns it, a Denoiser or an Objective"
    parser.add_argument("--model", metavar="FILE.py:NAME", help=f"{text}. {RUNS}")


@dataclass(frozen=True)
class Builder:
    """The function `thing` that builds a network, with its name (of the file alone, not its
    folder) and the hash of its file."""

    name: str
    source: str
    thing: Any

    def __str__(self) -> str:
        return f"{self.name}, file {self.source}"

    def objective(self, config: "Config") -> Objective:
        """Build the objective; what the builder leaves out is the config's. Raises what the
        builder raises, and ValueError unless it returns an nn.Module."""
        made = self.thing if isinstance(self.thing, nn.Module) else self.make()
        require(isinstance(made, nn.Module), "FILE.py:NAME", RETURNS, type(made).__name__)
        return made if isinstance(made, Objective) else config.objective(made)

    def make(self) -> Any:
        """Call the builder. Raises ValueError if it needs arguments."""
        try:
            return self.thing()
        except TypeError as error:
            trace = error.__traceback__
            if trace is not None and trace.tb_next is not None:  # raised inside
                raise
            what = f"name a function that runs without arguments, as {self.name} does not"
            raise InvalidValue("FILE.py:NAME", what, f"TypeError: {error}") from None


def builder_of(source: str, thing: Any = None) -> Builder:
    """The builder FILE.py:NAME, which is not called yet. Its file is run, unless the `thing` in it
    is given."""
    thing = load_object(source) if thing is None else thing
    path, _, name = source.rpartition(":")
    require(callable(thing), "FILE.py:NAME", RETURNS, f"{name}, {type(thing).__name__}")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return Builder(f"{Path(path).name}:{name}", digest, thing)


def load_run(run: "Run", model: str | None) -> tuple["Loaded", Builder | None]:
    """The trained weights of a run, in the network of a builder if there is one.

    Warns if the builder is another one than that of the training. Raises ValueError if there must
    be one, and if its weights have other names or shapes.
    """
    config = run.config
    if model is None:
        hint = f"--model {config.network['name']}, which runs that file"
        require(
            not config.own_network,
            "model",
            "be given for a run with a network of your own",
            None,
            hint,
        )
        return run.loaded(), None
    builder = builder_of(model)
    warn_if_changed(config, builder)
    return run.loaded(objective=builder.objective(config)), builder


def warn_if_changed(config: "Config", builder: Builder) -> None:
    """Warn if a run was trained with another builder, or its file has changed."""
    trained = (config.network["name"], config.network_source)
    if config.own_network and trained != (builder.name, builder.source):
        text = f"the run was trained with {trained[0]}, file {trained[1]}; this is {builder}"
        warnings.warn(f"{text}: the same weights may compute something else", stacklevel=2)


def check_resumes(run: "Run", builder: Builder, objective: Objective) -> None:
    """Warn if a run was trained with another builder. Raises ValueError if its weights are not
    those of this objective: before anything in its folder is changed."""
    warn_if_changed(run.config, builder)
    try:
        run.weights()
    except ValueError:  # nothing has been trained yet
        return
    run.load(objective=copy.deepcopy(objective))

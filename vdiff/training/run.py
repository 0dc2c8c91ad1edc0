"""A run folder: config.json, weights in safetensors, log.jsonl, figures. Everything a later command needs."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vdiff.disk import commit
from vdiff.errors import must
from vdiff.objective import Objective
from vdiff.training.config import Config


class Run:
    """A folder that holds one run.

    >>> import tempfile
    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = Run.create(folder, config)
    ...     run.save(config.objective())
    ...     loaded = Run(folder).load()
    >>> type(loaded).__name__
    'Objective'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        if not (self.folder / "config.json").is_file():
            raise ValueError(must("Run", "folder", "hold a config.json", self.folder, "`make demo` writes runs/digits"))
        self.config = Config.from_dict(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> "Run":
        """A new run in `folder`, which is made; an older run in it is replaced whole, with a warning."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            warnings.warn(f"replacing the run in {path}", stacklevel=2)
            for old in ("ema.safetensors", "results.json", "table.txt"):
                (path / old).unlink(missing_ok=True)
        write_aside(path / "config.json", json.dumps(config.asdict(), indent=2) + "\n")
        (path / "log.jsonl").unlink(missing_ok=True)
        return cls(path)

    @property
    def figures(self) -> Path:
        """The folder of figures, made if missing."""
        path = self.folder / "figures"
        path.mkdir(exist_ok=True)
        return path

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All lines of log.jsonl; a last line cut off by a crash is left out."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def save(self, objective: Objective, name: str = "ema") -> None:
        """Write weights to `<name>.safetensors`: aside first, then renamed, so that a crash leaves the old file."""
        save_aside(self.folder / f"{name}.safetensors", objective.state_dict())

    def load(self, name: str = "ema") -> Objective:
        """The run's objective with the weights it was evaluated with (the moving average), in evaluation mode."""
        objective = self.config.objective()
        objective.load_state_dict(load_file(self.folder / f"{name}.safetensors"))
        return objective.eval()


def write_aside(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    commit(aside, path)


def save_aside(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
    commit(aside, path)


__all__ = ["Run"]

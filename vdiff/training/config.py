"""What a run is, as data: enough to build its objective again."""

from dataclasses import asdict, dataclass, field
from typing import Any

from vdiff import decoder, parameterization, schedule
from vdiff import nn as networks
from vdiff.decoder import Levels
from vdiff.denoiser import Denoiser
from vdiff.errors import did_you_mean, must
from vdiff.objective import Objective

Spec = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """An objective and its training as plain data, JSON in and out. A spec is a class by name with its arguments;
    `shape` is that of one example, as the network sees it.

    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> type(config.objective()).__name__
    'Objective'
    """

    network: Spec
    data: str = "digits"
    shape: list[int] = field(default_factory=lambda: [1, 8, 8])
    parameterization: Spec = field(default_factory=lambda: {"name": "X"})
    schedule: Spec = field(default_factory=lambda: {"name": "Linear", "logsnr_max": 9.0, "logsnr_min": -7.0})
    decoder: Spec = field(default_factory=lambda: {"name": "Categorical", "levels": 17})
    level_head: bool = True
    steps: int = 4000
    batch: int = 128
    lr: float = 2e-3
    schedule_lr: float = 0.01
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0

    def objective(self) -> Objective:
        """The objective this config describes, with fresh weights."""
        network, read = build(networks, self.network), build(decoder, self.decoder)
        if self.level_head and isinstance(read, Levels):
            network = networks.LevelHead(network, read)
        row, look = build(parameterization, self.parameterization), build(schedule, self.schedule)
        return Objective(Denoiser(network, row), schedule=look, decoder=read)

    def asdict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def build(home: Any, spec: Spec) -> Any:
    """The class `spec["name"]` of a module, called with the rest; an unknown name is answered with the nearest.

    >>> from vdiff import schedule
    >>> build(schedule, {"name": "Cosine"})
    Cosine(logsnr_max=15.0, logsnr_min=-15.0)
    """
    arguments = dict(spec)
    name = arguments.pop("name")
    known = [word for word in dir(home) if isinstance(getattr(home, word), type)]
    if name not in known:
        raise ValueError(must("build", "name", f"be a class of {home.__name__}", repr(name), did_you_mean(name, known)))
    return getattr(home, name)(**arguments)

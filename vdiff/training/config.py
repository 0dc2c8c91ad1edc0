"""A run as plain data: enough to build its objective again and train it the same way."""

import ast
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from typing import Any

from torch import nn

from vdiff import decoder, discrete, schedule, variance, weighting
from vdiff import nn as networks
from vdiff._validate import require, validated
from vdiff.decoder import Decoder, Levels
from vdiff.denoiser import Denoiser, logsnr_time
from vdiff.discrete import TokenDenoiser
from vdiff.errors import InvalidValue, did_you_mean
from vdiff.objective import VLB, Hybrid, Loss, Objective, Weighted
from vdiff.resampling import LossSecondMoment
from vdiff.training._misfits import misfits
from vdiff.training.fields import CHECKS, is_number, is_own, target_room
from vdiff.training.outline import outline_of
from vdiff.training.safe_json import flaw, json_repr, parse, printable_name
from vdiff.training.spec import Spec, build
from vdiff.weighting import ELBO

# with a process over tokens, in place of the defaults for images
TOKENS: dict[str, Any] = {"parameterization": {"name": "Posterior"}, "decoder": None}
TOKENS |= {"level_head": False}


@dataclass(frozen=True)
class Config:
    """An objective and its training as plain data, read from JSON and written to it.

    A spec is a class by name with its arguments, {"name": "Sigmoid", "bias": 2.0}, or a class
    method, {"name": "Tabulated.linear_betas"}; its arguments can be specs.

    The loss is one of three:

        the bound (`elbo`)                             weighting None
        L_w on encoded data (`weighted_elbo`)          weighting given
        iDDPM's simple + bound_weight · bound          bound_weight given; 0 is DDPM's simple loss

    Args:
        network, parameterization, schedule: specs of the model and its noise schedule. A network
            of your own has the name of its builder, {"name": "FILE.py:NAME"}, and "labels" if it
            takes them; `objective` is then given the network.
        network_source: the hash of the file of that builder.
        process: of a model over tokens, {"name": "Masked", "vocabulary": 256}; None for Gaussian
            noise. With a process, the parameterization is Posterior by default, and there is no
            decoder: `Weighted` is the loss, of the ELBO's weighting where none is given. The
            network gets λ where its forward takes `logsnr`, unless the process is masked and needs
            none.
        data, folder, shape: a data set by name, with the folder of its files, or the path of a
            folder of pictures or a file of arrays; the shape of an example.
        data_options: how a path is read, such as {"size": 64}: see `vdiff.data.load`.
        decoder: p(data | z₀). It encodes the data, and the run is evaluated with it.
        chain: T, the number of diffusion steps; None for continuous time.
        variance: of the reverse steps; None for the posterior's.
        resampling: draw the terms of a chain's bound by their size (`LossSecondMoment`).
        level_head: the network returns logits of levels (`LevelHead`).
        conditional: the network takes the class as `label`.
        label_dropout: the probability that the label of a slot is replaced by the null class, for
            guidance. That is the last one of a network with one class more than the data.
        augment: "none", "flip" or "flip-turn"; the last is for networks that take `augmented`.
        steps, batch: optimizer steps, and images in each, over all processes and `accumulate`
            micro-batches.
        lr, schedule_lr: learning rates of the network and of a schedule, after `warmup` steps;
            `decay` is "cosine" (to zero at the last step) or "constant".
        clip: the maximal gradient norm of the loss in bits/dim, or None.
        ema: decays of the averages; the first one is evaluated.
        autocast, compile, channels_last: bf16, `torch.compile`, and the network's memory format.

    Raises ValueError with all fields that are wrong.

    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> type(config.objective()).__name__, config.ema
    ('Objective', [0.999])
    """

    network: Spec
    network_source: str | None = None
    process: Spec | None = None
    data: str = "digits"
    folder: str = "data"
    data_options: dict[str, Any] = field(default_factory=dict)
    shape: list[int] = field(default_factory=lambda: [1, 8, 8])
    parameterization: Spec = field(default_factory=lambda: {"name": "X"})
    schedule: Spec = field(
        default_factory=lambda: {"name": "Linear", "logsnr_max": 9.0, "logsnr_min": -7.0}
    )
    weighting: Spec | None = None
    decoder: Spec | None = field(default_factory=lambda: {"name": "Categorical", "levels": 17})
    variance: Spec | None = None
    chain: int | None = None
    bound_weight: float | None = None
    resampling: bool = False
    level_head: bool = True
    conditional: bool = False
    label_dropout: float = 0.0
    augment: str = "none"
    steps: int = 4000
    batch: int = 128
    accumulate: int = 1
    lr: float = 2e-3
    schedule_lr: float = 0.01
    warmup: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    clip: float | None = 1.0
    ema: list[float] = field(default_factory=lambda: [0.999])
    seed: int = 0
    autocast: bool = False
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name, value in TOKENS.items() if self.process is not None else ():
            if getattr(self, name) == _default(name):
                object.__setattr__(self, name, value)
        values = {name: getattr(self, name) for name in CHECKS}
        wrong = _flaws(values)
        wrong = wrong or [error for name in CHECKS for error in CHECKS[name](name, values[name])]
        _refuse(wrong or misfits(values))

    @property
    def own_network(self) -> bool:
        """Whether the network is your own: no config can build it."""
        return is_own(self.network)

    @validated
    def objective(self, network: nn.Module | None = None, *, outline: bool = False) -> Objective:
        """Build the objective with new weights; with `outline`, without memory (meta device).

        `network` is one of your own, or a `Denoiser` or `TokenDenoiser`, whose parameterization
        then counts.

        Raises ValueError for parts that cannot be built, and for networks that are too large.
        """
        tokens = isinstance(network, TokenDenoiser)  # its process decodes
        likelihood = None if tokens or self.decoder is None else build(decoder, self.decoder)
        if not isinstance(network, Denoiser | TokenDenoiser):
            network = self._model(network, likelihood, outline)
        noise, loss = build(schedule, self.schedule), self._loss(likelihood)
        return Objective(network, schedule=noise, loss=loss)

    def _model(
        self, network: nn.Module | None, likelihood: Decoder | None, outline: bool
    ) -> Denoiser | TokenDenoiser:
        if network is None:
            what = f"be given where the config names one of your own, {self.network['name']}"
            hint = (
                "config.objective(network), Run.load(objective=…), or on the command line --model"
            )
            require(not self.own_network, "network", what, None, hint)
            make = partial(build, networks, self.network)
            network = outline_of(make)  # checks its size before it takes memory
            network = network if outline else make()
        target = build(target_room(self.parameterization), self.parameterization)
        if self.process is not None:
            process = build(discrete, self.process)
            level = inspect.signature(network.forward).parameters.get("logsnr")
            timed = getattr(network, "time", None) is not None or not process.one_posterior
            needed = level and (level.default is level.empty or timed)
            return TokenDenoiser(network, process, target, time=logsnr_time if needed else None)
        if self.level_head and isinstance(likelihood, Levels):
            network = networks.LevelHead(network, likelihood)
        reverse = None if self.variance is None else build(variance, self.variance)
        return Denoiser(network, target, variance=reverse)

    def _loss(self, likelihood: Decoder | None) -> Loss:
        if self.bound_weight is not None and self.chain is not None:
            return Hybrid(self.chain, bound_weight=self.bound_weight, decoder=likelihood)
        weights = ELBO() if self.weighting is None else build(weighting, self.weighting)
        if likelihood is None or not isinstance(weights, ELBO):
            return Weighted(weights, steps=self.chain, decoder=likelihood)
        terms = (self.chain or 0) + likelihood.uses_network
        resampling = LossSecondMoment(terms) if self.resampling else None
        return VLB(likelihood, steps=self.chain, resampling=resampling)

    def asdict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The config from a file. Fields that an older file lacks have their defaults.

        >>> Config.from_dict({"network": {"name": "MLP", "dims": 2}, "step": 10})
        Traceback (most recent call last):
            ...
        ValueError: Config: argument 'step' must be a field; got 10 (did you mean 'steps'?)
        """
        names = [field.name for field in fields(cls)]
        unknown = {printable_name(n): json_repr(values[n]) for n in values if n not in names}
        _refuse(_flaws(values))
        hints = {n: did_you_mean(n, names) for n in unknown}
        _refuse([InvalidValue(n, "be a field", unknown[n], hints[n]) for n in unknown])
        _refuse([] if "network" in values else [InvalidValue("network", "be given", None)])
        ema = values.get("ema")  # older files have a single decay
        return cls(**{**values, **({"ema": [ema]} if is_number(ema) else {})})

    def override(self, settings: Iterable[str]) -> "Config":
        """This config with settings such as "lr=1e-4", "schedule.name=Cosine" or "betas=[0.9,
        0.999]".

        A value is JSON (or Python's None, True and False), else text. A dot leads into a spec.

        >>> Config(network={"name": "MLP", "dims": 2}).override(["network.width=64"]).network
        {'name': 'MLP', 'dims': 2, 'width': 64}
        """
        values = self.asdict()
        for setting in settings:
            path, equals, text = setting.partition("=")
            *outer, last = path.strip().split(".")
            if not equals or not last:
                hint = "for instance lr=1e-4, or schedule.name=Cosine"
                _refuse([InvalidValue("override", "be name=value", json_repr(setting), hint)])
            inner = values
            for name in outer:
                if not isinstance(inner.get(name), dict):
                    inner[name] = {}
                inner = inner[name]
            inner[last] = _value(path.strip(), text.strip())
        return Config.from_dict(values)


def _default(name: str) -> Any:
    """The default of a field."""
    known = Config.__dataclass_fields__[name]
    return known.default if known.default_factory is MISSING else known.default_factory()


def _value(path: str, text: str) -> Any:
    """The value of a setting: JSON, a literal of Python, or the text itself."""
    try:
        return parse(text)
    except json.JSONDecodeError:
        pass
    except ValueError as error:
        _refuse([InvalidValue(printable_name(path), "be plain data", error)])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    except (RecursionError, MemoryError):
        came = "a value that is nested too deep"
        _refuse([InvalidValue(printable_name(path), "be plain data", came)])


def _refuse(wrong: list[InvalidValue]) -> None:
    """Raise one ValueError with all errors, one a line."""
    if wrong:
        raise ValueError("\n".join(f"Config: {error}" for error in wrong))


def _flaws(values: Mapping[str, Any]) -> list[InvalidValue]:
    """Values that are not plain data within bounds."""
    why = {printable_name(str(name)): flaw({name: value}) for name, value in values.items()}
    return [InvalidValue(n, "be plain data", came) for n, came in why.items() if came]

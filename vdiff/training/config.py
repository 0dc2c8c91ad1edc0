"""What a run is, as data: enough to build its objective again, and to train it the same way."""

import ast
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from vdiff import decoder, parameterization, schedule, variance, weighting
from vdiff import nn as networks
from vdiff._validate import validated
from vdiff.data.augment import KINDS
from vdiff.data.registry import DATASETS
from vdiff.decoder import Decoder, Levels
from vdiff.denoiser import Denoiser
from vdiff.errors import MOST_STEPS, InvalidValue, did_you_mean
from vdiff.objective import VLB, Hybrid, Loss, Objective, Weighted
from vdiff.resampling import LossSecondMoment
from vdiff.training.plain import flaw, parse, shown, word
from vdiff.training.spec import LARGEST, Spec, build, faults, outline_of
from vdiff.weighting import ELBO

DECAYS = ("cosine", "constant")


@dataclass(frozen=True)
class Config:
    """An objective and its training as plain data, JSON in and out.

    A spec is a class by name with its arguments, {"name": "Sigmoid", "bias": 2.0}, or a class
    method, {"name": "Tabulated.linear_betas"}; its arguments can be specs. All fields are checked
    together.

    The loss is one of three:

        the bound (`elbo`)                             weighting None
        L_w on encoded data (`weighted_elbo`)          weighting given
        iDDPM's simple + bound_weight · bound          bound_weight given; 0 is DDPM's simple loss

    Args:
        network, parameterization, schedule: of the model, and the log-SNR that it is trained at.
        data, folder, shape: a data set by name, where its files are, and the shape of one example.
        decoder: p(data | z₀), which encodes the data; the run is evaluated with it.
        chain, variance: T steps, None for continuous time; and of its reverse steps, None for the
            posterior's.
        resampling: draw the bound's terms on a chain by their size (`LossSecondMoment`).
        level_head: the network returns logits of levels (`LevelHead`).
        conditional: the network is given the class, as `label`.
        augment: "none", "flip" or "flip-turn"; the last is for networks that take `augmented`.
        steps, batch: optimizer steps, and images in each, over all processes and `accumulate`
            micro-batches.
        lr, schedule_lr: learning rates of the network and of a schedule, after `warmup` steps;
            `decay` is "cosine", down to zero at the last step, or "constant".
        clip: the norm to which the gradient of the loss in bits/dim is clipped, or None.
        ema: decays of the averages; the first is the one that is evaluated.
        autocast, compile, channels_last: bf16, `torch.compile`, and the network's memory format.

    Raises ValueError with every field that is wrong.

    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> type(config.objective()).__name__, config.ema
    ('Objective', [0.999])
    """

    network: Spec
    data: str = "digits"
    folder: str = "data"
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
        values = {name: getattr(self, name) for name in CHECKS}
        wrong = _flaws(values)
        wrong = wrong or [error for name in CHECKS for error in CHECKS[name](name, values[name])]
        _refuse(wrong or self._misfits())

    @validated
    def objective(self, *, outline: bool = False) -> Objective:
        """The objective of this config, with fresh weights; with `outline` on the meta device,
        where weights take no memory.

        Raises ValueError for parts that cannot be made, and for networks that are too large.
        """
        make = partial(build, networks, self.network)
        network: nn.Module = outline_of(make)  # before it takes memory
        network = network if outline else make()
        read = None if self.decoder is None else build(decoder, self.decoder)
        if self.level_head and isinstance(read, Levels):
            network = networks.LevelHead(network, read)
        reverse = None if self.variance is None else build(variance, self.variance)
        return Objective(
            Denoiser(network, build(parameterization, self.parameterization), variance=reverse),
            schedule=build(schedule, self.schedule),
            loss=self._loss(read),
        )

    def _loss(self, read: Decoder | None) -> Loss:
        if self.bound_weight is not None and self.chain is not None:
            return Hybrid(self.chain, bound_weight=self.bound_weight, decoder=read)
        weights = ELBO() if self.weighting is None else build(weighting, self.weighting)
        if read is None or not isinstance(weights, ELBO):
            return Weighted(weights, steps=self.chain, decoder=read)
        terms = (self.chain or 0) + read.uses_network
        resampling = LossSecondMoment(terms) if self.resampling else None
        return VLB(read, steps=self.chain, resampling=resampling)

    def asdict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The config of a file, also of an older one that lacks fields.

        >>> Config.from_dict({"network": {"name": "MLP", "dims": 2}, "step": 10})
        Traceback (most recent call last):
            ...
        ValueError: Config: argument 'step' must be a field; got 10 (did you mean 'steps'?)
        """
        known = [one.name for one in fields(cls)]
        unknown = {word(name): shown(values[name]) for name in values if name not in known}
        _refuse(_flaws(values))
        _refuse(
            [InvalidValue(n, "be a field", unknown[n], did_you_mean(n, known)) for n in unknown]
        )
        _refuse([] if "network" in values else [InvalidValue("network", "be given", None)])
        one = values.get("ema")  # older files have a single decay
        return cls(**{**values, **({"ema": [one]} if _number(one) else {})})

    def override(self, settings: Iterable[str]) -> "Config":
        """This config with settings such as "lr=1e-4", "schedule.name=Cosine" or "betas=[0.9,
        0.999]", all of them checked.

        A value is JSON (or Python's None, True and False), else text; a point leads into a spec.

        >>> Config(network={"name": "MLP", "dims": 2}).override(["network.width=64"]).network
        {'name': 'MLP', 'dims': 2, 'width': 64}
        """
        values = self.asdict()
        for setting in settings:
            path, equals, text = setting.partition("=")
            *outer, last = path.strip().split(".")
            if not equals or not last:
                hint = "for instance lr=1e-4, or schedule.name=Cosine"
                _refuse([InvalidValue("override", "be name=value", shown(setting), hint)])
            inner = values
            for name in outer:
                if not isinstance(inner.get(name), dict):
                    inner[name] = {}
                inner = inner[name]
            inner[last] = _value(path.strip(), text.strip())
        return Config.from_dict(values)

    def _misfits(self) -> list[InvalidValue]:
        """Fields that are right one by one and do not go together."""
        network = getattr(networks, self.network["name"].partition(".")[0])
        takes = inspect.signature(network.forward).parameters
        chained, hybrid = self.chain is not None, self.bound_weight is not None
        bound = self.weighting is None and not hybrid
        labelled = "label" in takes and self.network.get("labels")
        check, wrong = self._unless, list[InvalidValue]()
        fits = self.batch % self.accumulate == 0
        wrong += check(fits, "accumulate", f"divide the batch of {self.batch}")
        fits, hint = labelled or not self.conditional, 'network: {"labels": 10, …}'
        wrong += check(fits, "conditional", "come with a network that has labels", hint)
        fits = "augmented" in takes or self.augment != "flip-turn"
        hint = "another network would learn turned images: VDMUNet, or augment='flip'"
        wrong += check(fits, "augment", "come with a network that takes `augmented`", hint)
        fits = not bound or self.decoder is not None
        wrong += check(fits, "decoder", "be given where the bound is trained")
        fits = not hybrid or self.weighting is None
        hint = "the hybrid loss has the plain squared error of ε"
        wrong += check(fits, "weighting", "be left out where bound_weight is given", hint)
        hint = "in continuous time it trains nothing"
        wrong += check(chained or self.variance is None, "variance", "come with a chain", hint)
        wrong += check(chained or not hybrid, "bound_weight", "come with a chain", hint)
        fits, hint = not self.resampling or (chained and bound), "chain=T, without a weighting"
        wrong += check(fits, "resampling", "come with the bound of a chain", hint)
        fits, hint = not self.resampling or (self.chain or 0) <= LARGEST, "it remembers every step"
        return wrong + check(fits, "chain", f"be at most {LARGEST:,} with resampling", hint)

    def _unless(self, holds: object, field: str, what: str, hint: str = "") -> list[InvalidValue]:
        return [] if holds else [InvalidValue(field, what, getattr(self, field), hint)]


def _total(name: str, spec: Any) -> list[InvalidValue]:
    """A check that a spec names a weighting, and not a factor alone or a product of factors."""
    wrong = faults(name, weighting, spec)
    if not wrong and _is_factor(spec):
        base, factor = '"base": {"name": "MSE", …}', f'"factor": {json.dumps(spec)}'
        hint = f'a factor multiplies a base: {{"name": "Product", {base}, {factor}}}'
        return [InvalidValue(name, "be a total", f"the factor {spec}", hint)]
    return wrong


def _is_factor(spec: Any) -> bool:
    if spec["name"] == "Product":
        return _is_factor(spec["base"]) and _is_factor(spec["factor"])
    made = getattr(weighting, spec["name"], None)
    return isinstance(made, type) and issubclass(made, weighting.Factor)


def _value(path: str, text: str) -> Any:
    """The value of a setting: JSON, or a literal of Python, or else the text itself."""
    try:
        return parse(text)
    except json.JSONDecodeError:
        pass
    except ValueError as error:
        _refuse([InvalidValue(word(path), "be plain data", error)])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    except (RecursionError, MemoryError):
        _refuse([InvalidValue(word(path), "be plain data", "a value that is nested too deep")])


def _refuse(wrong: list[InvalidValue]) -> None:
    """Raise a ValueError with all that is wrong, a line each."""
    if wrong:
        raise ValueError("\n".join(f"Config: {error}" for error in wrong))


def _flaws(values: Mapping[str, Any]) -> list[InvalidValue]:
    """Values that are not plain data within bounds."""
    found = {word(str(name)): flaw({name: value}) for name, value in values.items()}
    return [InvalidValue(n, "be plain data", came) for n, came in found.items() if came]


Check = Callable[[str, Any], list[InvalidValue]]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _that(holds: Callable[[Any], bool], requirement: str, known: tuple[str, ...] = ()) -> Check:
    """A check that a value is as it should be, with the nearest of the `known` ones."""

    def _check(name: str, value: Any) -> list[InvalidValue]:
        hint = did_you_mean(str(value), known)
        return [] if holds(value) else [InvalidValue(name, requirement, shown(value), hint)]

    return _check


def _one_of(known: tuple[str, ...]) -> Check:
    return _that(lambda v: v in known, f"be one of {', '.join(known)}", known)


def _spec(room: ModuleType) -> Check:
    """A check that a spec names a class of a room, and arguments that it takes."""
    return lambda name, value: faults(name, room, value)


def _optional(check: Check) -> Check:
    return lambda name, value: [] if value is None else check(name, value)


def _list(holds: Callable[[Any], bool], requirement: str, length: int | None = None) -> Check:
    """A check of a list and of each value in it."""
    right = range(1, 1 << 20) if length is None else (length,)
    return _that(
        lambda v: isinstance(v, list) and len(v) in right and all(map(holds, v)), requirement
    )


def _decay(value: object) -> bool:
    return _number(value) and 0 <= value < 1  # type: ignore[operator]


_flag = _that(lambda v: isinstance(v, bool), "be true or false")
_count = _that(lambda v: _whole(v) and v >= 1, "be a whole number of at least 1")
_steps = _that(
    lambda v: _whole(v) and 1 <= v <= MOST_STEPS, f"be a whole number from 1 to {MOST_STEPS:,}"
)
_from_zero = _that(lambda v: _whole(v) and v >= 0, "be a whole number of at least 0")
_positive = _that(lambda v: _number(v) and 0 < v < math.inf, "be a finite number greater than 0")
_from_0 = _that(lambda v: _number(v) and 0 <= v < math.inf, "be a finite number of at least 0")
_text = _that(lambda v: isinstance(v, str) and v != "", "be text")

CHECKS: dict[str, Check] = {
    "network": _spec(networks),
    "data": _one_of(tuple(DATASETS)),
    "folder": _text,
    "shape": _list(lambda n: _whole(n) and n >= 1, "be a list of sizes, such as [3, 32, 32]"),
    "parameterization": _spec(parameterization),
    "schedule": _spec(schedule),
    "weighting": _optional(_total),
    "decoder": _optional(_spec(decoder)),
    "variance": _optional(_spec(variance)),
    "chain": _optional(_steps),
    "bound_weight": _optional(_from_0),
    "resampling": _flag,
    "level_head": _flag,
    "conditional": _flag,
    "augment": _one_of(KINDS),
    "steps": _count,
    "batch": _count,
    "accumulate": _count,
    "lr": _positive,
    "schedule_lr": _positive,
    "warmup": _from_zero,
    "decay": _one_of(DECAYS),
    "weight_decay": _from_0,
    "betas": _list(_decay, "be two numbers in [0, 1)", 2),
    "clip": _optional(_positive),
    "ema": _list(_decay, "be decays in [0, 1), the evaluated one first"),
    "seed": _from_zero,
    "autocast": _flag,
    "compile": _flag,
    "channels_last": _flag,
}

__all__ = ["Config", "build"]

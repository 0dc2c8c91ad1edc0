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
from vdiff.data.augment import KINDS
from vdiff.data.registry import DATASETS
from vdiff.decoder import Decoder, Levels
from vdiff.denoiser import Denoiser
from vdiff.errors import MOST_STEPS, did_you_mean, must
from vdiff.objective import VLB, Hybrid, Loss, Objective, Weighted
from vdiff.resampling import LossSecondMoment
from vdiff.training.outline import outline_of
from vdiff.training.plain import flaw, parse, shown, word
from vdiff.training.spec import LARGEST, Spec, build, faults
from vdiff.weighting import ELBO

DECAYS = ("cosine", "constant")


@dataclass(frozen=True)
class Config:
    """An objective and its training as plain data, JSON in and out.

    A spec is a class by name with its arguments, {"name": "Sigmoid", "bias": 2.0}, or a class
    method, {"name": "Tabulated.linear_betas"}; its arguments can be specs. All fields are checked
    here, together.

    The objective, whose loss is one of three:

        the bound (`elbo`)                             weighting None
        L_w on encoded data (`weighted_elbo`)          weighting given
        iDDPM's simple + bound_weight · bound          bound_weight given; 0 is DDPM's simple loss

    Args:
        network, parameterization, schedule, variance: of the model and where it looks; `variance`
            is that of a chain's reverse steps, None for the posterior's.
        data, folder: a data set by name, and where its files are.
        shape: of one example, as the network sees it.
        decoder: p(data | z₀), which encodes the data, and by which the run is evaluated, whatever
            it trains.
        chain: T steps; None for continuous time.
        resampling: draw the bound's terms on a chain by their own size (`LossSecondMoment`).
        level_head: whether the network returns logits of levels (`LevelHead`).
        conditional: whether the network is told the class, as `label`.
        augment: "none", "flip" or "flip-turn", of which a network that takes `augmented` is told.
        batch: images of an optimizer step, over all processes and `accumulate` micro-batches.
        lr, schedule_lr: learning rates of the network and of a schedule, after `warmup` steps;
            `decay` is "cosine", down to zero at the last step, or "constant".
        clip: the norm to which the gradient of the loss in bits/dim is clipped; None for no
            clipping.
        ema: decays of the averages that are kept; the first is the one that is evaluated.
        autocast, compile, channels_last: bf16 autocast, `torch.compile`, and the network's memory
            format.

    Raises:
        ValueError: naming every field that is wrong.

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
        wrong = wrong or [text for name in CHECKS for text in CHECKS[name](name, values[name])]
        wrong = wrong or self._do_not_fit()
        if wrong:
            raise ValueError("\n".join(wrong))

    def objective(self, *, outline: bool = False) -> Objective:
        """The objective this config describes, with fresh weights.

        Args:
            outline: make the network on the meta device, where it has no values and no memory.

        Raises:
            ValueError: for parts that cannot be made, and a network beyond `outline_of`'s bounds.
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
        terms = (self.chain or 0) + read.denoise
        resampling = LossSecondMoment(terms) if self.resampling else None
        return VLB(read, steps=self.chain, resampling=resampling)

    def asdict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The config of a file, also of an older one that lacks fields; an unknown field is
        answered with the nearest.

        >>> Config.from_dict({"network": {"name": "MLP", "dims": 2}, "step": 10})
        Traceback (most recent call last):
            ...
        ValueError: Config: argument 'step' must be a field; got 10 (did you mean 'steps'?)
        """
        known = [one.name for one in fields(cls)]
        unknown = [name for name in values if name not in known]
        wrong = _flaws(values)
        for name in unknown if not wrong else ():
            hint = did_you_mean(name, known)
            wrong.append(must("Config", word(name), "be a field", shown(values[name]), hint))
        if wrong:
            raise ValueError("\n".join(wrong))
        if "network" not in values:
            raise ValueError(must("Config", "network", "be given", None))
        old = (
            {"ema": [values["ema"]]} if _number(values.get("ema")) else {}
        )  # as files had it when there was one
        return cls(**{**values, **old})

    def override(self, settings: Iterable[str]) -> "Config":
        """This config with settings such as "lr=1e-4", "schedule.name=Cosine" or "betas=[0.9,
        0.999]", all of them checked.

        A value is JSON (or Python's None, True and False), else text; a point leads into a spec.

        >>> Config(network={"name": "MLP", "dims": 2}).override(["network.width=64", "clip=null"]).network
        {'name': 'MLP', 'dims': 2, 'width': 64}
        """
        values = self.asdict()
        for setting in settings:
            path, equals, text = setting.partition("=")
            *outer, last = path.strip().split(".")
            if not equals or not last:
                hint = "for instance lr=1e-4, or schedule.name=Cosine"
                raise ValueError(must("Config", "override", "be name=value", shown(setting), hint))
            place = values
            for name in outer:
                if not isinstance(place.get(name), dict):
                    place[name] = {}
                place = place[name]
            place[last] = _value(path.strip(), text.strip())
        return Config.from_dict(values)

    def _do_not_fit(self) -> list[str]:
        """Fields that are right one by one and do not go together."""
        wrong = []
        if self.batch % self.accumulate:
            wrong.append(
                must("Config", "accumulate", f"divide the batch of {self.batch}", self.accumulate)
            )
        network = getattr(networks, self.network["name"].partition(".")[0])
        told = inspect.signature(network.forward).parameters
        if self.conditional and ("label" not in told or not self.network.get("labels")):
            wrong.append(
                must(
                    "Config",
                    "conditional",
                    "come with a network that has labels",
                    True,
                    'network: {"labels": 10, …}',
                )
            )
        if self.augment == "flip-turn" and "augmented" not in told:
            hint = "one that is not told would learn turned images: VDMUNet, or augment='flip'"
            wrong.append(
                must(
                    "Config",
                    "augment",
                    "come with a network that takes `augmented`",
                    self.augment,
                    hint,
                )
            )
        if self.decoder is None and self.weighting is None and self.bound_weight is None:
            wrong.append(must("Config", "decoder", "be given where the bound is trained", None))
        if _is_factor(self.weighting):
            came, factor = f"the factor {self.weighting}", json.dumps(self.weighting)
            product = f'{{"name": "Product", "base": {{"name": "MSE", …}}, "factor": {factor}}}'
            hint = f"a factor multiplies a base: {product}"
            wrong.append(must("Config", "weighting", "be a total", came, hint))
        if self.weighting is not None and self.bound_weight is not None:
            hint = "the hybrid loss has the plain squared error of ε"
            wrong.append(
                must(
                    "Config",
                    "weighting",
                    "be left out where bound_weight is given",
                    self.weighting,
                    hint,
                )
            )
        for name in ("variance", "bound_weight"):
            if getattr(self, name) is not None and self.chain is None:
                wrong.append(
                    must(
                        "Config",
                        name,
                        "come with a chain",
                        getattr(self, name),
                        "in continuous time it trains nothing",
                    )
                )
        if self.resampling and (
            self.chain is None or self.weighting is not None or self.bound_weight is not None
        ):
            wrong.append(
                must(
                    "Config",
                    "resampling",
                    "come with the bound of a chain",
                    True,
                    "chain=T, without a weighting",
                )
            )
        if self.resampling and self.chain is not None and self.chain > LARGEST:
            limit = f"be at most {LARGEST:,} with resampling"
            wrong.append(must("Config", "chain", limit, self.chain, "it remembers every step"))
        return wrong


def _is_factor(spec: Any) -> bool:
    """Whether a weighting's spec is a factor alone, or a product of factors."""
    if not isinstance(spec, dict):
        return False
    if spec["name"] == "Product":
        return _is_factor(spec["base"]) and _is_factor(spec["factor"])
    made = getattr(weighting, spec["name"], None)
    return isinstance(made, type) and issubclass(made, weighting.Factor)


def _value(path: str, text: str) -> Any:
    """What a setting says: JSON, or a literal of Python, or else the text itself."""
    try:
        return parse(text)
    except json.JSONDecodeError:
        pass
    except ValueError as error:
        raise ValueError(must("Config", word(path), "be plain data", error)) from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    except (RecursionError, MemoryError):
        came = "a value that is nested too deep"
        raise ValueError(must("Config", word(path), "be plain data", came)) from None


def _flaws(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with values that are no plain data, or too much of it."""
    found = {word(str(name)): flaw({name: value}) for name, value in values.items()}
    return [must("Config", name, "be plain data", came) for name, came in found.items() if came]


Check = Callable[[str, Any], list[str]]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _that(holds: Callable[[Any], bool], requirement: str) -> Check:
    """A check that a value is as it should be."""

    def _check(name: str, value: Any) -> list[str]:
        return [] if holds(value) else [must("Config", name, requirement, shown(value))]

    return _check


def _one_of(known: tuple[str, ...]) -> Check:
    def check(name: str, value: Any) -> list[str]:
        if value in known:
            return []
        hint = did_you_mean(str(value), known)
        return [must("Config", name, f"be one of {', '.join(known)}", shown(value), hint)]

    return check


def _spec(room: ModuleType) -> Check:
    """A check that a spec names a class there is, and arguments that it takes."""

    def _check(name: str, value: Any) -> list[str]:
        return faults("Config", name, room, value)

    return _check


def _optional(check: Check) -> Check:
    def _check(name: str, value: Any) -> list[str]:
        return [] if value is None else check(name, value)

    return _check


_flag = _that(lambda v: isinstance(v, bool), "be true or false")
_count = _that(lambda v: _whole(v) and v >= 1, "be a whole number of at least 1")
_steps = _that(
    lambda v: _whole(v) and 1 <= v <= MOST_STEPS, f"be a whole number from 1 to {MOST_STEPS:,}"
)
_from_zero = _that(lambda v: _whole(v) and v >= 0, "be a whole number of at least 0")
_positive = _that(lambda v: _number(v) and 0 < v < math.inf, "be a finite number greater than 0")
_not_negative = _that(
    lambda v: _number(v) and 0 <= v < math.inf, "be a finite number of at least 0"
)
_text = _that(lambda v: isinstance(v, str) and v != "", "be text")

CHECKS: dict[str, Check] = {
    "network": _spec(networks),
    "data": _one_of(tuple(DATASETS)),
    "folder": _text,
    "shape": _that(
        lambda v: isinstance(v, list) and len(v) > 0 and all(_whole(n) and n >= 1 for n in v),
        "be a list of sizes, such as [3, 32, 32]",
    ),
    "parameterization": _spec(parameterization),
    "schedule": _spec(schedule),
    "weighting": _optional(_spec(weighting)),
    "decoder": _optional(_spec(decoder)),
    "variance": _optional(_spec(variance)),
    "chain": _optional(_steps),
    "bound_weight": _optional(_not_negative),
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
    "weight_decay": _not_negative,
    "betas": _that(
        lambda v: (
            isinstance(v, list) and len(v) == 2 and all(_number(b) and 0 <= b < 1 for b in v)
        ),
        "be two numbers in [0, 1)",
    ),
    "clip": _optional(_positive),
    "ema": _that(
        lambda v: isinstance(v, list) and len(v) > 0 and all(_number(d) and 0 <= d < 1 for d in v),
        "be decays in [0, 1), the evaluated one first",
    ),
    "seed": _from_zero,
    "autocast": _flag,
    "compile": _flag,
    "channels_last": _flag,
}

__all__ = ["Config", "build"]

"""From noise to data: the step, the noise levels and the changes to the model that the options
name."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from vdiff._validate import require
from vdiff.cli.load import load_object
from vdiff.cli.parser import positive
from vdiff.errors import did_you_mean
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.sampling import (
    STEPS,
    TOKEN_STEPS,
    Clipped,
    Guided,
    leading,
    logistic,
    trailing,
    uniform,
)
from vdiff.sampling._rules import OPTIONS
from vdiff.sampling.grid import rising
from vdiff.schedule import Cosine, Karras, Linear, OptimalTransport, Schedule
from vdiff.variance import FixedLarge, FixedSmall

GRIDS: dict[str, Callable[[float, float], Schedule]] = {
    "cosine": Cosine,
    "logistic": logistic,
    "karras": lambda high, low: Karras(math.exp(-high / 2), math.exp(-low / 2)),
    "linear": Linear,
    "rectified": OptimalTransport,
}
SPACINGS = {"uniform": uniform, "trailing": trailing, "leading": leading}
TARGETS = {"x": X(), "eps": Eps(), "v": V(), "flow": Flow()}
VARIANCES = {"posterior": FixedSmall(), "forward": FixedLarge()}
NAMED: dict[str, dict[str, Any]] = {"target": TARGETS, "variance": VARIANCES}


def add_method(parser: argparse.ArgumentParser) -> None:
    """The options that say how a sample is drawn."""
    levels = parser.add_argument_group("from noise to data").add_argument
    text = f"method from one noise level to the next: {', '.join(STEPS)}; over tokens "
    text += f"{', '.join(TOKEN_STEPS)} (default: %(default)s)"
    levels("--step", type=_named("step", STEPS | TOKEN_STEPS), default="ancestral", help=text)
    text = (
        "number of steps; a step is one evaluation of the network, or two with heun; --spacing "
        "uniform has one more level, and so one more evaluation (default: 100; 1 for ode, which "
        "chooses its own steps)"
    )
    levels("--steps", type=positive, metavar="N", help=text)
    text = (
        f"noise levels: {', '.join(GRIDS)}, between the ends of the run's schedule; run, that "
        "schedule itself; or FILE.py:NAME, your own schedule or list of log-SNRs; FILE.py "
        "is run as a Python program: name only a file that you trust (default: %(default)s)"
    )
    levels("--grid", type=_grid, default="cosine", help=text)
    text = f"which times of the grid: {', '.join(SPACINGS)} (default: %(default)s, with both ends)"
    levels("--spacing", type=_named("spacing", SPACINGS), default="uniform", help=text)

    one = parser.add_argument_group("options of one step").add_argument
    text = f"of ancestral: {', '.join(VARIANCES)} (default: the model's own)"
    one("--variance", type=_named("variance", VARIANCES), help=text)
    text = "of ddim: how much noise, from 0 (the default) to 1, which is ancestral"
    one("--eta", type=float, help=text)
    one("--order", type=int, choices=(1, 2, 3), help="of adams_bashforth (default: 3)")
    text = f"of adams_bashforth: {', '.join(TARGETS)} (default: flow)"
    one("--target", type=_named("target", TARGETS), help=text)
    one("--method", help="of ode: a solver of torchdiffeq (default: dopri5)")
    one("--rtol", type=float, help="of ode: relative tolerance (default: 1e-5)")
    one("--atol", type=float, help="of ode: absolute tolerance (default: 1e-5)")

    change = parser.add_argument_group("changes to the model").add_argument
    text = "classifier-free guidance: 1 is no guidance, 2 goes twice as far from the null class"
    change("--guidance", type=float, metavar="SCALE", help=f"{text}; needs --null-label")
    change("--null-label", type=int, metavar="K", help="the label that stands for no class")
    text = "use guidance only between these log-SNRs"
    change("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    change("--clip", action="store_true", help="clip x̂ to [-1, 1] at every level")


def step_of(options: argparse.Namespace) -> Any:
    """The step with its options. Raises for those of another step."""
    values = {name: getattr(options, name, None) for name in OPTIONS}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        what, came = f"come with --step {OPTIONS[name]}", f"--step {options.step}"
        require(OPTIONS[name] == options.step, name, what, came, "no other step has it")
        given[name] = NAMED.get(name, {}).get(value, value)
    step = (STEPS | TOKEN_STEPS)[options.step]
    return partial(step, **given) if given else step


def levels_of(options: argparse.Namespace, trained: Schedule) -> Tensor:
    """The noise levels to visit."""
    steps = options.steps or (1 if options.step == "ode" else 100)
    schedule: Any = trained
    if options.grid in GRIDS:
        schedule = GRIDS[options.grid](trained.logsnr_max, trained.logsnr_min)
    elif options.grid != "run":
        schedule = load_object(options.grid)
        if not isinstance(schedule, Schedule | type):
            what = "come without --steps and --spacing where it is a row of levels"
            alone = options.steps is None and options.spacing == "uniform"
            require(alone, "grid", what, options.grid)
            return rising(schedule, "grid", {}).cpu()
    return SPACINGS[options.spacing](schedule, steps).cpu()


def model_of(options: argparse.Namespace, model: Any) -> Any:
    """The model with guidance and clipping."""
    guided, hint = options.guidance is not None, "--guidance 2 --null-label 10"
    what = "come with guidance, and guidance with it"
    require(guided == (options.null_label is not None), "null-label", what, "one of them", hint)
    fits = guided or options.interval is None
    require(fits, "interval", "come with guidance", "none", hint)
    if guided:
        interval = None if options.interval is None else tuple(options.interval)
        model = Guided(model, options.guidance, {"label": options.null_label}, interval)
    return Clipped(model) if options.clip else model


def _named(what: str, names: dict[str, Any]) -> Callable[[str], str]:
    """A parser of names. An unknown name raises with the nearest as a hint."""

    def parse(text: str) -> str:
        if text not in names:
            hint = did_you_mean(text, names) or f"there are {', '.join(names)}"
            raise argparse.ArgumentTypeError(f"'{text}' is no {what}; {hint}")
        return text

    return parse


def _grid(text: str) -> str:
    return text if ":" in text else _named("grid", {**GRIDS, "run": None})(text)

"""One card in at most eight minutes: is everything right on it, and how fast is it?

    tests     tests/test_device.py on the card
    vdm       VDM's training step at batch 128 over a bare step of its network, eager and compiled
    recipes   a step of every recipe, with fewer blocks, in float32 (convolutions in TF32, as
              torch has them) and in compiled bf16: how far loss and gradient are apart, and how
              much faster it is
    curves    a small VDM on patches under three schedules: bits/dim by step, variance of the loss

Each part is a process of its own: if one fails, hangs or lacks a package, the others still run,
and the exit code is 1. A part that is short of time does less, and says so. The text is written
line by line to gpu_<card>.txt, the figure at the end to gpu_<card>.png.

    make gpu
    make gpu DEVICE=cpu QUICK=1     # all of it in small, where there is no card
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import has, title

from vdiff.disk import write_text
from vdiff.terminal import replace_unencodable, say

# a part imports what it needs: a package that is missing ends that part alone
sys.path.append(str(Path(__file__).parents[1] / "examples"))
ROOT = Path(__file__).parents[1]
END = 15.0  # seconds kept for the figure, and for ending a part
FEW = ("small", "edm", "vdm-gamma")  # recipes in small
CURVES = ("linear", "γ_η", "adaptive")


class Part:
    """What a part is given: where to run, in small or not, until when; and what the figure needs
    of it, kept in a file, also of a part that is ended."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.quick = torch.device(options.device), options.quick
        self.folder, self.file = options.data, options.file
        self.stop, self.well, self.kept = time.monotonic() + options.seconds, True, {}

    def left(self) -> float:
        """Seconds."""
        return self.stop - time.monotonic()

    def keep(self, name: str, value: Any) -> None:
        self.kept[name] = value
        write_text(self.file, json.dumps(self.kept))

    def in_time(self, names: Sequence[str]) -> Iterator[str]:
        """Those for which there is time, by the longest of those before."""
        longest = 0.0
        for i, name in enumerate(names):
            start = time.monotonic()
            if self.left() < longest:
                say(f"short of time: {i} of {len(names)}")
                return
            yield name
            longest = max(longest, time.monotonic() - start)

    def fails(self, error: Exception, what: str = "") -> None:
        self.well = False
        traceback.print_exc()
        say(f"{what}FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def tests(part: Part) -> None:
    """The tests that run on the device."""
    where = ["-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests" / "test_device.py")]
    which = f"{part.device.type} and decoder" if part.quick else part.device.type
    how = ["-p", "no:cacheprovider", "--color=no", "--tb=short", "-k", which]
    # of the machine's own packages: no plugins, and their warnings are no errors; where it hangs
    how += ["-W", "default", "--disable-warnings", "-o", "faulthandler_timeout=60"]
    alone, command = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, [sys.executable, "-m", "pytest"]
    more: dict[str, Any] = {"env": os.environ | alone, "stderr": subprocess.STDOUT}
    part.well = subprocess.call([*command, *where, *how], **more) == 0


def steps_of_recipes(part: Part) -> None:
    """A step of every recipe with fewer blocks: how far compiled bf16 is from float32, graphs,
    milliseconds of float32 and of bf16, MiB of both, seconds until it was compiled and measured.
    """
    import recipe_steps
    import recipes

    say(
        f"{'recipe':<20}{'loss':>10}{'gradient':>10}{'graphs':>8}{'ms':>10}{'ms':>10}"
        f"{'MiB':>10}{'MiB':>10}{'s':>8}"
    )
    times = dict[str, list[float]]()
    for name in part.in_time(FEW if part.quick else recipes.NAMES):
        start = time.monotonic()
        try:
            row = recipe_steps.compare(recipes.load(name), part.device, part.quick)
        except Exception as error:
            part.fails(error, f"{name:<20}")
            continue
        part.well &= row.right
        times[name] = [1000 * t for t in row.seconds]
        say(
            f"{name:<20}{100 * row.loss:>8.3f} %{100 * row.gradient:>8.2f} %{row.graphs:>8}"
            f"{times[name][0]:>10.2f}{times[name][1]:>10.2f}{row.memory[0]:>10,.0f}"
            f"{row.memory[1]:>10,.0f}{time.monotonic() - start:>8.1f}"
            f"{'' if row.right else '  FAILED: too far apart, or not compiled'}"
        )
        part.keep("steps", times)


def vdm(part: Part) -> None:
    """VDM's whole training step over a bare step of its network, eager and compiled."""
    import recipe_steps
    import recipes
    import train_step

    config, rounds, steps = recipes.load("vdm"), 15, 5
    if part.quick:
        network, rounds, steps = config.network | {"width": 8, "depth": 1}, 2, 1
        config = replace(config, network=network, batch=2)
    else:  # first what needs no minutes to compile
        eager = replace(config, compile=False)
        train_step.report("vdm", eager, part.device, rounds=4, steps=2)
    stop = part.stop - 0.3 * part.left()  # the rest is for memory and matrices
    with recipe_steps.compiling(part.quick) as counts:
        train_step.report("vdm", config, part.device, rounds=rounds, steps=steps, stop=stop)
    graphs = counts["unique_graphs"]  # each takes a minute or two
    part.well &= graphs == 1
    say(f"{graphs} graph{'s' * (graphs != 1)} in the bare step and in training")


def trained(
    name: str, part: Part, steps: int, images: Any, validate: bool = True
) -> tuple[Any, list[dict[str, Any]]]:
    """A small VDM trained under a schedule, averaged, and its log."""
    import learned_schedule
    import recipe_steps
    import recipes

    from vdiff.training import Validation, train

    config, quick = recipes.load("small"), part.quick
    size = {"width": 8, "depth": 1} if quick else {"width": 64, "depth": 4}
    ends = {"logsnr_max": learned_schedule.HIGH, "logsnr_min": learned_schedule.LOW}
    schedule = learned_schedule.SCHEDULES[name] | ends
    config = replace(config, network=config.network | size, schedule=schedule, schedule_lr=0.05)
    more = {"autocast": True, "compile": not quick, "channels_last": True}
    config = replace(config, batch=4 if quick else 128, steps=steps, **more)
    pixels = images.selection[: 4 if quick else 256].pixels.to(part.device)
    torch.manual_seed(0)
    objective, log = config.objective().to(part.device), list[dict[str, Any]]()
    held_out = Validation(pixels, draws=2 if quick else 8) if validate else None
    options = {"log": log.append, "validate": held_out, "every": max(1, steps // 10)}
    with recipe_steps.compiling(quick):
        return train(objective, images.train.pixels, config, quiet=True, **options), log


def curves(part: Part) -> None:
    """The same training under three schedules: bits/dim of held-out patches, the variance of one
    draw of the bound, seconds."""
    import learned_schedule

    from vdiff.data import splits

    images = splits("patches", str(part.folder))
    steps = 4
    if not part.quick:  # as many as there is time for, half of it for the rest
        _, log = trained(CURVES[0], part, 60, images, validate=False)  # compiles
        pace = (log[-1]["seconds"] - log[4]["seconds"]) / (log[-1]["step"] - log[4]["step"])
        steps = max(60, min(2000, int(part.left() / len(CURVES) / 2 / pace)))
    say(
        f"{steps} steps\n{'schedule':<12}{'bits/dim':>10}{'± MC':>9}{'variance':>11}{'±':>8}"
        f"{'s':>8}"
    )
    for name in part.in_time(CURVES):
        objective, log = trained(name, part, steps, images)
        rows = images.selection.pixels.to(part.device)
        pool = learned_schedule.Pool.drawn(objective, rows, 10, 8 if part.quick else 1000)
        schedule, last = objective.schedule.cpu(), log[-1]
        (variance, _), (error, _) = pool.measured(schedule)
        say(
            f"{name:<12}{last['selection_bits_per_dim']:>10.4f}{last['selection_error']:>9.4f}"
            f"{variance:>11.3f}{error:>8.3f}{last['seconds']:>8.1f}"
        )
        logsnr = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 301).double()
        lines = {"logsnr": logsnr.tolist(), "density": schedule.density(logsnr).tolist()}
        part.keep(name, {"log": log} | lines)


PARTS: dict[str, tuple[Callable[[Part], None], float]] = {  # with the share of the time left
    "tests": (tests, 4.0), "vdm": (vdm, 4.0),
    "recipes": (steps_of_recipes, 4.0), "curves": (curves, 3.0),
}  # fmt: skip


def run(name: str, limit: float, file: Path) -> Iterator[str]:
    """The lines of a part in a process of its own, which is ended after its time."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--file", str(file)]
    started = subprocess.Popen(
        [*command, "--seconds", str(0.9 * limit)], stdout=subprocess.PIPE, encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"}, start_new_session=True,
    )  # fmt: skip

    def end() -> None:  # with the processes that compile for it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)

    clock = threading.Timer(limit, end)
    clock.start()
    with started as process:
        try:
            yield from (line.rstrip() for line in process.stdout or ())
            if process.wait() != 0:
                code = process.returncode
                why = f"ended after {limit:.0f} s" if code == -signal.SIGKILL else f"code {code}"
                yield f"FAILED: {name}, {why}"
        finally:
            clock.cancel()
            end()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"), help="(default: %(default)s)")
    add("--quick", action="store_true", help="in small: that it runs, not how fast")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    add("--budget", type=float, default=480.0, help="seconds of all (default: %(default)s)")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where both files go")
    add("--data", type=Path, default=ROOT / "data", help="folder of the patches, made if missing")
    for name, kind in (("--part", str), ("--seconds", float), ("--file", Path)):
        add(name, type=kind, help=argparse.SUPPRESS)  # of a part's own process
    return parser.parse_args(arguments)


def main() -> int:
    began, options = time.monotonic(), parse()
    device = torch.device(options.device)
    if not has(device):
        say(
            "gpu: there is no CUDA device, or torch was built without CUDA; without one: "
            "make gpu DEVICE=cpu QUICK=1",
            file=sys.stderr,
        )
        return 2
    if options.part is not None:
        part = Part(options)
        try:
            PARTS[options.part][0](part)
        except Exception as error:
            part.fails(error)
        return 0 if part.well else 1
    card = "cpu" if options.device == "cpu" else title(device)
    stem = "gpu_" + "".join(c if c.isalnum() else "-" for c in card.lower())
    note = "; in small: no number means anything" if options.quick else ""
    head = f"torch {torch.__version__}, CUDA {torch.version.cuda}, {title(device)}{note}"
    options.out.mkdir(parents=True, exist_ok=True)
    kept, failed, file = dict[str, Any](), list[str](), options.out / f"{stem}.json"
    file.unlink(missing_ok=True)  # of a run that was ended
    with (options.out / f"{stem}.txt").open("w", encoding="utf-8") as text:

        def tell(line: str) -> None:
            say(line)
            say(line, file=text)

        tell(f"$ make gpu DEVICE={options.device}{' QUICK=1' if options.quick else ''}\n{head}")
        for i, name in enumerate(options.only):
            about, share = (PARTS[name][0].__doc__ or "").split(), PARTS[name][1]
            tell(f"\n{name}: {' '.join(about)}")
            left = options.budget - END - (time.monotonic() - began)
            limit = left * share / sum(PARTS[later][1] for later in options.only[i:])
            for line in run(name, limit, file):
                tell(line)
                failed += [name] if line.startswith(f"FAILED: {name}, ") else []
            if file.exists():
                kept |= json.loads(file.read_text(encoding="utf-8"))
                file.unlink()
        try:
            import gpu_figure

            gpu_figure.draw(options.out / f"{stem}.png", kept, head)
        except Exception as error:
            traceback.print_exc()
            tell(f"FAILED: figure, {type(error).__name__}: {error}")
            failed.append("figure")
        tell(f"\n{time.monotonic() - began:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    replace_unencodable()
    raise SystemExit(main())

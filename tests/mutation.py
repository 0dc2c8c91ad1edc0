"""Break each formula of the core by a sign, a factor or a comparison, and see whether a test turns
red.

    # so many mutants, drawn by --seed from all; without it, every one
    python tests/mutation.py --sample 500
    python tests/mutation.py --only vdiff/gaussian.py

A mutant is one change of one expression: + and −, * and / exchanged, a minus sign dropped, a
number moved, a comparison turned round, a function for its neighbor (log1p, log). Texts,
annotations, checks of arguments, `__repr__` and settings (numbers at the top of a module,
defaults) are left alone.

First every test runs once, unbroken, and it is noted which lines it reaches and how long it takes
(ten minutes on two cores; kept in `runs/mutation` until a source or a test changes). Then each
mutant lives in a process forked after the tests were collected, where the code of its function is
exchanged, and meets the tests that reach its lines, those that reach little else and quick ones of
every file first, until one fails. Mutants that survive, or that no test reaches, are printed as
the line they change; before them, how many statements of these files a test reaches. Tests in
subprocesses import the unbroken source, and kill nothing.
"""

import argparse
import ast
import hashlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import coverage
import pytest
import torch
from _pytest.runner import runtestprotocol
from mutants import CORE, ROOT, Mutant, files_of, sites, statements

BROKEN = 9  # the exit code of a child that could not do its work
GOAL = 0.9  # the share of mutants that tests must kill


def in_child(work) -> int:  # type: ignore[no-untyped-def]
    """Fork; the child does its work in silence and exits with what it returns, or `BROKEN` where
    it raises."""
    child = os.fork()
    if child:
        return child
    silence, code = os.open(os.devnull, os.O_WRONLY), BROKEN
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with suppress(BaseException):
        os.chdir(ROOT)
        code = work()
    os._exit(code)


def passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    return not any(
        report.failed for report in runtestprotocol(item, log=False, nextitem=following)
    )


class Reach:
    """Which tests reach a line, and how long each takes: found by running all of them unbroken."""

    def __init__(self, items: list[pytest.Item], folder: Path, jobs: int) -> None:
        self.items = {item.nodeid: item for item in items}
        digest = hashlib.sha256()
        for path in sorted(
            [
                *ROOT.glob("vdiff/**/*.py"),
                *ROOT.glob("tests/**/*.py"),
                *ROOT.glob("tests/**/*.json"),
            ]
        ):
            digest.update(path.read_bytes() if path != Path(__file__).resolve() else b"")
        store = folder / digest.hexdigest()[:16]
        if not store.exists():
            part = store.with_suffix(".part")
            part.mkdir(parents=True, exist_ok=True)
            modules = sorted({item.path for item in items})
            shares = [
                [item for item in items if modules.index(item.path) % jobs == job]
                for job in range(min(jobs, len(modules)))
            ]
            children = [
                in_child(lambda job=job, share=share: self._run(share, part, job))
                for job, share in enumerate(shares)
            ]
            if any(os.waitpid(child, 0)[1] for child in children):
                raise SystemExit("mutation: the unbroken tests did not run to their end")
            part.rename(store)
        self.seconds: dict[str, float] = {}
        self.tests: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for job in range(len(list(store.glob("*.json")))):
            self.seconds |= json.loads((store / f"{job}.json").read_text(encoding="utf-8"))
            data = coverage.CoverageData(str(store / f"{job}.coverage"))
            data.read()
            for file in data.measured_files():
                lines = self.tests[str(Path(file).relative_to(ROOT))]
                for line, contexts in data.contexts_by_lineno(file).items():
                    lines[line].update(name for name in contexts if name in self.seconds)
        self.breadth = Counter(
            name for lines in self.tests.values() for names in lines.values() for name in names
        )

    @staticmethod
    def _run(items: list[pytest.Item], folder: Path, job: int) -> int:
        reach = coverage.Coverage(
            data_file=str(folder / f"{job}.coverage"),
            include=[str(ROOT / "vdiff" / "*")],
            config_file=False,
        )
        reach.start()
        seconds = {}
        for item, following in zip_longest(items, items[1:]):
            reach.switch_context(item.nodeid)
            started = time.perf_counter()
            if passes(item, following):
                seconds[item.nodeid] = time.perf_counter() - started
        reach.stop()
        reach.save()
        (folder / f"{job}.json").write_text(json.dumps(seconds), encoding="utf-8")
        return 0

    def covered(self, paths: list[str]) -> tuple[int, int]:
        """How many statements of these files a test reaches, and how many there are."""
        every = {path: statements(ast.parse((ROOT / path).read_text("utf-8"))) for path in paths}
        reached = (bool(self.tests[path][line]) for path, lines in every.items() for line in lines)
        return sum(reached), sum(map(len, every.values()))

    def of(self, mutant: Mutant, budget: float) -> list[pytest.Item]:
        """The tests that reach a mutant's lines, as many as take `budget` seconds: by turns the
        one that reaches least beside them, and the quickest of another file."""
        lines = self.tests[mutant.path]
        names = set().union(*(lines[i] for i in mutant.lines)) or set().union(
            *(lines[i] for i in mutant.around)
        )
        files = defaultdict(list)
        for name in sorted(names, key=lambda name: self.seconds[name]):
            files[name.split("::")[0]].append(name)
        narrow = sorted(names, key=lambda name: (self.breadth[name], self.seconds[name]))
        broad = [name for row in zip_longest(*files.values()) for name in row if name is not None]
        chosen, total = [], 0.0
        for name in dict.fromkeys(itertools.chain.from_iterable(zip(narrow, broad, strict=True))):
            total += self.seconds[name]
            if chosen and total > budget:
                break
            chosen.append(self.items[name])
        return chosen


class Experiment:
    """The plugin that takes the place of pytest's loop over tests."""

    def __init__(self, options: argparse.Namespace, chosen: list[tuple[str, int]]) -> None:
        self.options, self.chosen = options, chosen
        self.survivors: list[Mutant] = []
        self.unreached: list[Mutant] = []
        self.share = 0.0  # killed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        with session.config.pluginmanager.getplugin(
            "capturemanager"
        ).global_and_fixture_disabled():
            self.run(session.items)
        return True

    def run(self, items: list[pytest.Item]) -> None:
        started = time.monotonic()
        reach = Reach(items, self.options.map, self.options.jobs)
        left_out = [item.nodeid for item in items if item.nodeid not in reach.seconds]
        print(
            (
                f"{len(reach.seconds)} tests, {len(left_out)} left out that fail unbroken here: "
                f"{left_out}, {time.monotonic() - started:.0f} s"
            ),
            flush=True,
        )
        package = [str(path.relative_to(ROOT)) for path in (ROOT / "vdiff").rglob("*.py")]
        for name, paths in (("these files", self.options.paths), ("the package", package)):
            reached, lines = reach.covered(paths)
            print(f"{reached} of {lines} statements of {name} reached: {reached / lines:.1%}")
        started, running = time.monotonic(), dict[int, Mutant]()
        for done, (path, index) in enumerate(self.chosen, 1):
            mutant = Mutant(path, index)
            tests = reach.of(mutant, self.options.budget)
            if not tests:
                self.unreached.append(mutant)
                print(f"not reached: {mutant.words}", flush=True)
                continue
            if len(running) == self.options.jobs:
                self.wait(running)
            limit = 30 + 10 * sum(reach.seconds[item.nodeid] for item in tests)
            running[in_child(lambda m=mutant, t=tests, s=limit: self.meet(m, t, s))] = mutant
            if done % 50 == 0:
                print(
                    (
                        f"{done} of {len(self.chosen)}, {len(self.survivors)} survive, "
                        f"{time.monotonic() - started:.0f} s"
                    ),
                    flush=True,
                )
        while running:
            self.wait(running)
        left, total = len(self.survivors) + len(self.unreached), len(self.chosen)
        self.share = 1 - left / max(1, total)
        words = (
            f"{self.share:.1%}; {len(self.unreached)} not reached, "
            f"{time.monotonic() - started:.0f} s"
        )
        print(f"{total} mutants, {total - left} killed: {words}")

    @staticmethod
    def meet(mutant: Mutant, tests: list[pytest.Item], limit: float) -> int:
        """0 where every test passes on it."""
        signal.alarm(int(limit))  # a mutant may never end
        mutant.install()
        try:
            return int(
                not all(
                    passes(item, following) for item, following in zip_longest(tests, tests[1:])
                )
            )
        except BaseException:  # of pytest's own, such as SystemExit
            return 1

    def wait(self, running: dict[int, Mutant]) -> None:
        child, status = os.wait()
        mutant = running.pop(child)
        if os.waitstatus_to_exitcode(status) == BROKEN:
            raise RuntimeError(f"not to be installed: {mutant.words}")
        if status == 0:
            self.survivors.append(mutant)
            print(f"survives: {mutant.words}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="modules or folders (default: the whole core)")
    parser.add_argument("--sample", type=int, help="how many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--budget",
        type=float,
        default=60.0,
        help="seconds of tests that a mutant meets (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes (default: as many as cores)"
    )
    parser.add_argument(
        "--map",
        type=Path,
        default=ROOT / "runs" / "mutation",
        help="folder of what reaches what (default: runs/mutation)",
    )
    parser.add_argument(
        "--tests", nargs="+", default=["tests"], help="tests to run (default: all)"
    )
    parser.add_argument(
        "--count", action="store_true", help="say how many mutants there are, and stop"
    )
    options = parser.parse_args()
    paths = [str(p.relative_to(ROOT)) for name in CORE for p in files_of(ROOT / "vdiff" / name)]
    if options.only:
        paths = [p for p in paths if p.startswith(tuple(options.only))]
    options.paths = paths
    every = [
        (p, i)
        for p in paths
        for i, _ in enumerate(sites(ast.parse((ROOT / p).read_text(encoding="utf-8"))))
    ]
    if options.count:
        print(len(every))
        return
    chosen = (
        every
        if options.sample is None
        else random.Random(options.seed).sample(every, min(options.sample, len(every)))
    )
    torch.set_num_threads(1)  # a forked process has no pool of threads
    os.chdir(ROOT)
    experiment = Experiment(options, sorted(chosen))
    pytest.main(
        ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options.tests], plugins=[experiment]
    )
    raise SystemExit(experiment.share < GOAL)


if __name__ == "__main__":
    main()

"""Break each formula of the core by a sign, a factor or a comparison, and see whether a test turns red.

    python tests/mutation.py --sample 300        # so many mutants, drawn by --seed from all; without it, every one
    python tests/mutation.py --only vdiff/gaussian.py

A mutant is one change of one expression: + and −, * and / exchanged, a minus sign dropped, a number moved, a comparison turned
round, a function for its neighbor (log1p, log). Texts, annotations, checks of arguments and `__repr__` are left alone. Each runs in a
process of its own, forked with torch loaded, against the tests named for its module until one fails. Mutants that survive are
printed as the line they change.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FAST = ["tests/theorems/test_precision.py", "tests/theorems/test_invariance.py", "tests/theorems/test_weightings.py"]
BOUND = ["tests/theorems/test_bounds.py", "tests/theorems/test_ddpm.py", "tests/theorems/test_terms.py", "tests/theorems/test_chain.py"]
EVALUATION = ["tests/test_evaluation.py", "tests/test_plan.py", "tests/test_estimate.py", "tests/test_compare.py"]
TESTS: dict[str, list[str]] = {  # the first key that begins a module's path
    "vdiff/gaussian.py": ["tests/theorems/test_precision.py", "tests/oracles/test_oracle_core.py", *BOUND],
    "vdiff/times.py": ["tests/test_times.py"],
    "vdiff/resampling.py": ["tests/test_resampling.py"],
    "vdiff/profile.py": ["tests/test_profile.py"],
    "vdiff/variance.py": ["tests/test_ancestral.py", *BOUND],
    "vdiff/schedule/": ["tests/test_schedule.py", "tests/test_adaptive.py", "tests/theorems/test_learned_shape.py", "tests/oracles"],
    "vdiff/parameterization.py": ["tests/test_parameterization.py", *FAST],
    "vdiff/reverse.py": BOUND,
    "vdiff/weighting.py": ["tests/theorems/test_weightings.py", "tests/oracles"],
    "vdiff/bound.py": BOUND,
    "vdiff/decoder.py": ["tests/test_decoder.py", "tests/oracles"],
    "vdiff/denoiser.py": ["tests/test_denoiser.py", "tests/faults/test_network.py"],
    "vdiff/oracle.py": ["tests/oracles", "tests/theorems/test_bounds.py"],
    "vdiff/loss.py": [*FAST, *BOUND],
    "vdiff/chain.py": ["tests/theorems/test_path.py", *BOUND],
    "vdiff/flow.py": ["tests/test_ode.py"],
    "vdiff/objective.py": ["tests/theorems/test_learned_shape.py", "tests/test_training.py"],
    "vdiff/groups.py": ["tests/test_training.py"],
    "vdiff/diagnosis.py": ["tests/test_adaptive.py", "tests/test_profile.py"],
    "vdiff/sampling/": [
        "tests/test_steps.py",
        "tests/test_sampling_ends.py",
        "tests/test_guidance.py",
        "tests/oracles",
        "tests/faults/test_sampling.py",
    ],
    "vdiff/likelihood/": [
        *EVALUATION,
        "tests/test_ode.py",
        "tests/test_dequantise.py",
        "tests/test_importance.py",
        "tests/test_immse.py",
        "tests/oracles",
    ],
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARISONS = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
NEIGHBORS = {
    "log1p": "log", "expm1": "exp", "exp": "expm1", "sqrt": "square", "square": "sqrt", "sigmoid": "tanh", "logsigmoid": "softplus",
    "softplus": "logsigmoid", "sin": "cos", "cos": "sin", "cumsum": "cumprod", "amax": "amin", "sum": "mean", "mean": "sum", "maximum": "minimum",
}  # fmt: skip
SILENT = {"must", "warn", "extra_repr", "finite", "did_you_mean"}  # calls whose arguments are texts and limits


def sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The nodes of formulas, each with a name of what can be changed there."""

    def visit(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in SILENT or called.startswith(("check", "_check", "_refuse", "assert")):
                return
            if called in NEIGHBORS and isinstance(node.func, ast.Attribute):
                yield node.func, "call"
        if isinstance(node, ast.If) and "checking()" in ast.unparse(node.test):
            return
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node.left):
            yield node, "operator"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "sign"
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, "comparison"
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "number"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name in ("__repr__", "extra_repr") or node.name.startswith(("check", "_check", "_refuse", "_warn")):
                return
            for statement in node.body:
                yield from visit(statement)
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from visit(node.value)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List) or isinstance(getattr(node, "value", None), str)


def change(node: ast.AST, kind: str) -> None:
    if kind == "operator":
        assert isinstance(node, ast.BinOp)
        node.op = OPERATORS[type(node.op)]()
    elif kind == "comparison":
        assert isinstance(node, ast.Compare)
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "call":
        assert isinstance(node, ast.Attribute)
        node.attr = NEIGHBORS[node.attr]
    elif kind == "number":
        assert isinstance(node, ast.Constant)
        node.value = node.value + 1 if type(node.value) is int else 1.5 * node.value if node.value else 0.5
    else:
        assert isinstance(node, ast.UnaryOp)
        node.op = ast.UAdd()


class Mutant:
    def __init__(self, path: str, index: int) -> None:
        self.path, self.index = path, index
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        node, self.kind = list(sites(tree))[index]
        before = ast.unparse(self._statement(tree, node))
        self.line = node.lineno
        change(node, self.kind)
        self.tree, self.after = tree, ast.unparse(self._statement(tree, node))
        self.words = f"{path}:{self.line} ({self.kind})\n  - {self._short(before)}\n  + {self._short(self.after)}"

    @staticmethod
    def _short(text: str) -> str:
        return text.split("\n")[0][:200]

    @staticmethod
    def _statement(tree: ast.AST, node: ast.AST) -> ast.AST:
        """The innermost statement around a node."""
        found = tree
        for one in ast.walk(tree):
            if (
                isinstance(one, ast.stmt)
                and one.lineno <= node.lineno <= (one.end_lineno or 0)
                and not isinstance(one, ast.FunctionDef | ast.ClassDef)
            ):
                found = one
        return found


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree of its own."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        parts = Path(mutant.path).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, ROOT / self.mutant.path, loader=self)

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return None

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        exec(compile(copy.deepcopy(self.mutant.tree), str(ROOT / self.mutant.path), "exec"), module.__dict__)

    def get_source(self, name):  # type: ignore[no-untyped-def]
        return None


def tests_of(path: str) -> list[str]:
    return next(tests for start, tests in TESTS.items() if path.startswith(start))


def killed(mutant: Mutant | None, tests: list[str], limit: int) -> bool:
    """Whether a test fails on it, or never ends."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        signal.alarm(limit)
        if mutant is not None:
            sys.meta_path.insert(0, Finder(mutant))
        os.chdir(ROOT)
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:doctest", *tests])
        os._exit(0 if code == 0 else 1)
    return os.waitpid(child, 0)[1] != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="modules or folders (default: the whole core)")
    parser.add_argument("--sample", type=int, help="how many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--limit", type=int, default=300, help="seconds until a mutant counts as one that never ends (default: %(default)s)"
    )
    parser.add_argument("--count", action="store_true", help="say how many mutants there are, and stop")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    paths = sorted(
        str(p.relative_to(ROOT)) for start in TESTS for p in (ROOT.glob(f"{start}*.py") if start.endswith("/") else [ROOT / start])
    )
    if options.only:
        paths = [p for p in paths if p.startswith(tuple(options.only))]
    every = [(p, i) for p in paths for i, _ in enumerate(sites(ast.parse((ROOT / p).read_text(encoding="utf-8"))))]
    if options.count:
        print(len(every))
        return
    chosen = every if options.sample is None else random.Random(options.seed).sample(every, min(options.sample, len(every)))
    import numpy, scipy.stats, torch, torchdiffeq  # noqa: E401, F401, I001 (loaded once, for all of them)

    torch.set_num_threads(1)
    survivors, started = [], time.monotonic()
    for done, (path, index) in enumerate(sorted(chosen), 1):
        mutant = Mutant(path, index)
        if not killed(mutant, tests_of(path), options.limit):
            survivors.append(mutant)
            print(f"survives: {mutant.words}", flush=True)
        if done % 20 == 0:
            print(f"{done} of {len(chosen)}, {len(survivors)} survive, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(chosen)} mutants, {len(chosen) - len(survivors)} killed: {1 - len(survivors) / max(1, len(chosen)):.1%}")


if __name__ == "__main__":
    main()

"""Rewrite code of vdiff 0.1 for 0.2. docs/migration.md has the whole list of names.

    python docs/migrate.py my_project/ train.py          # shows what would change
    python docs/migrate.py --write my_project/ train.py  # changes it

It knows what is imported from vdiff (`from vdiff import Cosine`, `import vdiff as vd; vd.Cosine`),
and methods and keywords whose old name is used by nothing else. What changed its meaning under the
same name it prints for you to look at.
"""

import argparse
import ast
import difflib
import sys
from pathlib import Path

# what left the door, by its room
ROOMS = {
    "vdiff.augmentation": "augmented_elbo",
    "vdiff.bound": "Bound",
    "vdiff.chain": "first_variance path_bound vlb",
    "vdiff.decoder": "Categorical Decoder DiscretizedGaussian",
    "vdiff.denoiser": "ScaledGamma ScheduleTime TableStep edm_time flow_time sigma_time",
    "vdiff.describe": "describe",
    "vdiff.diagnosis": "Diagnosis diagnose",
    "vdiff.groups": "parameter_groups",
    "vdiff.oracle": "GaussianMixture Lattice",
    "vdiff.parameterization": "Eps Flow Parameterization PosteriorMean Score V X",
    "vdiff.profile": "Profile",
    "vdiff.recipes": "Recipe",
    "vdiff.resampling": "LossSecondMoment",
    "vdiff.reverse": "MonteCarlo RaoBlackwell",
    "vdiff.sampling": "Clipped Guided ancestral ddim dpmpp_2m encode few_steps heun ode",
    "vdiff.schedule": "Adaptive Cosine Histogram Karras Laplace LearnedLinear Linear "
    "LinearBeta Monotone Normal OptimalTransport Schedule Shifted "
    "SignalPower Spectral Spline Tabulated",
    "vdiff.times": "stratified",
    "vdiff.weighting": "Debiased EDM ELBO InDI MSE MinSNR P2 Sigmoid "
    "SoftMinSNR TruncatedSNR Weighting loss_factor",
}
# old dotted name -> new dotted name
MOVED = {
    f"vdiff.{name}": f"{room}.{name}" for room, names in ROOMS.items() for name in names.split()
}
MOVED |= {
    "vdiff.Exploding": "vdiff.parameterization.VarianceExploding",
    "vdiff.Forward": "vdiff.variance.FixedLarge",
    "vdiff.LogVariance": "vdiff.variance.LearnedLogVariance",
    "vdiff.Range": "vdiff.variance.LearnedRange",
    "vdiff.adams": "vdiff.sampling.adams_bashforth",
    "vdiff.chain.hybrid": "vdiff.hybrid_loss",
    "vdiff.hybrid": "vdiff.hybrid_loss",
    "vdiff.parameterization.Exploding": "vdiff.parameterization.VarianceExploding",
    "vdiff.parameterization.Prediction": "vdiff.Prediction",
    "vdiff.sampling.adams": "vdiff.sampling.adams_bashforth",
    "vdiff.training.over_ranks": "vdiff.training.all_reduce",
    "vdiff.variance.Forward": "vdiff.variance.FixedLarge",
    "vdiff.variance.LogVariance": "vdiff.variance.LearnedLogVariance",
    "vdiff.variance.Optimal": "vdiff.variance.AnalyticVariance",
    "vdiff.variance.Posterior": "vdiff.variance.FixedSmall",
    "vdiff.variance.Range": "vdiff.variance.LearnedRange",
    "vdiff.variance.Variance": "vdiff.variance.LearnedVariance",
}
METHODS = {
    "but": "replace",
    "stopped": "detach_mean",
}  # old attribute -> new attribute, of objects of vdiff
DECODERS = [f"vdiff.decoder.{name}" for name in ("Categorical", "DiscretizedGaussian", "Gaussian")]
# (new dotted function, old keyword) -> new keyword
KEYWORDS = {(one, "closed"): "levels_at_ends" for one in DECODERS}
KEYWORDS |= {(one, "denoise"): "uses_network" for one in DECODERS}
LOSS = (
    "loss=Weighted(…), VLB(decoder, …) or Hybrid(steps, …) of vdiff.objective replaces weighting, "
    "decoder, steps, bound_weight and resampling"
)
CONDITION = "what the network is given is one mapping, condition={…}; no keyword is a condition"
VERBS = ["weighted_elbo", "elbo", "hybrid_loss", "sample", "trajectory", "evaluate", "compare"]
LOOK_AT = {"vdiff.Objective": LOSS} | {f"vdiff.{verb}": CONDITION for verb in VERBS}

Edit = tuple[
    int, int, str
]  # start and end in characters of the file, and what stands there instead


class Migration(ast.NodeVisitor):
    """The edits of one file."""

    def __init__(self, source: str) -> None:
        self.source, self.edits, self.notes = source, [], []
        self.names: dict[
            str, str
        ] = {}  # a name of this file -> the new dotted name of vdiff behind it
        lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line))
        self.lines = lines
        self.visit(ast.parse(source))

    def result(self) -> str:
        """The file as it should be."""
        text = self.source
        for start, end, new in sorted(self.edits, reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name == "vdiff" or alias.name.startswith("vdiff."):
                new = MOVED.get(alias.name, alias.name)
                if new != alias.name:
                    self._replace(alias, new + (f" as {alias.asname}" if alias.asname else ""))
                self.names[alias.asname or alias.name.split(".")[0]] = (
                    new if alias.asname else "vdiff"
                )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or not (node.module == "vdiff" or (node.module or "").startswith("vdiff.")):
            return
        homes: dict[str, list[str]] = {}
        for alias in node.names:
            new = MOVED.get(f"{node.module}.{alias.name}", f"{node.module}.{alias.name}")
            home, _, name = new.rpartition(".")
            asname = alias.asname or (alias.name if name == alias.name else None)
            self.names[asname or name] = new
            if alias.asname is None and name != alias.name:
                self.names[alias.name] = new  # uses of the old name are renamed where they stand
            homes.setdefault(home, []).append(
                f"{name} as {alias.asname}" if alias.asname else name
            )
        if {node.module: [a.name for a in node.names]} != homes or any(
            a.asname for a in node.names
        ):
            indent = " " * node.col_offset
            self._replace(
                node, f"\n{indent}".join(_import(home, names) for home, names in homes.items())
            )

    def visit_Name(self, node: ast.Name) -> None:
        new = self.names.get(node.id)
        if new and new.startswith("vdiff.") and isinstance(node.ctx, ast.Load):
            last = new.rpartition(".")[2]
            if node.id != last and MOVED.get(f"vdiff.{node.id}") == new:
                self._replace(node, last)
            self._note(node, new)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = self._dotted(node)
        if dotted is not None and dotted in MOVED:
            base = node
            while isinstance(base, ast.Attribute):
                base = base.value
            self._replace(node, MOVED[dotted].replace("vdiff", base.id, 1))
            self._note(node, MOVED[dotted])
            return
        if dotted is not None:
            self._note(node, dotted)
        elif node.attr in METHODS:
            end = self._at(node.end_lineno, node.end_col_offset)
            self.edits.append((end - len(node.attr), end, METHODS[node.attr]))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = self._dotted(node.func)
        function = MOVED.get(function, function) if function else None
        for keyword in node.keywords:
            new = KEYWORDS.get((function, keyword.arg)) if function and keyword.arg else None
            if new:
                start = self._at(keyword.lineno, keyword.col_offset)
                self.edits.append((start, start + len(keyword.arg), new))
        self.generic_visit(node)

    def _dotted(self, node: ast.AST) -> str | None:
        """`vd.schedule.Cosine` as "vdiff.schedule.Cosine", if its root comes from vdiff."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self._dotted(node.value)
            return f"{base}.{node.attr}" if base else None
        return None

    def _note(self, node: ast.AST, dotted: str) -> None:
        if dotted in LOOK_AT:
            self.notes.append(f"line {node.lineno}: {dotted}: {LOOK_AT[dotted]}")

    def _at(self, line: int, column: int) -> int:
        """A place in characters; the parser counts columns in bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def _replace(self, node: ast.AST, text: str) -> None:
        start = self._at(node.lineno, node.col_offset)
        self.edits.append((start, self._at(node.end_lineno, node.end_col_offset), text))


def _import(home: str, names: list[str]) -> str:
    return f"from {home} import {', '.join(sorted(names))}"


def main() -> int:
    """Show or write the changes of Python files, and of those in folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="Python files, or folders of them")
    parser.add_argument("--write", action="store_true", help="change the files")
    options = parser.parse_args()
    files = [f for p in options.paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    for file in files:
        source = file.read_text(encoding="utf-8")
        migration = Migration(source)
        new = migration.result()
        for note in migration.notes:
            print(f"{file}, {note}", file=sys.stderr)
        if new != source:
            if options.write:
                file.write_text(new, encoding="utf-8")
            names = (f"{file} (0.1)", f"{file} (0.2)")
            sys.stdout.writelines(
                difflib.unified_diff(source.splitlines(True), new.splitlines(True), *names)
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

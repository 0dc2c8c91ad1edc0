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
    "vdiff.sampling": "Clipped Guided ancestral ddim dpmpp_2m heun ode",
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
    "vdiff.encode": "vdiff.sampling.invert",
    "vdiff.few_steps": "vdiff.sampling.logistic",
    "vdiff.chain.hybrid": "vdiff.hybrid_loss",
    "vdiff.hybrid": "vdiff.hybrid_loss",
    "vdiff.likelihood.Beside": "vdiff.likelihood.Reference",
    "vdiff.likelihood.Plan": "vdiff.likelihood.VarianceReduction",
    "vdiff.parameterization.Exploding": "vdiff.parameterization.VarianceExploding",
    "vdiff.parameterization.Prediction": "vdiff.Prediction",
    "vdiff.sampling.Memory": "vdiff.sampling.History",
    "vdiff.sampling.adams": "vdiff.sampling.adams_bashforth",
    "vdiff.sampling.encode": "vdiff.sampling.invert",
    "vdiff.sampling.few_steps": "vdiff.sampling.logistic",
    "vdiff.cli.keeper.Keeper": "vdiff.cli.resume.Resumable",
    "vdiff.training.here": "vdiff.training.rank",
    "vdiff.training.loop.pace": "vdiff.training.trainer.lr_lambda",
    "vdiff.training.over_ranks": "vdiff.training.all_reduce",
    "vdiff.training.processes": "vdiff.training.distributed",
    "vdiff.training.ranks.Place": "vdiff.training.ranks.Rank",
    "vdiff.training.record.Record": "vdiff.training.logger.Logger",
    "vdiff.training.share.share_of_rank": "vdiff.training.ranks.share_of_rank",
    "vdiff.training.state.Averages": "vdiff.training.state.EMA",
    "vdiff.variance.Forward": "vdiff.variance.FixedLarge",
    "vdiff.variance.LogVariance": "vdiff.variance.LearnedLogVariance",
    "vdiff.variance.Optimal": "vdiff.variance.AnalyticVariance",
    "vdiff.variance.Posterior": "vdiff.variance.FixedSmall",
    "vdiff.variance.Range": "vdiff.variance.LearnedRange",
    "vdiff.variance.Variance": "vdiff.variance.LearnedVariance",
}
METHODS = {
    "beside": "with_reference",
    "but": "replace",
    "excess": "log_variance_ratio",
    "stopped": "detach_mean",
}  # old attribute -> new attribute, of objects of vdiff
DECODERS = [f"vdiff.decoder.{name}" for name in ("Categorical", "DiscretizedGaussian", "Gaussian")]
# (new dotted function, old keyword) -> new keyword
KEYWORDS = {(one, "closed"): "levels_at_ends" for one in DECODERS}
KEYWORDS |= {(one, "denoise"): "uses_network" for one in DECODERS}
KEYWORDS |= {(one, "clip"): "posterior_variance" for one in DECODERS}
KEYWORDS |= {("vdiff.Prediction", "head"): "variance_output"}
LOSS = (
    "loss=Weighted(…), VLB(decoder, …) or Hybrid(steps, …) of vdiff.objective replaces weighting, "
    "decoder, steps, bound_weight and resampling"
)
# keywords of methods whose old name is used by nothing else, and of their new names
METHOD_KEYWORDS = {
    ("but", "out"): "output",
    ("replace", "out"): "output",
    ("but", "head"): "variance_output",
    ("replace", "head"): "variance_output",
}
# attributes whose old name other objects have too: the script only says where they are
ATTRIBUTES = {
    "support": "Weighting.support() is (λ_max, λ_min)",
    "trained": "Denoiser.trained is (λ_max, λ_min)",
    "logsnr_range": "logsnr_range is (λ_max, λ_min)",
    "out": "Prediction.out is Prediction.output",
    "head": "Prediction.head is Prediction.variance_output",
    "law": "decoder.law(prediction) is decoder.log_probs(prediction)",
    "grid": "decoder.grid is decoder.level_values",
    "chain": "Weighting.chain is Weighting.steps",
    "read": "prediction.read(target) is prediction.as_target(target)",
}
CONDITION = "what the network is given is one mapping, condition={…}; no keyword is a condition"
PROFILE = "its ends are keywords: Profile(logsnr_max=…, logsnr_min=…), before (low, high)"
VERBS = ["weighted_elbo", "elbo", "hybrid_loss", "sample", "trajectory", "evaluate", "compare"]
ENDS = "its ends are keywords, logsnr_max= and logsnr_min="
LOOK_AT = {"vdiff.Objective": LOSS} | {f"vdiff.{verb}": CONDITION for verb in VERBS}
LOOK_AT |= {"vdiff.weighting.Custom": ENDS, "vdiff.denoiser.ScaledGamma": ENDS}
STEPS = "steps=n takes n steps through n + 1 noise levels; it visited n levels before: write n - 1"
LOOK_AT |= {f"vdiff.{verb}": f"{STEPS}; {CONDITION}" for verb in ("sample", "trajectory")}
LOOK_AT |= {
    f"vdiff.sampling.{verb}": LOOK_AT[f"vdiff.{verb}"] for verb in ("sample", "trajectory")
}
LOOK_AT |= {"vdiff.sampling.uniform": STEPS}
LOOK_AT |= {"vdiff.profile.Profile": PROFILE}

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
        self.renamed: set[str] = set()  # names of this file that are old
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
                self.names[alias.name] = new
                self.renamed.add(alias.name)  # its uses are renamed too
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
            if node.id in self.renamed:
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
        elif node.attr in ATTRIBUTES and self.names:
            self.notes.append(f"line {node.lineno}: .{node.attr}: {ATTRIBUTES[node.attr]}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = self._dotted(node.func)
        function = MOVED.get(function, function) if function else None
        for keyword in node.keywords:
            new = KEYWORDS.get((function, keyword.arg)) if function and keyword.arg else None
            if isinstance(node.func, ast.Attribute):
                new = METHOD_KEYWORDS.get((node.func.attr, keyword.arg), new)
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

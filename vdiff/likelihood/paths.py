"""How much a bound depends on the path from noise to data: an inconsistency of the model, in
bits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vdiff import _html
from vdiff._arguments import Condition, Model
from vdiff._inputs import Batch, MaskShape
from vdiff._validate import Count, unchecked, validated
from vdiff.decoder import Decoder
from vdiff.likelihood._rules import Paths, finite_but_absent, no_clipping, same_ends
from vdiff.likelihood._tables import spans, table
from vdiff.likelihood.chunks import Progress
from vdiff.likelihood.conditions import conditions_by_image
from vdiff.likelihood.digest import schedule_digest
from vdiff.likelihood.evaluation import compare
from vdiff.likelihood.replicated import Replicates, within
from vdiff.likelihood.report import Comparison
from vdiff.likelihood.stages import Tolerance
from vdiff.likelihood.variance_reduction import VarianceReduction
from vdiff.schedule import Schedule

_PLAN = VarianceReduction()


@dataclass(frozen=True)
class PathGap:
    """The bound along each path minus that along the first, bits/dim or bits/token, on the same
    images, times and noise: `gaps` holds a `Comparison` for each path but the first.

    >>> from vdiff.likelihood.estimate import Estimate
    >>> gap = Comparison(Estimate(0.02, 0.001, 0.004), {"draws": 8})
    >>> print(PathGap(["joint", "by row"], [gap]))
    bits/dim            value   Monte Carlo SE   SE over images
    path 1 − 0         0.0200           0.0010           0.0040
    path 0: joint
    path 1: by row
      95 %: 0.0180 to 0.0220 on these images, 0.0122 to 0.0278 over images
    """

    paths: list[str]
    gaps: list[Comparison]

    def __str__(self) -> str:
        rows = [table({f"path {i} − 0": gap.difference for i, gap in enumerate(self.gaps, 1)})]
        rows.append(within(f"path 0: {self.paths[0]}", 8))
        for i, gap in enumerate(self.gaps, 1):
            rows.append(within(f"path {i}: {self.paths[i]}", 8))
            rows.append(within(f"  95 %: {spans(gap.difference)}", 4))
            rows += [within(f"  WARNING: {text}", 4) for text in gap.warnings]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = [
            (path, f"{e.value:.4f}", f"{e.monte_carlo:.4f}", spans(e))
            for path, e in zip(self.paths[1:], (g.difference for g in self.gaps), strict=True)
        ]
        unit = self.gaps[0].difference.unit.name
        return _html.table(rows, (f"{unit} above {self.paths[0]}", "", "± Monte Carlo", "95 %"))

    def asdict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {"paths": self.paths, "gaps": [gap.asdict() for gap in self.gaps]}


@validated(rules=[same_ends, conditions_by_image, no_clipping, finite_but_absent])
def path_gap(
    model: Model,
    data: Batch,
    *,
    paths: Paths,
    decoder: Decoder | None = None,
    tolerance: Tolerance | None = None,
    budget: Count | None = None,
    draws: Count | None = None,
    replicates: Replicates = 4,
    plan: VarianceReduction = _PLAN,
    batch: Count = 1024,
    seed: int = 0,
    progress: Progress | None = None,
    mask: MaskShape | None = None,
    absent: MaskShape | None = None,
    condition: Condition = None,
) -> PathGap:
    """How much a model's bound depends on the path: the bound along each of `paths` minus that
    along the first, in bits per modelled dimension.

    Along a path λ(t), with one λ_i for each dimension, the diffusion term is the integral of
    ½ Σ_i E(ε_i − ε̂_i)² dλ_i. For the exact denoiser it depends on the ends alone, and so it does
    for that of any Gaussian, even a wrong one. In general it does so only where

        ∂ E(ε_i − ε̂_i)² / ∂λ_j = ∂ E(ε_j − ε̂_j)² / ∂λ_i,

    so a gap shows that the model's predictions at different fields of λ do not fit together. No
    gap does not show that they are right. Times and noise are shared (`compare`), and each gap
    takes two evaluations of the model for a draw.

    Args:
        model, data, decoder, mask, absent, condition: as in `evaluate`; the model takes a field.
        paths: two schedules or more with the same ends in each dimension. One with a single λ for
            all dimensions is a path too.
        tolerance: the Monte Carlo standard error of each gap to reach, in bits/dim.
        budget, draws, replicates, plan, batch, seed, progress: as in `evaluate`, for each gap.

    Raises:
        ValueError: for paths between other ends, for one whose noise depends on the data, and as
            `compare`.

    >>> from vdiff.decoder import Gaussian
    >>> from vdiff.oracle import Gaussian as Normal
    >>> from vdiff.schedule import Cosine, Linear
    >>> oracle = Normal([0.0], [1.0])
    >>> paths = [Linear(9.0, -7.0), Cosine(9.0, -7.0)]
    >>> report = path_gap(oracle, oracle.sample(4), paths=paths, decoder=Gaussian(), draws=4)
    >>> [gap.difference.value for gap in report.gaps]
    [0.0]
    """
    arguments: dict[str, Any] = {
        "tolerance": tolerance, "budget": budget, "draws": draws, "replicates": replicates,
        "plan": plan, "batch": batch, "seed": seed, "progress": progress, "mask": mask,
        "absent": absent, "condition": condition, "decoder": decoder,
    }  # fmt: skip
    first, *others = paths
    gap: Callable[..., Comparison] = unchecked(compare)
    gaps = [gap(model, model, data, schedule=(path, first), **arguments) for path in others]
    return PathGap(_names(paths, data.ndim), gaps)


def _names(paths: Sequence[Schedule], ndim: int) -> list[str]:
    """The paths in words; those whose words are the same by their digests too."""
    words = [repr(path) for path in paths]
    return [
        word if words.count(word) == 1 else f"{word} {schedule_digest(path, ndim)}"
        for word, path in zip(words, paths, strict=True)
    ]


__all__ = ["PathGap", "path_gap"]

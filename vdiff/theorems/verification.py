"""Run the theorems: all of them on oracles and a small random network, or those of any network on
a user's own."""

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module

import torch

from vdiff import _html
from vdiff._arguments import Model
from vdiff._inputs import Data
from vdiff._validate import Count, validated
from vdiff.errors import InvalidType, InvalidValue, did_you_mean
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.chunks import Progress
from vdiff.theorems.subject import DRAWS, Subject
from vdiff.theorems.theorem import THEOREMS, Function, Sides, Theorem

TOPICS = {  # in reading order; the import registers the theorems
    name: import_module(f"vdiff.theorems.{name}")
    for name in (
        *("forward", "chains", "bounds", "limits", "invariance", "fields", "masks"),
        *("tokens", "weightings", "augmentation"),
        *("scores", "information", "estimators", "densities", "variances", "decoding", "training"),
        *("generation", "samplers"),
    )
}
WIDTH, NUMBERS = 80, 57  # of the table, and of the column before the verdict
NOT_OF_THE_NETWORK = (
    "These theorems hold of every function of (z, λ). They check the bound's\n"
    "arithmetic on this model, not that the network is right: that is checked by\n"
    "`vdiff verify --estimators --model`, on data whose bits are known."
)


def by_topic() -> dict[str, list[Theorem]]:
    """The theorems of each topic, in reading order."""
    return {name: [t for t in THEOREMS.values() if t.topic == name] for name in TOPICS}


@dataclass(frozen=True)
class Verdict:
    """The result of one theorem, or of one of its counterexamples (`dropped` is the hypothesis).

    >>> from vdiff.theorems.theorem import equal
    >>> sides = equal(1.0, 2.0, rel=1e-9)
    >>> verdict = Verdict("an-example", "1 = 2", sides, must_hold=False, dropped="sense")
    >>> verdict.ok, verdict.word
    (True, 'fails, as it must')
    """

    name: str
    statement: str
    sides: Sides
    must_hold: bool
    dropped: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds and should, or fails and should; never with an error, NaN or ∞."""
        return not self.error and self.sides.finite and self.sides.holds == self.must_hold

    @property
    def word(self) -> str:
        """The verdict in words, with the error if there was one."""
        if self.error:
            return f"FAILS: {self.error}"
        if self.must_hold:
            return "holds" if self.ok else "FAILS"
        return "fails, as it must" if self.ok else "HOLDS, and should not"

    def asdict(self) -> dict[str, object]:
        """As plain data; `allowed` is the largest difference that counts as equal."""
        left, right, allowed = self.sides.worst
        return {
            "name": self.name, "statement": self.statement, "without": self.dropped or None,
            "left": left, "relation": self.sides.relation, "right": right, "allowed": allowed,
            "ok": self.ok, "verdict": self.word,
        }  # fmt: skip

    def __str__(self) -> str:
        """The statement, and the numbers of the worst case with what is allowed, also in percent
        of the right side: smaller errors are not detected."""
        head = f"without: {self.dropped}" if self.dropped else f"{self.name}: {self.statement}"
        start = "  " if self.dropped else ""
        left, right, allowed = self.sides.worst
        share = f" ({100 * allowed / abs(right):.2g} %)" if right else ""
        numbers = f"{left:.6g} {self.sides.relation} {right:.6g} ± {allowed:.1e}{share}"
        result = self.word if self.error else f"{numbers:{NUMBERS - 4}}{self.word}"
        return "\n".join(
            textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent="    ")
            for text, first in ((head, start), (result, "    "))
        )


class Report(list[Verdict]):
    """Verdicts in order, printed within 80 columns; `ok` is whether all are as they must be.

    >>> report = verify(names=["tweedie"])
    >>> report.ok, len(report)
    (True, 2)
    """

    remark = ""

    @property
    def ok(self) -> bool:
        """Whether every theorem holds and every counterexample fails."""
        return all(verdict.ok for verdict in self)

    def __str__(self) -> str:
        good = f"{sum(verdict.ok for verdict in self)} of {len(self)} as they must be"
        return "\n".join([*map(str, self), good, *([self.remark] if self.remark else [])])

    def _repr_html_(self) -> str:
        rows = []
        for verdict in self:
            left, right, allowed = verdict.sides.worst
            numbers = f"{left:.6g} {verdict.sides.relation} {right:.6g}", f"{allowed:.1e}"
            name = f"without: {verdict.dropped}" if verdict.dropped else verdict.name
            rows.append((name, verdict.statement, *numbers, verdict.word))
        good = f"{sum(verdict.ok for verdict in self)} of {len(self)} as they must be"
        head = ("theorem", "statement", "both sides", "±", good)
        return _html.table(rows, head)

    def asdict(self) -> dict[str, object]:
        """As plain data: each theorem and counterexample with its worst case."""
        return {"ok": self.ok, "remark": self.remark, "verdicts": [v.asdict() for v in self]}


@validated
@torch.no_grad()
def verify(
    model: Model | None = None,
    data: Data | None = None,
    *,
    names: Iterable[str] | None = None,
    draws: Count = DRAWS,
    progress: Progress | None = None,
) -> Report:
    """Verify the theory numerically: both sides of every theorem, by different routes, in float64.

    Without a model: all theorems with their counterexamples, on data whose exact denoiser is known
    and, for those that hold of any network, on a small random network. With a model: those that
    hold of any network, on it, without counterexamples, because a hypothesis may not matter for a
    given network. A float32 network is one function of (z, λ), so the sides agree to float64
    rounding; its own reverse variance is ignored.

    Args:
        model: anything that returns a `Prediction` from (z, logsnr), for −5 ≤ λ ≤ 8. Bind a
            condition beforehand: `lambda z, logsnr: model(z, logsnr, label=...)`.
        data: (batch, …) floating data as the network sees it; the first 64 rows are used.
        names: theorems or topics to run; all by default.
        draws: evaluations of the model for each side of a sampled theorem, within a factor of 8.
            Sides that differ by less than five standard errors count as equal: the report says how
            many percent this is.
        progress: called as progress(done, total) with numbers of theorems.

    Returns:
        A `Report`, a list of `Verdict`s. A theorem that raises an error FAILS with that error.

    Raises:
        ValueError: for an unknown name, with the nearest one; with a model, for a theorem that
            does not hold of any network.
        TypeError: for a model without data, and for a model that does not return a `Prediction`.

    >>> verify(names=["schedule-invariance-of-any-network"]).ok
    True
    """
    if (model is None) != (data is None):
        given, missing = ("model", "data") if data is None else ("data", "model")
        hint = "a theorem about a network needs both"
        raise InvalidType(missing, f"come with {given}", None, hint)
    topics = {topic: [t.name for t in theorems] for topic, theorems in by_topic().items()}
    allowed = [name for theorems in topics.values() for name in theorems]
    subject = Subject(draws=draws)
    if model is not None and data is not None:
        subject = Subject.of(model, data, draws)
        allowed = [name for name in allowed if THEOREMS[name].any_network]
    chosen = _chosen(names, {**topics, **{name: [name] for name in THEOREMS}}, allowed)
    report = Report()
    with evaluating(model):
        if model is not None:  # an error of the model itself is raised here
            subject.model(subject.x, torch.zeros(len(subject.x), dtype=torch.float64))
        for done, theorem in enumerate(map(THEOREMS.__getitem__, chosen)):
            if progress is not None:
                progress(done, len(chosen))
            verdict = Verdict(theorem.name, theorem.statement, FAILED, must_hold=True)
            report.append(_tried(verdict, theorem.sides, subject))
            for dropped, sides in theorem.counterexamples.items() if model is None else ():
                verdict = replace(verdict, must_hold=False, dropped=dropped)
                report.append(_tried(verdict, sides, subject))
    report.remark = "" if model is None else NOT_OF_THE_NETWORK
    return report


FAILED = Sides(math.nan, math.nan, 0.0, "no numbers")


def _tried(verdict: Verdict, sides: Function, subject: Subject) -> Verdict:
    """The verdict with its sides, or with the error that computing them raised."""
    try:
        found = sides(subject)
        found.cases  # noqa: B018  # shapes that do not fit raise here, not in the table
    except Exception as error:
        text = " ".join(str(error).split())
        return replace(verdict, error=f"{type(error).__name__}: {text}")
    return replace(verdict, sides=found)


def _chosen(
    names: Iterable[str] | None, known: dict[str, list[str]], allowed: list[str]
) -> list[str]:
    """Names of theorems, from names of theorems and topics."""
    chosen: list[str] = []
    for name in allowed if names is None else [names] if isinstance(names, str) else names:
        if name not in known:
            what, hint = "be names of theorems or topics", did_you_mean(name, known)
            raise InvalidValue("names", what, repr(name), hint)
        found = [one for one in known[name] if one in allowed]
        if not found:
            what = "hold of any network where a model is given"
            hint = (
                f"it is about the exact denoiser: leave out the model, or choose among "
                f"{', '.join(allowed)}"
            )
            raise InvalidValue("names", what, repr(name), hint)
        chosen += found
    return list(dict.fromkeys(chosen))

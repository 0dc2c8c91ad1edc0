"""Run the theorems: every one on oracles and a small random network, or those of any network on a
user's own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff.errors import check_positive_int, did_you_mean, must
from vdiff.likelihood.integrand import evaluating
from vdiff.loss import Model
from vdiff.theorems.subject import DRAWS, Subject
from vdiff.theorems.theorem import THEOREMS, Function, Sides
from vdiff.theorems.topics import by_topic

HEAD = ("theorem", "left", "", "right", "difference", "allowed", "%", "verdict")
NOT_OF_THE_NETWORK = (
    "These theorems hold of every function of (z, λ): they check the bound's arithmetic on this model, not that the network is right.\n"
    "Whether it is, is asked by `vdiff verify --estimators --model`, of data whose bits are known."
)


@dataclass(frozen=True)
class Verdict:
    """The result of one theorem, or of one of its counterexamples (`dropped` names the
    hypothesis).

    >>> from vdiff.theorems.theorem import equal
    >>> verdict = Verdict("an-example", "1 = 2", equal(1.0, 2.0, rel=1e-9, why=""), must_hold=False, dropped="sense")
    >>> verdict.ok, str(verdict.word)
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
        """Whether it holds and should, or fails and should; never where a number is NaN or
        infinite, or none was found."""
        return not self.error and self.sides.finite and self.sides.holds == self.must_hold

    @property
    def word(self) -> str:
        """The verdict in words, with the error that came in place of numbers."""
        if self.error:
            return f"FAILS: {self.error}"
        if self.must_hold:
            return "holds" if self.ok else "FAILS"
        return "fails, as it must" if self.ok else "HOLDS, and should not"

    @property
    def row(self) -> tuple[str, ...]:
        """The columns of the table: of many cases, the one nearest to failing.

        What is allowed is also said in percent of the right side: smaller errors are not seen.
        """
        left, right, allowed = self.sides.worst
        name = f"  without: {self.dropped}" if self.dropped else self.name
        share = f"{100 * allowed / abs(right):.2g}" if right else ""
        numbers = f"{left:.6g}", self.sides.relation, f"{right:.6g}", f"{left - right:.1e}"
        return name, *numbers, f"{allowed:.1e}", share, self.word


class Report(list[Verdict]):
    """Verdicts in order, printed as a table, with a `remark` below it; `ok` says whether all are
    as they must be.

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
        rows = [HEAD, *(verdict.row for verdict in self)]
        width = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
        lines = []
        for row in rows:
            name, *numbers, word = row
            middle = "  ".join(
                text.center(w) if w == 1 else text.rjust(w)
                for text, w in zip(numbers, width[1:-1], strict=True)
            )
            lines.append(f"{name.ljust(width[0])}  {middle}  {word}")
        good = sum(verdict.ok for verdict in self)
        return "\n".join(
            [
                *lines,
                f"{good} of {len(self)} as they must be",
                *([self.remark] if self.remark else []),
            ]
        )


@torch.no_grad()
def verify(
    model: Model | None = None,
    data: Tensor | None = None,
    *,
    names: Iterable[str] | None = None,
    draws: int = DRAWS,
) -> Report:
    """Verify the theory numerically: both sides of every theorem, by different routes, in float64.

    Without a model, all theorems with their counterexamples: on data whose denoiser is known, and,
    for those that hold of any network, on a small one with random weights. With a model, those
    that hold of any network, on it, and no counterexamples: a network may be one for which a
    hypothesis does not matter. A network in float32 is one function of (z, λ) like any other, so
    that the sides agree to float64 rounding; its own reverse variance is left out.

    Args: model: anything that returns a `Prediction` from (z, logsnr); a condition is bound
        beforehand,
            `lambda z, logsnr: model(z, logsnr, label=...)`. It is asked for λ between −5 and 8.
        data: (batch, …) data as the network sees it, floating; of many rows the first 64 are used.
        names: names of theorems or topics to run; all by default. draws: evaluations of the model for each side of a sampled theorem, within a factor of 8.
            Sides that differ by less than five standard errors count as equal. The table says
            how many percent these are: smaller errors are not seen. By default they are a few.

    Returns: A `Report`, a list of `Verdict`s that prints as a table. A theorem that raises an
        error FAILS, with the error in its row.

    Raises: ValueError: for an unknown name, with the nearest one; for a theorem that does not hold
        of any network where a model
            is given.
        TypeError: for a model without data, and for what is no model.

    >>> report = verify(names=["schedule-invariance-of-any-network"])
    >>> report.ok
    True
    """
    check_positive_int("verify", "draws", draws)
    if (model is None) != (data is None):
        given = "model" if data is None else "data"
        missing = "data" if data is None else "model"
        raise TypeError(
            must(
                "verify",
                missing,
                f"come with {given}",
                None,
                "a theorem about a network needs both",
            )
        )
    topics = {topic: [t.name for t in theorems] for topic, theorems in by_topic().items()}
    ordered = [name for theorems in topics.values() for name in theorems]
    if model is None or data is None:
        subject, allowed = Subject(draws=draws), ordered
    else:
        subject, allowed = (
            Subject.of(model, data, draws),
            [name for name in ordered if THEOREMS[name].any_network],
        )
    chosen = _chosen(names, {**topics, **{name: [name] for name in THEOREMS}}, allowed)
    with evaluating(model):
        if model is not None:
            subject.model(
                subject.x, torch.zeros(len(subject.x), dtype=torch.float64)
            )  # an error of the model is no theorem's
        report = Report(
            verdict
            for name in chosen
            for verdict in _run(name, subject, counterexamples=model is None)
        )
    report.remark = "" if model is None else NOT_OF_THE_NETWORK
    return report


def _run(name: str, subject: Subject, counterexamples: bool) -> list[Verdict]:
    theorem = THEOREMS[name]
    whole: list[tuple[Function, bool, str]] = [(theorem.sides, True, "")]
    dropped: list[tuple[Function, bool, str]] = (
        [(c.sides, False, c.dropped) for c in theorem.counterexamples] if counterexamples else []
    )
    return [
        _tried(name, theorem.statement, sides, subject, must_hold, hypothesis)
        for sides, must_hold, hypothesis in whole + dropped
    ]


def _tried(
    name: str, statement: str, sides: Function, subject: Subject, must_hold: bool, hypothesis: str
) -> Verdict:
    """One verdict; an error of one theorem costs that theorem alone, and has its place in the
    table."""
    try:
        found = sides(subject)
        found.cases  # noqa: B018  # shapes that do not fit raise here, not in the table
    except Exception as error:
        return _failed(name, statement, error, must_hold, hypothesis)
    return Verdict(name, statement, found, must_hold, hypothesis)


def _failed(
    name: str, statement: str, error: Exception, must_hold: bool, hypothesis: str = ""
) -> Verdict:
    text = " ".join(str(error).split())
    return Verdict(
        name,
        statement,
        Sides(math.nan, math.nan, 0.0, ""),
        must_hold,
        hypothesis,
        f"{type(error).__name__}: {text}",
    )


def _chosen(
    names: Iterable[str] | None, known: dict[str, list[str]], allowed: list[str]
) -> list[str]:
    """Names of theorems, from names of theorems and topics."""
    if names is None:
        return allowed
    chosen = []
    for name in [names] if isinstance(names, str) else names:
        if name not in known:
            raise ValueError(
                must(
                    "verify",
                    "names",
                    "be names of theorems or topics",
                    repr(name),
                    did_you_mean(name, known),
                )
            )
        found = [one for one in known[name] if one in allowed]
        if not found:
            hint = (
                "it is about the exact denoiser: leave out the model, or choose among "
                + ", ".join(allowed)
            )
            raise ValueError(
                must(
                    "verify",
                    "names",
                    "hold of any network where a model is given",
                    repr(name),
                    hint,
                )
            )
        chosen += found
    return list(dict.fromkeys(chosen))


__all__ = ["Report", "Verdict", "verify"]

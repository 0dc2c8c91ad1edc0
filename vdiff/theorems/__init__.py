"""Theorems as data, each with both sides computed by different routes, and counterexamples
that must fail."""

from vdiff.theorems.subject import Subject
from vdiff.theorems.theorem import THEOREMS, Sides, Theorem
from vdiff.theorems.verification import Report, Verdict, verify

__all__ = ["THEOREMS", "Report", "Sides", "Subject", "Theorem", "Verdict", "verify"]

"""Theorems as tests: what must hold between schedules, parameterizations, weightings and bounds,
on asymmetric oracles."""

"""A term of a bound that counts its evaluations."""

import torch

from vdiff._diffusion import GAUSSIAN
from vdiff._partial import Partial
from vdiff.likelihood.control import Control, FittedControl
from vdiff.likelihood.integrand import Integrand
from vdiff.schedule import Linear


class Term(Integrand):
    """An integrand in one dimension whose diffusion term is a function of (image, t, ε), with
    levels λ = 4 − 8t and measure 8."""

    name, models, process = "evaluate", [None], GAUSSIAN

    def __init__(self, term, images=5, steps=None, evaluations=1):
        self.term, self.steps, self.each = term, steps, evaluations
        self.x, self.base = torch.zeros(images, 1, dtype=torch.float64), Linear(4.0, -4.0)
        self.seen, self.sides, self.part, self.dims = [], [], Partial(), 1

    @property
    def evaluations(self):
        return self.each

    def levels(self, t, drawn=None):
        return 4 - 8 * t, torch.full_like(t, 8.0)

    def __call__(self, rows, t, eps, drawn=None):
        self.seen.append((rows, t, eps))
        term = self.term(rows, t, eps[:, 0])
        return torch.stack([torch.zeros_like(term), term, torch.zeros_like(term)])

    def refuse_nonfinite(self, *_):
        pass


class Odd(Control, FittedControl):
    """ε itself, as a control."""

    def fit(self, x):
        return self

    def centered(self, rows, eps, logsnr):
        return eps[:, 0]


def flat(rows, t, eps):
    return 3 + eps

"""Fault 45 where samples are tokens."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff import sample, trajectory
from vdiff.discrete import Masked, TokenDenoiser, Uniform
from vdiff.sampling import Clipped, Counted, Tempered, ancestral, confidence, ddim
from vdiff.schedule import Linear
from vdiff.variance import FixedLarge

from .common import assert_refused
from .exact_samples import ORACLE, made


def over_tokens(masked: bool = True, fill: float = 0.0) -> TokenDenoiser:
    """Five values; the logits of tokens that have one are `fill`."""

    def network(z: Tensor) -> Tensor:
        return torch.where(z == 5, 0.0, fill)[..., None].expand(*z.shape, 5)

    return TokenDenoiser(network, Masked(5) if masked else Uniform(5))


PROMPT = {"mask": torch.tensor([True, False, False])}
DDIM = partial(ddim, eta=0.5)


@pytest.mark.parametrize(
    ("error", "argument", "words", "z", "options"),
    [
        (ValueError, "z", ("be a shape (batch, …)", "(8,)"), (8,), {}),
        (ValueError, "z", ("be a shape (batch, …)", "(8, 0)"), (8, 0), {}),
        (TypeError, "z", ("integer tokens, or their shape", "got 8 ("), 8, {}),
        (TypeError, "z", ("integer tokens, or their shape", "(8, 2.5)"), (8, 2.5), {}),
        (TypeError, "z", ("float32", "a shape draws them: (2, 3)"), torch.zeros(2, 3), {}),
        (ValueError, "z", ("lie in 0 … 5", "from 6 to 6"), torch.full((2, 3), 6), {}),
        (ValueError, "z", ("lie in 0 … 5", "from -1 to -1"), torch.full((2, 3), -1), {}),
        (ValueError, "z", ("have shape (batch, …)",), torch.zeros(3).long(), {}),
        (TypeError, "steps", ("be given",), (2, 3), {"steps": None}),
        (ValueError, "step", ("ancestral, confidence, tau_leaping; got ddim",), (2, 3),
         {"step": ddim}),
        (ValueError, "step", ("the model's process", "got ddim"), (2, 3), {"step": DDIM}),
        (TypeError, "step", ("without quotes: step=confidence",), (2, 3), {"step": "confidence"}),
        (ValueError, "differentiable", ("be False for tokens",), (2, 3), {"differentiable": True}),
        (TypeError, "given", ("come with a mask",), (2, 3), PROMPT),
        (ValueError, "given", ("lie in 0 … 4", "the mask is no value of the data"), (2, 3),
         PROMPT | {"given": torch.full((2, 3), 5)}),
        (TypeError, "given", ("be integer tokens", "given.long()"), (2, 3),
         PROMPT | {"given": torch.zeros(2, 3)}),
        (ValueError, "given", ("have the shape of z, (2, 3)", "(1, 3)"), (2, 3),
         PROMPT | {"given": torch.zeros(1, 3).long()}),
        (ValueError, "mask", ("broadcast over z, (2, 3)",), (2, 3),
         {"mask": torch.ones(4).bool(), "given": torch.zeros(2, 3).long()}),
    ],
)  # fmt: skip
def test_fault_45_tokens(
    error: type[Exception], argument: str, words: tuple[str, ...], z: Any, options: dict[str, Any]
) -> None:
    """Before any evaluation."""
    counted = Counted(over_tokens())
    for verb in (sample, trajectory):
        with assert_refused(error, verb.__name__, argument, *words):
            verb(counted, z, **{"steps": 2} | options)
    assert counted.evaluations == 0


def test_fault_45_steps_and_wrappers_of_another_process() -> None:
    words = "one of the model's process: ancestral, ddim, heun", "got confidence"
    with assert_refused(ValueError, "sample", "step", *words):
        made(step=confidence)
    with assert_refused(ValueError, "confidence", "model", "masked process", "got Uniform(5)"):
        sample(over_tokens(masked=False), (2, 3), steps=2, step=confidence)
    with assert_refused(ValueError, "ancestral", "variance", "be left out", "tokens has none"):
        sample(over_tokens(), (2, 3), steps=2, step=partial(ancestral, variance=FixedLarge()))
    with assert_refused(TypeError, "sample", "z", "be a torch.Tensor", "torch.randn(4, 2)"):
        sample(ORACLE, (4, 2), schedule=Linear(), steps=2)
    with assert_refused(ValueError, "Clipped", "model", "be Gaussian", "Tempered"):
        Clipped(over_tokens())
    with assert_refused(ValueError, "Tempered", "model", "be over tokens", "Clipped"):
        Tempered(ORACLE)
    for argument, options in ("temperature", {"temperature": -1.0}), ("top_p", {"top_p": 0.0}):
        with assert_refused(ValueError, "Tempered", argument):
            Tempered(over_tokens(), **options)


def test_fault_45_a_network_over_tokens_that_breaks() -> None:
    words = "predict a distribution", "NaN or infinity in step 2, at λ = 0"
    with assert_refused(ValueError, "sample", "model", *words):
        sample(over_tokens(fill=math.nan), (2, 30), steps=2)
    with assert_refused(ValueError, "sample", "model", "predict finite data", "the last level"):
        sample(over_tokens(fill=math.nan), (2, 30), levels=[-15.0, 15.0])

"""Faults 11 and 12: times and noise."""

import numpy as np
import pytest
import torch

from vdiff import Objective, elbo
from vdiff.decoder import Gaussian

from .common import SCHEDULE, assert_refused, batch, loss_of, model


@pytest.mark.parametrize(
    ("t", "error", "words"),
    [
        (
            torch.tensor([0.0, 0.5, 1.0, 1.5]),
            ValueError,
            "lie within [0, 1] .. values from 0 to 1.5 .. t = step / steps",
        ),
        (
            torch.tensor([-0.5, 0.5, 1.0, 1.0]),
            ValueError,
            "lie within [0, 1] .. values from -0.5 to 1",
        ),
        (
            torch.tensor([0.0, torch.nan, 1.0, torch.nan]),
            ValueError,
            "lie within [0, 1] .. got 2 NaN",
        ),
        (
            torch.tensor([0.0, torch.inf, 1.0, 1.0]),
            ValueError,
            "lie within [0, 1] .. values from 0 to inf",
        ),
        (
            torch.tensor(0.5),
            ValueError,
            "have shape (batch,) = (4,) .. () (one time for each example)",
        ),
        (
            torch.tensor([0.5]),
            ValueError,
            "have shape (batch,) = (4,) .. (1,) (one time for each example)",
        ),
        (
            torch.tensor([1, 500, 999, 3]),
            ValueError,
            "be floating .. torch.int64 .. not integer steps: t = step / steps",
        ),
        (0.5, TypeError, "be a torch.Tensor .. float .. torch.full((len(x),), 0.5)"),
    ],
    ids=["above", "below", "nan", "inf", "scalar", "one", "integer", "number"],
)
def test_fault_11_times(t: object, error: type[Exception], words: str) -> None:
    x = batch()[0]
    with assert_refused(error, "weighted_elbo", "t", words):
        loss_of(x, t=t)
    of_data = words.replace("len(x)", "len(data)")
    with assert_refused(error, "elbo", "t", of_data):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), t=t)  # type: ignore[arg-type]
    with assert_refused(error, "Objective", "t", words):
        Objective(model(), schedule=SCHEDULE)(x, t=t)


def test_fault_11_a_column_of_times() -> None:
    """It is a field of one number per example in a loss, and never a table of pairs."""
    x, t, eps = batch()
    assert torch.equal(loss_of(x, t=t[:, None], eps=eps), loss_of(x, t=t, eps=eps))
    words = "have shape (batch,) = (4,) .. (4, 1) (t.flatten())"
    with assert_refused(ValueError, "elbo", "t", words):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), t=t[:, None])
    with assert_refused(ValueError, "weighted_elbo", "t", words):
        loss_of(x[:, :, None], t=t[:, None])


def test_fault_11_times_of_a_schedule() -> None:
    words = (
        "be a floating tensor",
        "got torch.int64 (times are fractions of the way to noise, not "
        "integer steps: t = step / steps)",
    )
    for method in ("rate", "delta"):
        with assert_refused(TypeError, f"Cosine.{method}", "t", *words):
            getattr(SCHEDULE, method)(
                torch.tensor([500]), **({"steps": 10} if method == "delta" else {})
            )
    with assert_refused(TypeError, "Cosine", "t", *words):
        SCHEDULE(torch.tensor([500]))
    with assert_refused(
        TypeError, "Cosine", "t", "be a torch.Tensor", "got float (torch.as_tensor(t))"
    ):
        SCHEDULE(0.5)


@pytest.mark.parametrize(
    ("eps", "error", "words"),
    [
        (
            torch.zeros(1, 2),
            ValueError,
            "have the shape of x, (4, 2) .. (1, 2) (it would broadcast in silence)",
        ),
        (
            torch.zeros(4, 1),
            ValueError,
            "have the shape of x, (4, 2) .. (4, 1) (it would broadcast in silence)",
        ),
        (torch.zeros(2), ValueError, "have the shape of x, (4, 2) .. (2,)"),
        (torch.zeros(3, 4, 2), ValueError, "have the shape of x, (4, 2) .. (3, 4, 2)"),
        (
            torch.zeros(4, 2, dtype=torch.float64),
            ValueError,
            "have the dtype of x, torch.float32 .. torch.float64 (eps = eps.to(x.dtype)",
        ),
        (
            torch.zeros(4, 2, dtype=torch.float16),
            ValueError,
            "have the dtype of x, torch.float32 .. torch.float16",
        ),
        (
            torch.zeros(4, 2, dtype=torch.long),
            ValueError,
            "have the dtype of x, torch.float32 .. torch.int64",
        ),
        (np.zeros((4, 2)), TypeError, "be a torch.Tensor .. ndarray"),
    ],
    ids=["one", "column", "row", "more", "wider", "narrower", "integer", "numpy"],
)
def test_fault_12_noise(eps: object, error: type[Exception], words: str) -> None:
    x = batch()[0]
    with assert_refused(error, "weighted_elbo", "eps", words):
        loss_of(x, eps=eps)
    of_data = words.replace("of x", "of data").replace("x.dtype", "data.dtype")
    with assert_refused(error, "elbo", "eps", of_data):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), eps=eps)  # type: ignore[arg-type]

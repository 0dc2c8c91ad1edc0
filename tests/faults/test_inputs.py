"""Faults 1 to 5, 13 to 15 and 77: values and types of data. (3, a warning for continuous data
outside [−1, 1], is the evaluation's.)"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from registry import TARGETS
from torch import Tensor

from vdiff import elbo, weighted_elbo
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.parameterization import V

from .common import (
    SCHEDULE,
    Net,
    assert_refused,
    assert_refused_with,
    assert_same,
    batch,
    loss_of,
    model,
)


@pytest.mark.parametrize(("value", "count"), [(float("nan"), 3), (float("inf"), 1)])
def test_fault_01_data_that_is_not_finite(value: float, count: int) -> None:
    x = batch()[0]
    x.view(-1)[2 : 2 + count] = value
    with (
        torch.no_grad(),
        assert_refused(
            ValueError,
            "Gaussian.encode",
            "data",
            "be finite",
            f"got {count} NaN or infinite values, the first at index (1, 0)",
        ),
    ):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian())
    with (
        torch.inference_mode(),
        assert_refused(ValueError, "Gaussian.encode", "data", "be finite"),
    ):
        Gaussian().encode(x)


def test_fault_01_training_reads_no_values() -> None:
    """In the hot path NaN goes through, to the loss of its own example alone."""
    x, t, eps = batch()
    clean = loss_of(x, t=t, eps=eps)
    x[1, 0] = torch.nan
    loss = loss_of(x, t=t, eps=eps)
    assert loss.isnan().tolist() == [False, True, False, False]
    assert_same(loss[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_fault_02_integer_data(dtype: torch.dtype) -> None:
    levels = torch.ones(4, 2, dtype=dtype)
    with assert_refused(
        TypeError,
        "weighted_elbo",
        "x",
        "be real and floating",
        f"got {dtype} (encode first: a discrete decoder does it",
        "Categorical(levels=256).encode(data)",
    ):
        loss_of(levels)
    with assert_refused(TypeError, "Gaussian.encode", "data", "floating", str(dtype)):
        elbo(model(), levels, schedule=SCHEDULE, decoder=Gaussian())


@pytest.mark.parametrize(
    "decoder",
    [Categorical(17), DiscretizedGaussian(17), Categorical(17, prior=torch.zeros(17))],
    ids=repr,
)
@pytest.mark.parametrize(("low", "high"), [(0, 17), (-1, 16), (0, 255)])
def test_fault_03_levels_out_of_range(
    decoder: Categorical | DiscretizedGaussian, low: int, high: int
) -> None:
    data = torch.tensor([[low, high]])
    name = type(decoder).__name__
    hint = "; bytes have levels=256" if high > 16 else ""
    words = (
        "lie in 0 … 16",
        f"got values from {low} to {high} (values are not on the 17-level grid{hint})",
    )
    with assert_refused(ValueError, f"{name}.encode", "data", *words):
        elbo(model(), data, schedule=SCHEDULE, decoder=decoder)
    with assert_refused(ValueError, f"{name}.log_prob", "data", *words):
        decoder.log_prob(data, torch.zeros(1, 2), 5.0)
    with assert_refused(ValueError, "Categorical.fit", "data", *words):
        Categorical.fit(data, 17)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_fault_04_half_precision_data_is_computed_in_float32(
    dtype: torch.dtype, row: object
) -> None:
    x, t, eps = batch()
    half = x.to(dtype)
    options = {"schedule": SCHEDULE, "t": t}
    loss = weighted_elbo(model(row), half, eps=eps, **options)  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, weighted_elbo(model(row), half.float(), eps=eps, **options))  # type: ignore[arg-type]
    assert torch.equal(  # noise in the precision of x is taken too
        weighted_elbo(model(row), half, eps=eps.to(dtype), **options),  # type: ignore[arg-type]
        weighted_elbo(model(row), half.float(), eps=eps.to(dtype).float(), **options),  # type: ignore[arg-type]
    )
    assert loss_of(half).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            torch.ones(4, 2, dtype=torch.complex64),
            "be real and floating .. torch.complex64 .. torch.view_as_real(x)",
        ),
        (
            torch.ones(4, 2, dtype=torch.bool),
            "be real and floating .. torch.bool .. Categorical(levels=2) takes x.long()",
        ),
        (torch.ones(4, 2).to_sparse(), "be dense .. torch.sparse_coo .. .to_dense()"),
        (np.ones((4, 2)), "be a torch.Tensor .. ndarray"),
        ([[1.0, 2.0]], "be a torch.Tensor .. list"),
    ],
    ids=["complex", "bool", "sparse", "numpy", "list"],
)
def test_fault_05_what_is_no_dense_real_tensor(x: object, words: str) -> None:
    with assert_refused(TypeError, "weighted_elbo", "x", words):
        loss_of(x)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            torch.ones(4, 2, dtype=torch.bool),
            "be integer levels, 0 to 16 .. torch.bool .. data.long()",
        ),
        (torch.ones(4, 2, dtype=torch.complex64), "be integer levels, 0 to 16 .. torch.complex64"),
        (torch.ones(4, 2, dtype=torch.long).to_sparse(), "be dense .. torch.sparse_coo"),
        (np.ones((4, 2), dtype=np.int64), "be a torch.Tensor .. ndarray"),
    ],
    ids=["bool", "complex", "sparse", "numpy"],
)
def test_fault_05_what_are_no_levels(data: object, words: str) -> None:
    with assert_refused(TypeError, ("elbo", "Categorical.encode"), "data", words):
        elbo(model(), data, schedule=SCHEDULE, decoder=Categorical(17))  # type: ignore[arg-type]


def test_fault_13_digits_taken_for_bytes_and_bytes_for_digits() -> None:
    images = torch.tensor([[0, 255]], dtype=torch.uint8)
    with assert_refused_with(
        ValueError,
        "Categorical.encode: data must lie in 0 … 16 .. values from 0 to 255 (values are not on "
        "the 17-level grid; bytes have levels=256)",
    ):
        elbo(model(), images, schedule=SCHEDULE, decoder=Categorical(17))
    for levels in (1, 0):
        words = "be at least 2", "256 for bytes, 17 for scikit-learn's digits"
        with assert_refused(ValueError, "Categorical", "levels", *words):
            Categorical(levels)
    for levels in (17.0, True, "17"):
        with assert_refused(TypeError, "Categorical", "levels", "be a Python int"):
            Categorical(levels)  # type: ignore[arg-type]
    with assert_refused(
        ValueError, "Categorical", "prior", "have shape (…, levels) = (…, 17)", "(256,)"
    ):
        Categorical(17, prior=torch.zeros(256))
    with assert_refused_with(
        ValueError,
        "Categorical.expected_nll: prior must have shape (levels,) or (2, "
        "17), as the data has .. (3, 17)",
    ):
        elbo(
            model(),
            torch.zeros(4, 2, dtype=torch.long),
            schedule=SCHEDULE,
            decoder=Categorical(17, prior=torch.zeros(3, 17)),
        )


@pytest.mark.parametrize("decoder", [Categorical(17), DiscretizedGaussian(17)], ids=repr)
def test_fault_14_dequantised_data_with_a_discrete_decoder(
    decoder: Categorical | DiscretizedGaussian,
) -> None:
    data = torch.randint(0, 17, (4, 2)) + torch.rand(4, 2)
    name = type(decoder).__name__
    words = (
        "be integer levels, 0 to 16",
        "torch.float32 (pixels in [0, 1] are (x * 16).round().long(); dequantised or "
        "scaled data needs a Gaussian decoder",
    )
    with assert_refused(TypeError, f"{name}.encode", "data", *words):
        elbo(model(), data, schedule=SCHEDULE, decoder=decoder)
    with assert_refused(TypeError, f"{name}.log_prob", "data", *words):
        decoder.log_prob(data, data, 5.0)
    with assert_refused(TypeError, f"{name}.expected_nll", "data", *words):
        decoder.expected_nll(data, 5.0)
    with assert_refused(TypeError, "Categorical.fit", "data", *words):
        Categorical.fit(data, 17)


def test_fault_14_a_mean_that_would_broadcast() -> None:
    levels, x = torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 2)
    for decoder, data in (
        (Categorical(17), levels),
        (DiscretizedGaussian(17), levels),
        (Gaussian(), x),
    ):
        with assert_refused(
            ValueError,
            f"{type(decoder).__name__}.log_prob",
            "mean",
            "have the shape of data, (4, 2)",
            "(4, 1) (it would broadcast in silence)",
        ):
            decoder.log_prob(data, torch.zeros(4, 1), 5.0)


def test_fault_77_python_without_asserts_checks_as_well() -> None:
    code = (
        "import torch, vdiff\n"
        "try:\n"
        "    vdiff.weighted_elbo(vdiff.Denoiser(lambda z, time: z[:, :1], "
        "vdiff.parameterization.V()), torch.zeros(4, 2), schedule=vdiff.schedule.Cosine())\n"
        "except ValueError as error:\n"
        "    print(__debug__, error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.startswith(
        "False Denoiser: argument 'network' must return the shape of z, (4, 2); got (4, "
        "1) (it would broadcast in silence)"
    )


def test_fault_15_class_labels_reach_the_network_and_its_own_refusal_the_user() -> None:
    class Labeled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(10, 2)

        def forward(self, z: Tensor, time: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(z + self.embedding(label), time)

    denoiser = type(model())(Labeled(), V())
    x, t, eps = batch()
    loss = [
        weighted_elbo(
            denoiser, x, schedule=SCHEDULE, t=t, eps=eps, condition={"label": torch.full((4,), k)}
        )
        for k in (0, 9)
    ]
    assert (loss[0] != loss[1]).all()
    for label in (10, -1):
        with pytest.raises(IndexError):
            weighted_elbo(
                denoiser,
                x,
                schedule=SCHEDULE,
                t=t,
                eps=eps,
                condition={"label": torch.full((4,), label)},
            )

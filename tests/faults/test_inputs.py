"""Faults 1 to 15: data, times and noise. (3, a warning for continuous data outside [−1, 1], is the
evaluation's.)"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from registry import TARGETS
from torch import Tensor

from vdiff import Objective, elbo, weighted_elbo
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.parameterization import V
from vdiff.schedule import LearnedLinear
from vdiff.times import stratified
from vdiff.weighting import Sigmoid

from .common import SCHEDULE, Net, assert_refused, assert_refused_with, assert_same, batch, model


def loss_of(x: object, **options: object) -> Tensor:
    return weighted_elbo(model(), x, schedule=SCHEDULE, **options)  # type: ignore[arg-type]


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


def test_fault_06_empty_batch() -> None:
    with assert_refused_with(
        ValueError,
        "weighted_elbo: x must hold at least one example .. shape (0, 2) "
        "(an empty batch has no mean)",
    ):
        loss_of(torch.zeros(0, 2))
    with assert_refused(
        ValueError, "Categorical.encode", "data", "hold at least one example", "shape (0, 2)"
    ):
        elbo(
            model(),
            torch.zeros(0, 2, dtype=torch.long),
            schedule=SCHEDULE,
            decoder=Categorical(17),
        )
    with assert_refused(ValueError, "Gaussian.encode", "data", "hold at least one example"):
        elbo(model(), torch.zeros(0, 2), schedule=SCHEDULE, decoder=Gaussian())
    with assert_refused(ValueError, "stratified", "batch", "be at least 1"):
        stratified(0)


def test_fault_07_a_batch_of_one() -> None:
    x, t, eps = batch()
    whole = loss_of(x, t=t, eps=eps)
    alone = torch.cat(
        [loss_of(x[i : i + 1], t=t[i : i + 1], eps=eps[i : i + 1]) for i in range(len(x))]
    )
    assert_same(alone, whole)
    drawn = torch.cat(
        [stratified(1, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    )
    assert 0 <= drawn.min() < 0.02  # one stratum is the whole interval
    assert 0.98 < drawn.max() < 1
    assert abs(drawn.mean().item() - 0.5) < 4 / (12 * 400) ** 0.5
    assert torch.equal(
        loss_of(x[:1], generator=torch.Generator().manual_seed(3)),
        loss_of(x[:1], generator=torch.Generator().manual_seed(3)),
    )


@pytest.mark.parametrize("shape", [(), (3,)])
def test_fault_08_no_batch_dimension(shape: tuple[int, ...]) -> None:
    words = (
        "have shape (batch, …) with one dimension or more behind the batch",
        f"got {shape}",
        "x[None]",
        "x[:, None]",
    )
    with assert_refused(ValueError, "weighted_elbo", "x", *words):
        loss_of(torch.zeros(shape))
    with assert_refused(ValueError, "Categorical.encode", "data", *words[:2]):
        elbo(
            model(),
            torch.zeros(shape, dtype=torch.long),
            schedule=SCHEDULE,
            decoder=Categorical(17),
        )


@pytest.mark.parametrize("shape", [(3, 24), (3, 24, 1), (3, 2, 12), (3, 2, 3, 4), (3, 2, 2, 3, 2)])
def test_fault_08_any_shape_behind_the_batch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(3, 24, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.9])
    levels = torch.randint(0, 17, (3, 24), generator=generator)
    net = lambda z, time: z.tanh() * (1 + 0.1 * time.view(-1, *(1 for _ in z.shape[1:])))  # noqa: E731
    for row in TARGETS.values():
        denoiser = type(model())(net, row)
        flat = weighted_elbo(denoiser, x, schedule=SCHEDULE, weighting=Sigmoid(), t=t, eps=eps)
        assert_same(
            weighted_elbo(
                denoiser,
                x.view(shape),
                schedule=SCHEDULE,
                weighting=Sigmoid(),
                t=t,
                eps=eps.view(shape),
            ),
            flat,
        )
    for decoder in (Categorical(17), DiscretizedGaussian(17)):
        flat = elbo(denoiser, levels, schedule=SCHEDULE, decoder=decoder, t=t, eps=eps).total
        assert_same(
            elbo(
                denoiser,
                levels.view(shape),
                schedule=SCHEDULE,
                decoder=decoder,
                t=t,
                eps=eps.view(shape),
            ).total,
            flat,
        )


def layouts() -> dict[str, Tensor]:
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return {
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": torch.stack([x, x + 1], -1)[..., 0],
        "expanded": x[:1].expand(4, 3, 2, 2),
        "requires_grad": x.clone().requires_grad_(),
        "flipped": x.flip(3),
    }


@pytest.mark.parametrize("layout", list(layouts()))
def test_fault_09_any_memory_layout(layout: str) -> None:
    x = layouts()[layout]
    kept, version = x.detach().clone(), x._version
    eps, t = (
        torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.1, 0.4, 0.6, 0.9]),
    )
    net = lambda z, time: z.tanh() * time[:, None, None, None].tanh()  # noqa: E731
    for row in TARGETS.values():
        denoiser = type(model())(net, row)
        loss = weighted_elbo(denoiser, x, schedule=SCHEDULE, t=t, eps=eps)
        assert_same(
            loss,
            weighted_elbo(
                denoiser, kept.contiguous(), schedule=SCHEDULE, t=t, eps=eps.contiguous()
            ),
        )
    assert_same(
        elbo(denoiser, x, schedule=SCHEDULE, decoder=Gaussian(), t=t, eps=eps).total,
        elbo(denoiser, kept, schedule=SCHEDULE, decoder=Gaussian(), t=t, eps=eps).total,
    )
    assert x._version == version
    assert torch.equal(x.detach(), kept)


def test_fault_09_a_gradient_reaches_x() -> None:
    x, t, eps = batch(dtype=torch.float64)
    x.requires_grad_()
    net = model().double()
    (slope,) = torch.autograd.grad(weighted_elbo(net, x, schedule=SCHEDULE, t=t, eps=eps).sum(), x)
    step = torch.zeros_like(x)
    step[2, 1] = 1e-6
    with torch.no_grad():
        up, down = (
            weighted_elbo(net, x + sign * step, schedule=SCHEDULE, t=t, eps=eps).sum()
            for sign in (1, -1)
        )
    assert slope[2, 1].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-6)


def test_fault_10_different_devices() -> None:
    x, t, eps = batch()
    with assert_refused_with(
        ValueError,
        "weighted_elbo: eps must be on the device of x, cpu .. got meta (eps = eps.to(x.device))",
    ):
        loss_of(x, eps=eps.to("meta"))
    with assert_refused_with(
        ValueError,
        "weighted_elbo: t must be on the device of x, cpu .. got meta (t = t.to(x.device))",
    ):
        loss_of(x, t=t.to("meta"))
    with assert_refused(
        ValueError, "weighted_elbo", "t", "be on the device of x, meta", "got cpu"
    ):
        loss_of(x.to("meta"), t=t)
    with assert_refused(ValueError, "elbo", "eps", "be on the device of data, cpu", "got meta"):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), eps=eps.to("meta"))
    with assert_refused_with(
        ValueError,
        "weighted_elbo: generator must be on the device of x, meta .. got "
        "cpu (torch.Generator(x.device))",
    ):
        loss_of(x.to("meta"), generator=torch.Generator())
    with assert_refused(TypeError, "weighted_elbo", "generator", "be a torch.Generator", "got 3"):
        loss_of(x, generator=3)


def test_fault_10_everything_is_made_on_the_device_of_x() -> None:
    """On the meta device an operation that mixes devices raises, so this is a GPU's test of
    placement on a CPU."""
    x = torch.zeros(4, 2, device="meta")
    for row in TARGETS.values():
        assert (
            weighted_elbo(
                model(row).to("meta"), x, schedule=SCHEDULE, weighting=Sigmoid()
            ).device.type
            == "meta"
        )
        assert (
            weighted_elbo(
                model(row).to("meta"), x, schedule=SCHEDULE, steps=10, t=x[:, 0]
            ).device.type
            == "meta"
        )
    levels = torch.zeros(4, 2, dtype=torch.long, device="meta")
    for decoder in (
        Categorical(17),
        Categorical(17, prior=torch.zeros(17)),
        Categorical(17, prior=torch.zeros(2, 17)),
        DiscretizedGaussian(17),
        DiscretizedGaussian(17, uses_network=True),
    ):
        for schedule in (SCHEDULE, LearnedLinear()):
            bound = elbo(
                model().to("meta"),
                levels,
                schedule=schedule.to("meta"),
                decoder=decoder.to("meta"),
            )
            assert {
                v.device.type for v in (bound.prior, bound.diffusion, bound.reconstruction)
            } == {"meta"}
    assert (
        elbo(
            model().to("meta"), x, schedule=SCHEDULE, decoder=Gaussian(uses_network=True)
        ).total.device.type
        == "meta"
    )


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

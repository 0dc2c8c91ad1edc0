"""Faults 33 to 37, 41 and 44: what users do to a loss, as far as a CPU goes. Each must agree with
the plain eager call."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from registry import DECODERS, TARGETS
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from vdiff import Denoiser, Objective, Prediction, elbo, weighted_elbo
from vdiff.decoder import Categorical, Decoder
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import V
from vdiff.schedule import LearnedLinear, Linear
from vdiff.weighting import MSE, Sigmoid

from .common import SCHEDULE, Net, assert_refused, assert_same, batch, data_of, gradients, model
from .compiled import CASES as COMPILED
from .losses import objectives

# torch's own forward mode loads torch.jit, with a warning that is none of ours
torch_jit = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning"
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_fault_33_autocast(dtype: torch.dtype, row: object) -> None:
    x, t, eps = batch(256)
    seen = []

    class Recorder(Denoiser):
        def forward(self, z: Tensor, logsnr: Tensor, **condition: object) -> Prediction:
            seen.append((z.dtype, logsnr.dtype))
            return super().forward(z, logsnr, **condition)

    denoiser = Recorder(Net(), row)  # type: ignore[arg-type]
    denoiser.network.last.register_forward_hook(
        lambda module, args, out: seen.append((out.dtype, denoiser.network.told))
    )  # type: ignore[union-attr]
    # a target in units of its own error: no weight makes one example all of the mean
    loss = [
        weighted_elbo(denoiser, x, schedule=SCHEDULE, weighting=MSE(SCHEDULE, row), t=t, eps=eps)
    ]  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=dtype):
        loss.append(
            weighted_elbo(
                denoiser, x, schedule=SCHEDULE, weighting=MSE(SCHEDULE, row), t=t, eps=eps
            )
        )  # type: ignore[arg-type]
    assert seen == [
        (torch.float32, torch.float64),
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (dtype, torch.float32),
    ]
    assert loss[1].dtype == torch.float32
    assert_same(
        loss[1].mean(), loss[0].mean(), rtol=2.0**-6 if dtype == torch.bfloat16 else 2.0**-9
    )


@pytest.mark.parametrize("make", DECODERS.values(), ids=DECODERS)
def test_fault_33_autocast_leaves_the_bound_but_for_the_network(
    make: Callable[[], Decoder],
) -> None:
    decoder = make()
    data, (_, t, eps) = data_of(decoder), batch()
    schedule = Linear(3.0, -5.0)  # so noisy at the clean end that the reconstruction is not zero
    plain = elbo(
        model(),
        data,
        schedule=schedule,
        decoder=decoder,
        t=t,
        eps=eps,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = elbo(
            model(),
            data,
            schedule=schedule,
            decoder=make(),
            t=t,
            eps=eps,
            generator=torch.Generator().manual_seed(0),
        )
    assert torch.equal(cast.prior, plain.prior)
    assert {cast.prior.dtype, cast.diffusion.dtype, cast.reconstruction.dtype} == {torch.float32}
    if decoder.uses_network:
        assert_same(cast.reconstruction, plain.reconstruction, rtol=2.0**-6)
    else:
        assert torch.equal(cast.reconstruction, plain.reconstruction)


@pytest.fixture(scope="module")
def compiled() -> dict[str, str]:
    """What went wrong with each compiled case, in an interpreter of its own: a shape checker's
    wrappers do not compile."""
    out = subprocess.run(
        [sys.executable, "-m", "faults.compiled"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.parametrize("case", list(COMPILED))
def test_fault_34_compile(case: str, compiled: dict[str, str]) -> None:
    assert compiled[case] == "", compiled[case]


@pytest.mark.parametrize("name", list(objectives()))
def test_fault_35_gradients_per_example(name: str) -> None:
    objective, data = objectives()[name]
    _, t, eps = batch()
    parameters = {k: p.detach() for k, p in objective.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return functional_call(
            objective, parameters, (x[None],), {"t": t[None], "eps": eps[None]}
        )[0]

    together = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, data, t, eps)
    for i in range(len(data)):
        alone = gradients(
            objective,
            lambda i=i: objective(data[i : i + 1], t=t[i : i + 1], eps=eps[i : i + 1])[0],
        )  # type: ignore[misc]
        for k, g in alone.items():
            assert_same(together[k][i], g, rtol=1e-4, atol=1e-5 * g.abs().max().item())


def test_fault_35_drawn_under_vmap() -> None:
    """A thousand single examples, each with its own time and noise, against as many in one
    stratified batch."""
    n, x = 4096, batch(1)[0]
    objective = Objective(model(), schedule=SCHEDULE, loss=Weighted(Sigmoid()))
    torch.manual_seed(0)
    with torch.no_grad():
        apart = vmap(lambda x: objective(x[None])[0], randomness="different")(x.expand(n, 2))
        together = objective(x.expand(n, 2))
    spread = (apart.var() / n + together.var() / n).sqrt()
    assert (apart.mean() - together.mean()).abs() < 4 * spread
    assert len(apart.unique()) > 0.99 * n


def test_fault_35_values_are_still_checked_where_they_can_be_read() -> None:
    x, t, eps = batch()
    objective = Objective(model(), schedule=SCHEDULE)
    with assert_refused(ValueError, "Objective", "t", "lie within [0, 1]"):
        grad(lambda x: objective(x, t=t + 1, eps=eps).sum())(x)
    with assert_refused(ValueError, "Objective", "t", "lie within [0, 1]"):
        vmap(lambda eps: objective(x, t=t + 1, eps=eps))(eps[None])
    with assert_refused(ValueError, "Objective", "eps", "have the shape of x"):  # shapes always
        vmap(lambda eps: objective(x, t=t, eps=eps[:1]))(eps[None])


@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_fault_36_second_derivatives(row: object) -> None:
    x, t, eps = batch(2, dtype=torch.float64)
    objective = Objective(model(row).double(), schedule=SCHEDULE, loss=Weighted(Sigmoid()))  # type: ignore[arg-type]
    names = [name for name, _ in objective.named_parameters()]

    def loss(x: Tensor, eps: Tensor, *values: Tensor) -> Tensor:
        return functional_call(
            objective, dict(zip(names, values, strict=True)), (x,), {"t": t, "eps": eps}
        )

    inputs = tuple(v.detach().requires_grad_() for v in (x, eps, *objective.parameters()))
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("steps", [None, 10])
def test_fault_36_second_derivatives_of_learned_ends(steps: int | None) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        _, t, eps = batch(2, dtype=torch.float64)
        objective = Objective(
            model().double(),
            schedule=LearnedLinear(5.0, -3.0),
            loss=VLB(Categorical(17), steps=steps),
        )
        data = data_of(Categorical(17), 2)

        def loss(low: Tensor, high: Tensor) -> Tensor:
            return functional_call(
                objective,
                {"schedule.low": low, "schedule.high": high},
                (data,),
                {"t": t, "eps": eps},
            )

        ends = tuple(v.detach().clone().requires_grad_() for v in objective.schedule.parameters())
        assert torch.autograd.gradcheck(loss, ends)
        assert torch.autograd.gradgradcheck(loss, ends)
    finally:
        torch.set_default_dtype(torch.float32)


@torch_jit
@pytest.mark.parametrize("row", TARGETS.values(), ids=TARGETS)
def test_fault_37_forward_mode(row: object) -> None:
    x, t, eps = batch(dtype=torch.float64)
    net = model(row).double()  # type: ignore[arg-type]

    def loss(x: Tensor) -> Tensor:
        return weighted_elbo(net, x, schedule=SCHEDULE, weighting=Sigmoid(), t=t, eps=eps)

    value, slope = torch.func.jvp(loss, (x,), (eps,))
    assert_same(value, loss(x), rtol=1e-12)
    assert_same(
        slope, (torch.func.vjp(loss, x)[1](torch.ones_like(value))[0] * eps).sum(1), rtol=1e-9
    )


@torch_jit
def test_fault_37_the_trace_that_a_likelihood_needs() -> None:
    """Σ_i ∂ε̂_i/∂z_i by forward mode, against central differences."""
    z, t, _ = batch(dtype=torch.float64)
    net, logsnr = model().double(), SCHEDULE(t)
    basis = [torch.eye(2, dtype=torch.float64)[i].expand_as(z) for i in range(2)]
    trace = sum(
        torch.func.jvp(lambda z: net(z, logsnr).eps, (z,), (e,))[1][:, i]
        for i, e in enumerate(basis)
    )
    with torch.no_grad():
        difference = sum(
            (net(z + 1e-5 * e, logsnr).eps - net(z - 1e-5 * e, logsnr).eps)[:, i] / 2e-5
            for i, e in enumerate(basis)
        )
    assert_same(trace, difference, rtol=1e-8)  # type: ignore[arg-type]


def test_fault_41_gradient_checkpointing_keeps_noise_and_dropout() -> None:
    plain, saving = model(dropout=0.5), model(dropout=0.5)
    network = saving.network

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return checkpoint(self.inner, z, time, use_reentrant=False)  # type: ignore[no-any-return]

    saving = Denoiser(Saving(), V())
    x = batch(64)[0]

    def loss(denoiser: Denoiser) -> Tensor:
        torch.manual_seed(11)
        return weighted_elbo(denoiser, x, schedule=SCHEDULE).mean()

    assert torch.equal(loss(saving), loss(plain))
    got, expected = (
        gradients(network, lambda: loss(saving)),
        gradients(plain.network, lambda: loss(plain)),
    )
    assert all(torch.equal(got[k], expected[k]) for k in expected)


@pytest.mark.parametrize("name", list(objectives()))
def test_fault_44_deterministic_algorithms(name: str) -> None:
    objective, data = objectives()[name]

    def run() -> dict[str, Tensor]:
        torch.manual_seed(2)
        return gradients(objective, lambda: objective(data).mean())

    free = run()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[k], second[k]) for k in free)
    assert all(torch.equal(first[k], free[k]) for k in free)

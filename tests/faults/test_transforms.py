"""Faults 33 to 44: what users do to a loss, as far as a CPU goes. Each must agree with the plain
eager call."""

import copy
import io
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from registry import DECODERS, SCHEDULES, TARGETS, WEIGHTINGS, made_of
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vdiff import Denoiser, Objective, Prediction, elbo, weighted_elbo
from vdiff._precision import float64_for, keep_dtype, to_float64
from vdiff.decoder import Categorical, Decoder, Gaussian
from vdiff.groups import parameter_groups
from vdiff.objective import VLB, Weighted
from vdiff.parameterization import V
from vdiff.schedule import Adaptive, LearnedLinear, Linear, Spline
from vdiff.training import all_reduce
from vdiff.weighting import MSE, Sigmoid

from .common import (
    SCHEDULE,
    Net,
    assert_refused,
    assert_refused_with,
    assert_same,
    batch,
    data_of,
    gradients,
    model,
)
from .compiled import CASES as COMPILED

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


def objectives() -> dict[str, tuple[Objective, Tensor]]:
    weighted = {
        name: (Objective(model(row), schedule=SCHEDULE, loss=Weighted(Sigmoid())), batch()[0])
        for name, row in TARGETS.items()
    }
    bounds = {
        name: (Objective(model(), schedule=Linear(), loss=VLB(make())), data_of(make()))
        for name, make in DECODERS.items()
        if not make().uses_network
    }
    learned = {
        "learned": (
            Objective(model(), schedule=LearnedLinear(), loss=VLB(Categorical(17))),
            data_of(Categorical(17)),
        )
    }
    return {
        **weighted,
        **bounds,
        **learned,
        "chain": (Objective(model(), schedule=SCHEDULE, loss=Weighted(steps=10)), batch()[0]),
    }


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


def parts() -> dict[str, tuple[nn.Module, Callable[[nn.Module], Tensor]]]:
    t, logsnr = (
        torch.linspace(0.05, 0.95, 7, dtype=torch.float64),
        torch.linspace(-9, 9, 7, dtype=torch.float64),
    )
    schedules = {
        f"schedule {name}": (
            make(),
            lambda m: torch.cat(
                [m(t), m.rate(t), m.density(logsnr), m.inverse(logsnr, clamp=True)]
            ),
        )
        for name, make in made_of(SCHEDULES).items()
    }
    weightings = {
        f"weighting {name}": (make(), lambda m: m(logsnr)) for name, make in WEIGHTINGS.items()
    }
    decoders = {
        f"decoder {name}": (make(), lambda m: m.log_prob(data_of(m), batch()[0], 5.0))
        for name, make in DECODERS.items()
    }
    _, times, eps = batch()
    whole = {
        f"objective {name}": (objective, lambda m, data=data: m(data, t=times, eps=eps))
        for name, (objective, data) in objectives().items()
    }
    return {**schedules, **weightings, **decoders, **whole}


@pytest.mark.parametrize("name", list(parts()))
def test_fault_38_copies_pickles_and_moves(name: str) -> None:
    module, value = parts()[name]
    before = value(module)
    assert torch.equal(value(copy.deepcopy(module)), before)
    assert torch.equal(value(pickle.loads(pickle.dumps(module))), before)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(value(torch.load(file, weights_only=False)), before)
    assert torch.equal(value(module.to("cpu")), before)
    assert torch.equal(value(module.eval()), before)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    moved = copy.deepcopy(module).to("meta")
    assert {v.device.type for v in moved.state_dict().values()} <= {"meta"}
    back = moved.to_empty(device="cpu")
    back.load_state_dict(state, strict=True)
    assert torch.equal(value(back), before)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_fault_38_half_precision_is_for_the_network_alone(cast: torch.dtype) -> None:
    for name, (module, value) in parts().items():
        before = value(module)
        after = value(copy.deepcopy(module).to(cast))
        if name.startswith("objective"):
            assert after.dtype == torch.float32
            assert_same(after.mean(), before.mean(), rtol=0.1)
        else:
            assert torch.equal(after, before), name


def test_fault_38_a_state_dict_is_strict_and_a_loaded_prior_counts() -> None:
    data, x = data_of(Categorical(17)), batch()[0]
    fitted = Categorical.fit(data, 17)
    other = Categorical(17, prior=torch.zeros(2, 17))
    before = other.expected_nll(data, 5.0)
    other.load_state_dict(fitted.state_dict(), strict=True)
    assert torch.equal(other.expected_nll(data, 5.0), fitted.expected_nll(data, 5.0))
    assert (other.expected_nll(data, 5.0) != before).any()
    with pytest.raises(RuntimeError, match="prior"):
        Categorical(17).load_state_dict(fitted.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"schedule\.low"):
        Objective(model(), schedule=SCHEDULE).load_state_dict(
            Objective(model(), schedule=LearnedLinear()).state_dict(), strict=True
        )
    learned = Objective(model(), schedule=LearnedLinear(12.0, -4.0))
    restored = Objective(model(), schedule=LearnedLinear())
    restored.load_state_dict(learned.state_dict(), strict=True)
    _, t, eps = batch()
    assert torch.equal(restored(x, t=t, eps=eps), learned(x, t=t, eps=eps))
    assert restored.schedule.logsnr_max == learned.schedule.logsnr_max


def test_fault_38_built_on_the_meta_device() -> None:
    x, t, eps = batch()
    data = data_of(Categorical(17))
    weightings = itertools.cycle(WEIGHTINGS.values())
    pairs = list(zip(made_of(SCHEDULES).values(), weightings, strict=False))
    with torch.device("meta"):
        deferred = [
            Objective(
                Denoiser(nn.Identity(), V()), schedule=make(), loss=Weighted(w(), steps=w().steps)
            )
            for make, w in pairs
        ]
        bound = Objective(
            Denoiser(nn.Identity(), V()), schedule=LearnedLinear(), loss=VLB(Categorical(17))
        )
    for objective, (make, w) in zip(deferred, pairs, strict=True):
        if next(objective.schedule.parameters(), None) is None:
            direct = Objective(
                Denoiser(nn.Identity(), V()), schedule=make(), loss=Weighted(w(), steps=w().steps)
            )
            objective.model.network = direct.model.network = TwoArguments()
            assert torch.equal(objective(x, t=t, eps=eps), direct(x, t=t, eps=eps))
    assert bound.schedule.low.device.type == "meta"
    filled = bound.to_empty(device="cpu")
    filled.load_state_dict(
        Objective(
            Denoiser(nn.Identity(), V()), schedule=LearnedLinear(), loss=VLB(Categorical(17))
        ).state_dict()
    )
    filled.model.network = TwoArguments()
    assert torch.equal(
        filled(data, t=t, eps=eps),
        elbo(
            Denoiser(TwoArguments(), V()),
            data,
            schedule=LearnedLinear(),
            decoder=Categorical(17),
            t=t,
            eps=eps,
        ).total,
    )


class TwoArguments(nn.Module):
    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return z.tanh()


@pytest.mark.parametrize("name", list(objectives()))
def test_fault_39_inference_tensors(name: str) -> None:
    objective, data = objectives()[name]
    _, t, eps = batch()
    expected = gradients(objective, lambda: objective(data, t=t, eps=eps).mean())
    fresh, _ = objectives()[name]
    with torch.inference_mode():
        inputs = data.clone(), t.clone(), eps.clone()
        inside = fresh(inputs[0], t=inputs[1], eps=inputs[2])
    assert_same(inside, objective(data, t=t, eps=eps))
    got = gradients(fresh, lambda: fresh(inputs[0], t=inputs[1], eps=inputs[2]).mean())
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def shared_objective() -> Objective:
    return Objective(model(), schedule=Spline(), loss=VLB(Categorical(17)))


def adaptive_objective() -> Objective:
    return Objective(
        model(), schedule=Adaptive(13.3, -5.0, bins=4, warmup=1), loss=VLB(Categorical(17))
    )


def learn(one: nn.Module, data: Tensor, t: Tensor, eps: Tensor) -> None:
    """Three steps of the schedule and the network."""
    inner: Objective = getattr(one, "module", one)
    optimizer = torch.optim.SGD(parameter_groups(inner, lr=1e-5, schedule_lr=1e-2))
    for _ in range(3):
        optimizer.zero_grad()
        one(data, t=t, eps=eps).mean().backward()
        optimizer.step()
        inner.schedule.update(all_reduce)


def train_on_one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    wrapped = DistributedDataParallel(shared_objective())
    data, (_, t, eps) = data_of(Categorical(17)), batch()
    wrapped(data[rank::2], t=t[rank::2], eps=eps[rank::2]).mean().backward()
    grads = {k: p.grad.clone() for k, p in wrapped.module.named_parameters()}
    wrapped, adaptive = (
        DistributedDataParallel(shared_objective()),
        DistributedDataParallel(adaptive_objective()),
    )
    learn(wrapped, data[rank::2], t[rank::2], eps[rank::2])
    learn(adaptive, data[rank::2], t[rank::2], eps[rank::2])
    states = {
        k: v for one in (wrapped, adaptive) for k, v in one.module.schedule.state_dict().items()
    }
    torch.save({"grads": grads, "states": states}, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    # torch 2.13 can deadlock where DDP's reducer is taken down on a gloo thread that waits for it
    os._exit(0)


def test_fault_40_distributed_data_parallel_over_the_objective(tmp_path: Path) -> None:
    """Two processes with half a batch each have the gradient of the whole batch, learned ends and
    shape included, and after a step the same schedules, the same statistics in them, as a single
    process."""
    torch.multiprocessing.spawn(train_on_one_of_two, args=(free_port(), str(tmp_path)), nprocs=2)
    objective, data, (_, t, eps) = shared_objective(), data_of(Categorical(17)), batch()
    expected = gradients(objective, lambda: objective(data, t=t, eps=eps).mean())
    assert {"schedule.low", "schedule.high", "schedule.log_density"} < expected.keys()
    adaptive = adaptive_objective()
    objective = shared_objective()
    for one in (objective, adaptive):
        learn(one, data, t, eps)
    states = {k: v for one in (objective, adaptive) for k, v in one.schedule.state_dict().items()}
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for got in ranks:
        assert got["grads"].keys() == expected.keys()
        for k in expected:
            assert_same(
                got["grads"][k], expected[k], rtol=1e-4, atol=1e-6 * expected[k].abs().max().item()
            )
        for k in states:
            assert_same(
                got["states"][k], states[k], rtol=1e-4, atol=1e-6 * states[k].abs().max().item()
            )
    assert states["mass"].max() > states["mass"].min()
    assert all(torch.equal(ranks[0]["states"][k], ranks[1]["states"][k]) for k in states)


def test_fault_40_a_wrapped_model_beside_a_learned_schedule() -> None:
    class Wrapped(nn.Module):
        pass

    Wrapped.__name__ = "DistributedDataParallel"
    denoiser = model()
    denoiser.network.wrapped = Wrapped()
    with assert_refused_with(
        ValueError,
        "Objective: model must not be wrapped in DDP where the schedule is learned .. wrap the "
        "Objective: the schedule's gradients are not synchronised otherwise",
    ):
        Objective(denoiser, schedule=LearnedLinear(), loss=VLB(Categorical(17)))
    assert Objective(denoiser, schedule=SCHEDULE).schedule is SCHEDULE


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


def test_fault_42_data_parallel() -> None:
    x = batch()[0]
    words = (
        "not hold an nn.DataParallel",
        "got DataParallel",
        "wrap the Objective in DistributedDataParallel",
    )
    for network in (nn.DataParallel(Net()), nn.Sequential(nn.DataParallel(nn.Identity()))):
        with assert_refused(TypeError, "Denoiser", "network", *words):
            Denoiser(network, V())
    with assert_refused(TypeError, "weighted_elbo", "model", *words):
        weighted_elbo(nn.DataParallel(model()), x, schedule=SCHEDULE)
    with assert_refused(TypeError, "elbo", "model", *words):
        elbo(nn.DataParallel(model()), x, schedule=SCHEDULE, decoder=Gaussian())
    with assert_refused(TypeError, "Objective", "model", *words):
        Objective(nn.DataParallel(model()), schedule=SCHEDULE)
    replica = Objective(
        model(), schedule=SCHEDULE
    )._replicate_for_data_parallel()  # what DataParallel calls on each GPU
    with assert_refused_with(
        TypeError,
        "Objective: self must not be wrapped in nn.DataParallel .. use DistributedDataParallel",
    ):
        replica(x)


def test_fault_43_a_device_without_float64() -> None:
    mps = types.SimpleNamespace(type="mps")
    assert float64_for(mps) == torch.float32  # type: ignore[arg-type]
    assert float64_for(torch.device("cpu")) == torch.float64
    vector = types.SimpleNamespace(device=mps, to=lambda dtype: dtype)
    assert to_float64(vector) == torch.float32  # type: ignore[arg-type, comparison-overlap]

    def to_mps(v: Tensor) -> Tensor:
        if v.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                "support float64. Please use float32 instead."
            )
        return v + 1

    with pytest.warns(
        UserWarning, match=r"the device has no float64: a tensor of shape \(3,\) stays on cpu"
    ):
        assert torch.equal(
            keep_dtype(to_mps)(torch.ones(3, dtype=torch.float64)),
            torch.ones(3, dtype=torch.float64),
        )
    assert torch.equal(keep_dtype(to_mps)(torch.ones(3)), torch.full((3,), 2.0))
    with pytest.warns(UserWarning, match="stays on cpu"):
        schedule = LearnedLinear()._apply(to_mps)
    logsnr, rate = (v.float() for v in schedule.at(torch.tensor([0.25]))[:2])
    assert_same(logsnr, torch.tensor([13.3 - 18.3 / 4]))
    assert_same(rate, torch.tensor([18.3]))


def test_fault_43_any_other_failed_move_is_an_error() -> None:
    def fails(v: Tensor) -> Tensor:
        raise TypeError("unknown device")

    with pytest.raises(TypeError, match="unknown device"):
        keep_dtype(fails)(torch.ones(1, dtype=torch.float64))


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

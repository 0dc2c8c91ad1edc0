"""Faults 40 and 42: a loss over several processes, or over several devices of one."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vdiff import Denoiser, Objective, elbo, weighted_elbo
from vdiff.decoder import Categorical, Gaussian
from vdiff.groups import parameter_groups
from vdiff.objective import VLB
from vdiff.parameterization import V
from vdiff.schedule import Adaptive, LearnedLinear, Spline
from vdiff.training import all_reduce

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

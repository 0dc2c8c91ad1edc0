"""Plain torch wrappers on two processes: DDP as users write it, without `vdiff.training`."""

import copy
import os
import pickle
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vdiff import Denoiser, Objective
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.groups import parameter_groups
from vdiff.objective import VLB, Hybrid, Weighted
from vdiff.parameterization import V
from vdiff.profile import Profile
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Adaptive, LearnedLinear, Spline
from vdiff.training import all_reduce, shard
from vdiff.weighting import Sigmoid

STEPS, PARTS, RANKS, BATCH = 3, 2, 2, 8
ENDS = 13.3, -5.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        for p in self.parameters():
            p.data = torch.linspace(-0.5, 0.5, p.numel()).view_as(p)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        return self.layer(torch.cat([z, 0.1 * time[:, None].to(z.dtype)], 1))


class Lightning(nn.Module):
    """An objective two modules deep, beside a profile of the user's."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"objective": objective})
        self.profile = Profile(logsnr_max=ENDS[0], logsnr_min=ENDS[1], bins=3)

    def forward(self, data: Tensor, **draws: Tensor) -> Tensor:
        loss = self.inner["objective"](data, **draws)
        self.profile.update(draws["u"], loss.detach())
        return loss


def adaptive() -> Objective:
    return Objective(
        model(), schedule=Adaptive(*ENDS, bins=4, warmup=1), loss=VLB(Categorical(17))
    )


def spline() -> Objective:
    return Objective(model(), schedule=Spline(*ENDS, knots=5), loss=VLB(Categorical(17)))


def resampled() -> Objective:
    decoder, resampling = Categorical(17), LossSecondMoment(3, memory=1)
    schedule = Adaptive(*ENDS, bins=4)
    return Objective(model(), schedule=schedule, loss=VLB(decoder, steps=3, resampling=resampling))


def pinned() -> Objective:
    return Objective(model(), schedule=LearnedLinear(*ENDS), loss=Weighted(Sigmoid()))


def pinned_shape() -> Objective:
    return Objective(model(), schedule=Spline(*ENDS, knots=5), loss=Weighted(Sigmoid()))


def pinned_chain() -> Objective:
    return Objective(model(), schedule=LearnedLinear(*ENDS), loss=Weighted(Sigmoid(), steps=3))


def simple() -> Objective:
    return Objective(model(), schedule=LearnedLinear(*ENDS), loss=Hybrid(3, bound_weight=0.0))


def simple_with_decoder() -> Objective:
    decoder = DiscretizedGaussian(17, uses_network=True)
    schedule = LearnedLinear(*ENDS)
    return Objective(model(), schedule=schedule, loss=Hybrid(3, bound_weight=0.0, decoder=decoder))


CASES = (
    adaptive,
    spline,
    resampled,
    pinned,
    pinned_shape,
    pinned_chain,
    simple,
    simple_with_decoder,
)


def model() -> Denoiser:
    return Denoiser(Net(), V())


def shares(objective: Objective, rank: int, count: int) -> list[list[dict[str, Tensor]]]:
    """What a rank sees of each micro-batch of each step."""
    generator = torch.Generator().manual_seed(0)
    steps = []
    for _ in range(STEPS):
        data = torch.randint(0, 17, (PARTS, BATCH, 2), generator=generator)
        u, eps = (
            torch.rand(PARTS, BATCH, generator=generator),
            torch.randn(PARTS, BATCH, 2, generator=generator),
        )
        if objective.decoder is None:
            data = data / 8.0 - 1.0
        parts = [slice(None)] if count == 1 else [slice(rank, None, count)]
        steps.append(
            [
                {"data": data[i][s], "u": u[i][s], "eps": eps[i][s]}
                for i in range(PARTS)
                for s in parts
            ]
        )
    return steps


def sharded(whole: nn.Module) -> nn.Module:
    return shard(whole, mesh=init_device_mesh("cpu", (RANKS,)))


WRAPPERS = {"ddp": DistributedDataParallel, "fully_shard": sharded}


def train(make: object, wrap: object = None, rank: int = 0, count: int = 1) -> dict[str, Tensor]:
    """The state after some steps of two micro-batches each, all of them synchronised."""
    whole = pickle.loads(pickle.dumps(copy.deepcopy(Lightning(make()))))  # type: ignore[operator]
    objective = whole.inner["objective"]
    wrapped = whole if wrap is None else wrap(whole)  # type: ignore[operator]
    groups = parameter_groups(whole, lr=1e-4, weight_decay=0.1, schedule_lr=1e-2)
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    for parts in shares(objective, rank, count):
        optimizer.zero_grad()
        for part in parts:
            (wrapped(**part).mean() / PARTS).backward()
        optimizer.step()
        objective.update(all_reduce)
    all_reduce(whole.profile.sums)
    state = whole.state_dict().items()
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for k, v in state}


def train_on_one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    limit = timedelta(seconds=120)
    torch.distributed.init_process_group(
        "gloo", init_method=where, rank=rank, world_size=RANKS, timeout=limit
    )
    found = {
        f"{name} {make.__name__}": train(make, wrap, rank, RANKS)
        for make in CASES
        for name, wrap in WRAPPERS.items()
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    # torch 2.13 can deadlock where DDP's reducer is taken down on a gloo thread that waits for it
    os._exit(0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(train_on_one_of_two, args=(port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_two_ranks_learn_what_one_process_learns(make, wrapper, two_ranks):
    """Also where ends get no gradient, and nothing that a rank has seen is lost to DDP's broadcast
    of buffers."""
    alone = train(make)
    for got in (rank[f"{wrapper} {make.__name__}"] for rank in two_ranks):
        assert got.keys() == alone.keys()
        for name, value in alone.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(
                got[name],
                value,
                rtol=1e-4,
                atol=1e-5 * scale,
                msg=lambda m, name=name: f"{name}: {m}",
            )


def test_what_was_compared_has_moved(two_ranks):
    alone = {make.__name__: train(make) for make in CASES}
    before = {make.__name__: Lightning(make()).state_dict() for make in CASES}
    name = "inner.objective.schedule."
    for case, moved in (
        ("adaptive", "mass"),
        ("spline", "mean_loss"),
        ("spline", "low"),
        ("pinned_shape", "log_density"),
    ):
        assert not torch.allclose(alone[case][name + moved], before[case][name + moved], rtol=1e-3)
    assert alone["resampled"]["inner.objective.loss.resampling.count"].sum() > 0
    assert alone["adaptive"]["profile.sums"].sum() > 0
    for case in ("pinned", "pinned_shape", "pinned_chain", "simple", "simple_with_decoder"):
        for end in ("low", "high"):  # no gradient, and no decay
            assert torch.equal(alone[case][name + end], before[case][name + end])
            assert torch.equal(two_ranks[0][f"ddp {case}"][name + end], before[case][name + end])


def test_schedules_on_meta_are_to_be_filled_before_they_are_sharded():
    with torch.device("meta"):
        objective = spline()
    with pytest.raises(
        ValueError,
        match=(
            "shard: argument 'module' must have schedules with values; got parameters on the meta "
            "device"
        ),
    ):
        shard(objective)

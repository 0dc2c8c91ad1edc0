"""The processes of a run, as torchrun starts them. Nothing is sent in a single process."""

import gc
import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from vdiff._validate import validated
from vdiff.errors import InvalidValue
from vdiff.likelihood import Share
from vdiff.schedule import Schedule


@dataclass(frozen=True)
class Rank:
    """The number of this process, and how many there are."""

    index: int = 0
    world_size: int = 1

    @property
    def is_zero(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0


def rank() -> Rank:
    """The rank of this process.

    >>> rank()
    Rank(index=0, world_size=1)
    """
    if dist.is_available() and dist.is_initialized():
        return Rank(dist.get_rank(), dist.get_world_size())
    return Rank()


def own_device() -> torch.device:
    """The GPU of this process (under torchrun, each has its own), or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"environment variable 'LOCAL_RANK' must be below the number of GPUs, {count}; got "
            f"{index} (torchrun --nproc-per-node {count}, or see CUDA_VISIBLE_DEVICES)"
        )
    return torch.device("cuda", index)


@contextmanager
def distributed(timeout: float = 1800.0) -> Iterator[torch.device]:
    """Join the process group if torchrun started several processes (nccl on GPUs, gloo on CPUs);
    yields the device of this process.

    All processes end if one of them fails, or is silent for `timeout` seconds.

    >>> with distributed() as device:
    ...     rank().world_size
    1
    """
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield device
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # its frames hold the DDP module
        raise
    finally:
        gc.collect()  # over gloo, torch can deadlock if a DDP module outlives its group
        dist.destroy_process_group()


@validated
def shard(module: nn.Module, *, mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Apply `fully_shard` to everything but the schedules of a module. Each rank keeps all
    parameters of the schedules, and their gradients are averaged over ranks: FSDP refuses scalars,
    and float64 parameters beside float32 ones.

    Move the module to its device first; on the meta device, give the schedules values first
    (`to_empty`, `reset_parameters`). `parameter_groups` puts the schedules into their own group,
    which an optimizer of sharded weights needs.

    Args:
        module: an `Objective`, or a module that holds one.
        mesh, options: as in `fully_shard`.

    Raises ValueError for a schedule on the meta device.

    >>> import tempfile
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from vdiff.schedule import LearnedLinear
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = f"file://{folder}/store"
    ...     dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    ...     module = nn.Sequential(nn.Linear(1, 1), LearnedLinear())
    ...     sharded = shard(module, mesh=init_device_mesh("cpu", (1,)))
    ...     [type(p).__name__ for p in sharded.parameters()]
    ...     dist.destroy_process_group()
    ['DTensor', 'DTensor', 'Parameter', 'Parameter']
    """
    from torch.distributed.fsdp import fully_shard  # which takes a second to import

    schedules = [part for part in module.modules() if isinstance(part, Schedule)]
    unsharded = {p for schedule in schedules for p in schedule.parameters()}
    if any(p.is_meta for p in unsharded):
        hint = "schedule.to_empty(device=…), which replaces parameters, then reset_parameters()"
        came = "parameters on the meta device"
        raise InvalidValue("module", "have schedules with values", came, hint)
    groups = [None] if mesh is None else [mesh.get_group(i) for i in range(mesh.ndim)]

    def average(p: Tensor) -> None:
        grad = p.grad
        if grad is None:  # of pinned ends
            return
        for group in groups:
            dist.all_reduce(grad, group=group)
            grad.div_(dist.get_world_size(group))

    for p in unsharded:
        p.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]
    ignored = unsharded | options.pop("ignored_params", set())
    fully_shard(module, mesh=mesh, ignored_params=ignored, **options)
    return module


def all_reduce(statistics: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place: `schedule.update(all_reduce)`.

    >>> all_reduce(torch.ones(1))
    tensor([1.])
    """
    if rank().world_size > 1:
        dist.all_reduce(statistics)
    return statistics


def on_rank_zero(make: Callable[[], Any]) -> Any:
    """Call `make` on rank 0. Every rank returns its value, which must be plain data, or raises its
    error."""
    if rank().world_size == 1:
        return make()
    sent: list[str] = [""]
    failure: Exception | None = None
    if rank().is_zero:
        try:
            sent = [json.dumps({"value": make()})]
        except Exception as error:
            failure, sent = error, [json.dumps({"error": str(error)})]
    dist.broadcast_object_list(sent)
    answer = json.loads(sent[0])
    if "error" in answer:
        raise failure or ValueError(answer["error"])
    return answer["value"]


def broadcast(state: dict[str, dict[str, Tensor]]) -> None:
    """Copy the tensors of rank 0 into those of every rank."""
    if rank().world_size > 1:
        for tensor in (tensor for named in state.values() for tensor in named.values()):
            contiguous = tensor.detach().contiguous()
            dist.broadcast(contiguous, 0)
            tensor.detach().copy_(contiguous)


def share_of_rank() -> Share:
    """The share of the images that this rank evaluates: all of them in a single process."""
    index, count = rank().index, rank().world_size
    return Share(index, count, all_reduce) if count > 1 else Share()

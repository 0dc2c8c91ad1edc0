"""The processes of a run, as torchrun starts them. A no-op in a single process."""

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
from vdiff.schedule import Schedule


@dataclass(frozen=True)
class Place:
    """Which process this is, and of how many."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0


def here() -> Place:
    """The place of this process.

    >>> here()
    Place(index=0, count=1)
    """
    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), dist.get_world_size())
    return Place()


def own_device() -> torch.device:
    """The GPU of this process, under torchrun one for each; the CPU where there is none."""
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
def processes(timeout: float = 1800.0) -> Iterator[torch.device]:
    """The device of this process, in a group with the others if torchrun started several (nccl on
    GPUs, gloo on CPUs).

    If one process fails, or is silent for `timeout` seconds while the others wait, all of them
    end.

    >>> with processes() as device:
    ...     here().count
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
        traceback.clear_frames(error.__traceback__)  # they hold what is wrapped
        raise
    finally:
        # what is wrapped in DDP must be gone before its group: over gloo, torch can deadlock
        # otherwise
        gc.collect()
        dist.destroy_process_group()


@validated
def shard(module: nn.Module, *, mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Apply `fully_shard` to everything but the schedules of a module, whose parameters stay whole
    on each rank and whose gradients become means over ranks. FSDP itself refuses scalars, and
    float64 parameters beside float32 ones.

    `parameter_groups` keeps the schedules in a group of their own, as an optimizer of sharded
    weights needs. Move the module to its device first; on the meta device, give the schedules
    values first (`to_empty`, `reset_parameters`).

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
    whole = {p for schedule in schedules for p in schedule.parameters()}
    if any(p.is_meta for p in whole):
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

    for p in whole:
        p.register_post_accumulate_grad_hook(average)  # type: ignore[no-untyped-call]
    ignored = whole | options.pop("ignored_params", set())
    fully_shard(module, mesh=mesh, ignored_params=ignored, **options)
    return module


def all_reduce(statistics: Tensor) -> Tensor:
    """A tensor summed over all ranks, in place: `schedule.update(all_reduce)`.

    >>> all_reduce(torch.ones(1))
    tensor([1.])
    """
    if here().count > 1:
        dist.all_reduce(statistics)
    return statistics


def on_first(make: Callable[[], Any]) -> Any:
    """Call `make` on the first rank; every rank returns its value, plain data, or raises its
    error.

    >>> on_first(lambda: {"step": 3})
    {'step': 3}
    """
    place = here()
    if place.count == 1:
        return make()
    sent: list[str] = [""]
    failure: Exception | None = None
    if place.first:
        try:
            sent = [json.dumps({"value": make()})]
        except Exception as error:
            failure, sent = error, [json.dumps({"error": str(error)})]
    dist.broadcast_object_list(sent)
    answer = json.loads(sent[0])
    if "error" in answer:
        raise failure or ValueError(answer["error"])
    return answer["value"]


def from_first(state: dict[str, dict[str, Tensor]]) -> None:
    """Fill the tensors of a state with those of the first rank."""
    if here().count > 1:
        for tensor in (tensor for named in state.values() for tensor in named.values()):
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)


__all__ = [
    "Place",
    "all_reduce",
    "from_first",
    "here",
    "on_first",
    "own_device",
    "processes",
    "shard",
]

"""Time and memory of a piece of work on a CPU or a GPU: what differs between the two stands
here."""

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def has(device: torch.device) -> bool:
    """Whether this machine has a device of that type."""
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())


def title(device: torch.device) -> str:
    """The name of a device, such as "NVIDIA H200" or "CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def seconds(work: Work, device: torch.device) -> float:
    """How long it takes: until a GPU is done, or the processor's own time on a CPU, which others
    on the machine disturb less."""
    if device.type != "cuda":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(work: Work, device: torch.device) -> int:
    """Peak bytes of live allocations, beyond those that were there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    live = most = 0
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def matrix_rate(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Multiply-adds a second of large square matrices, the best of several rounds."""
    side, repeats = (8192, 20) if device.type == "cuda" else (1024, 2)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(repeats):
            a @ b

    return max(repeats * side**3 / seconds(multiply, device) for _ in range(rounds))

"""The precision of λ: float64 for all arithmetic in log-SNR, whatever the dtype of the data."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

HALF = {torch.float16, torch.bfloat16}
# stands for λ = −∞ in arithmetic: α is 1e-130 there, and float64 holds e^600
PURE_NOISE = -600.0


def float64_for(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no float64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_float64(v: Tensor) -> Tensor:
    """A tensor in the precision of all λ arithmetic."""
    return v.to(float64_for(v.device))


def as_float64(v: Tensor | float, device: torch.device) -> Tensor:
    """A number as a tensor in that precision, without rounding to float32 in between."""
    return torch.as_tensor(v, dtype=float64_for(device), device=device)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where it is narrower: λ is never in half precision."""
    return dtype if dtype == torch.float64 else torch.float32


def device_of(module: object) -> torch.device:
    """The device of a module's parameters and buffers; the CPU if it has none."""
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The `fn` of `nn.Module._apply`, restricted to moves between devices: λ and log-probabilities
    do not survive half precision.

    A tensor that the device cannot hold (float64 on MPS) stays where it is, with a warning.
    """

    def move(v: Tensor) -> Tensor:
        try:
            moved = fn(v)
            return moved if moved.dtype == v.dtype else v.to(moved.device)
        except TypeError as error:
            if v.dtype != torch.float64 or "float64" not in str(error):
                raise
            shape = tuple(v.shape)
            warnings.warn(
                f"the device has no float64: a tensor of shape {shape} stays on {v.device}",
                stacklevel=2,
            )
            return v

    return move

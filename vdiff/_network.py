"""What a network must be, and what it must return."""

import functools
import types
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vdiff._validate import Given, require
from vdiff.errors import InvalidType, InvalidValue, shown

TIME = (
    "what the network is given: edm_time, flow_time, ScaledGamma(…), TableStep(table) or a "
    "function of λ"
)


CALL = "for instance lambda network, z, t, **condition: network(z, timestep=t, **condition)"


OUTPUT = "for instance lambda out: out.sample, or torch.neg"


def network(network: object, argument: str, given: Given) -> object:
    if not callable(network) or isinstance(network, type):
        hint = "an instance" if isinstance(network, type) else ""
        raise InvalidType(argument, "be called as network(z, time)", shown(network), hint)
    check_no_data_parallel(argument, network)
    return network


def warn_of_a_hidden_module(what: str, function: object, network: object) -> None:
    """Warn where a function, a method, a partial or an object hides the parameters of another
    module than the network."""
    if isinstance(function, nn.Module):
        return
    hidden = (
        held for held in _held(function) if isinstance(held, nn.Module) and held is not network
    )
    if any(next(module.parameters(), None) is not None for module in hidden):
        warnings.warn(
            f"Denoiser: {what} is a function around an nn.Module, whose parameters are hidden from optimizers, "
            "checkpoints and .eval(): pass the module itself, with time= and output= for what it is given "
            "and returns, and call= for how it is called",
            stacklevel=3,
        )


def _held(network: object) -> Iterator[object]:
    """What a callable refers to by name, and what it is bound to."""
    if isinstance(network, functools.partial):
        yield from (network.func, *network.args, *network.keywords.values())
        yield from _held(network.func)
    elif isinstance(network, types.FunctionType):
        yield from (cell.cell_contents for cell in network.__closure__ or () if _filled(cell))
        yield from (
            network.__globals__[name]
            for name in network.__code__.co_names
            if name in network.__globals__
        )
    elif isinstance(network, types.MethodType):
        yield network.__self__
    else:
        yield from getattr(network, "__dict__", {}).values()


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that is not set yet
        return False


def check_no_data_parallel(argument: str, module: object) -> None:
    """Raise where `module` is or holds an `nn.DataParallel`."""
    modules = module.modules() if isinstance(module, nn.Module) else ()
    if any(isinstance(m, nn.DataParallel) for m in modules):
        hint = (
            "its replicas cannot return a Prediction and draw their times apart: wrap the "
            "Objective in DistributedDataParallel"
        )
        raise InvalidType(argument, "not hold an nn.DataParallel", "DataParallel", hint)


def check_labels(condition: dict[str, Any], z: Tensor) -> None:
    """One label for another number of examples would broadcast in silence."""
    for name, value in condition.items():
        if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point():
            one = "one label for all is torch.full((len(x),), label)"
            hint = one if len(value) == 1 else "a label for each example"
            shape = f"have shape (batch,) = ({len(z)},)"
            require(len(value) == len(z), name, shape, tuple(value.shape), hint)


def check_output(out: object, z: Tensor, heads: int) -> None:
    if not isinstance(out, Tensor):
        hint = f"take the tensor out: Denoiser(network, …, output=lambda out: out{_part(out)})"
        raise InvalidType("network", "return a tensor", type(out).__name__, hint)
    expected = (z.shape[0], heads * z.shape[1], *z.shape[2:])
    if out.shape != expected:
        what = "the shape of z" if heads == 1 else "twice the channels of z, mean and variance"
        hint = _shape_hint(out, z, heads)
        raise InvalidValue("network", f"return {what}, {expected}", tuple(out.shape), hint)
    if not out.is_floating_point():
        raise InvalidType("network", "return real floating values", out.dtype)
    if out.device != z.device:
        same = f"return its output on the device of z, {z.device}"
        raise InvalidValue("network", same, out.device, "network.to(z.device)")


def _part(out: object) -> str:
    if hasattr(out, "sample"):
        return ".sample"
    first = f"[{next(iter(out))!r}]" if isinstance(out, dict) and out else ".…"
    return "[0]" if isinstance(out, tuple | list) else first


def _shape_hint(out: Tensor, z: Tensor, heads: int) -> str:
    if heads == 2 and out.shape == z.shape:
        return "a learned variance needs a second half of channels"
    if out.ndim == z.ndim and out.shape[1:] == (2 * z.shape[1], *z.shape[2:]):
        return (
            "twice the channels, as with a learned variance: Denoiser(…, variance=LearnedRange()), or "
            "keep the first half, out.chunk(2, 1)[0]"
        )
    return "it would broadcast in silence" if out.numel() < z.numel() else ""

"""A network: its dtype and its mode, and checks of it and of its output."""

import functools
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vdiff._inputs import broadcasts, cheap_to_read
from vdiff._precision import HALF
from vdiff._validate import Given, require
from vdiff.errors import InvalidArgument, InvalidType, InvalidValue, out_of_memory, shown

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
            f"Denoiser: {what} is a function around an nn.Module, whose parameters are hidden "
            "from optimizers, checkpoints and .eval(): pass the module itself, with time= and "
            "output= for what it is given and returns, and call= for how it is called",
            stacklevel=3,
        )


def _held(network: object) -> Iterator[object]:
    """The objects that a callable refers to by name, or is bound to."""
    if isinstance(network, functools.partial):
        yield from (network.func, *network.args, *network.keywords.values())
        yield from _held(network.func)
    elif isinstance(network, types.FunctionType):
        yield from (cell.cell_contents for cell in network.__closure__ or () if _filled(cell))
        names = (name for name in network.__code__.co_names if name in network.__globals__)
        yield from (network.__globals__[name] for name in names)
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
    """Raise if `module` is or holds an `nn.DataParallel`."""
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


def field_of(logsnr: Tensor, z: Tensor) -> Tensor:
    """λ with as many dimensions as z, which it broadcasts over."""
    if logsnr.ndim == 1:
        return logsnr.view(-1, *[1] * (z.ndim - 1))
    _check_field(logsnr, z)
    return logsnr


def number_of(logsnr: Tensor, z: Tensor) -> Tensor:
    """A field that is one number per example, as (batch,). Raises for any other."""
    _check_field(logsnr, z)
    number = logsnr.flatten(1)[:, 0].expand(len(z))
    constant = logsnr[0].numel() == 1
    if not constant and cheap_to_read(logsnr):
        constant = bool((logsnr.flatten(1) == number[:, None]).all())
    if not constant:
        what = "be one number per example: the network takes no more"
        hint = (
            "a mask or a schedule over dimensions needs a network that takes a field: a network "
            "of vdiff.nn with field=True; if yours does, Denoiser(…, field=True) or "
            "TokenDenoiser(…, field=True)"
        )
        if not z.is_floating_point():
            hint = (
                "each token has a λ of its own, which says what is given: "
                "TokenDenoiser(…, field=True), with a network that takes times (batch, length)"
            )
        raise InvalidValue("logsnr", what, f"a field {tuple(logsnr.shape)}", hint)
    return number


def _check_field(logsnr: Tensor, z: Tensor) -> None:
    shape = f"have shape (batch,) = ({len(z)},) or broadcast over z, {tuple(z.shape)}"
    require(broadcasts(logsnr, z), "logsnr", shape, tuple(logsnr.shape))


def check_output(out: object, z: Tensor, parts: int) -> None:
    if not isinstance(out, Tensor):
        hint = f"take the tensor out: Denoiser(network, …, output=lambda out: out{_part(out)})"
        raise InvalidType("network", "return a tensor", type(out).__name__, hint)
    expected = (z.shape[0], parts * z.shape[1], *z.shape[2:])
    if out.shape != expected:
        what = "the shape of z" if parts == 1 else "twice the channels of z, mean and variance"
        hint = _shape_hint(out, z, parts)
        raise InvalidValue("network", f"return {what}, {expected}", tuple(out.shape), hint)
    if not out.is_floating_point():
        raise InvalidType("network", "return real floating values", out.dtype)
    if out.device != z.device:
        same = f"return its output on the device of z, {z.device}"
        raise InvalidValue("network", same, out.device, "network.to(z.device)")


def note_call(
    error: Exception, network: object, z: Tensor, time: Tensor, condition: dict[str, Any]
) -> None:
    """Add to an error of a network what it was given, and the likely mistake."""
    if out_of_memory(error) or isinstance(error, InvalidArgument):
        return
    given = {"z": z, "time": time, **condition}
    words = (f"{name} {_form(value)}" for name, value in given.items())
    hints = filter(None, (_dtype_hint(error, network, z), _channels_hint(error, network, z)))
    error.add_note(". ".join([f"Denoiser: the network was given {', '.join(words)}", *hints]))


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} in {value.dtype}"
    return type(value).__name__


def _dtype_hint(error: Exception, network: object, z: Tensor) -> str:
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    others = sorted({str(p.dtype) for p in parameters} - {str(z.dtype)})
    if "type" not in str(error) or not (others or z.dtype in HALF):
        return ""
    if not others:
        return (
            f"Its weights are in {z.dtype}, and times come in float32 at least: keep weights in "
            "float32 and use torch.autocast, or cast the time in call="
        )
    return (
        f"It has weights in {', '.join(others)} too. If its first layer is one of them: "
        "Denoiser(…, call=lambda network, z, t, **condition: "
        f"network(z.to({others[0]}), t, **condition))"
    )


def _channels_hint(error: Exception, network: object, z: Tensor) -> str:
    modules = network.modules() if isinstance(network, nn.Module) else ()
    takes = next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), None)
    if z.ndim != 4 or takes not in (1, 3, 4) or takes == z.shape[1] or "channel" not in str(error):
        return ""
    if takes == z.shape[3]:
        return "Images are (n, channels, height, width): x.movedim(-1, 1)"
    return (
        f"Its first convolution takes {takes} channels, and the data have {z.shape[1]}: "
        f"vdiff.data.load(…, channels={takes}), or a network for {z.shape[1]}"
    )


def _part(out: object) -> str:
    if hasattr(out, "sample"):
        return ".sample"
    first = f"[{next(iter(out))!r}]" if isinstance(out, dict) and out else ".…"
    return "[0]" if isinstance(out, tuple | list) else first


def _shape_hint(out: Tensor, z: Tensor, parts: int) -> str:
    if parts == 2 and out.shape == z.shape:
        return "a learned variance needs a second half of channels"
    if out.ndim == z.ndim and out.shape[1:] == (2 * z.shape[1], *z.shape[2:]):
        return (
            "twice the channels, as with a learned variance: "
            "Denoiser(…, variance=LearnedRange()), or keep the first half, out.chunk(2, 1)[0]"
        )
    return "it would broadcast in silence" if out.numel() < z.numel() else ""


def weights_dtype(network: object) -> torch.dtype | None:
    """The widest of half and single precision among a network's parameters. Without single
    precision, float64 if more of its tensors are float64 than half: one scalar in float64 and one
    table in half precision decide nothing. None if it has no such parameters.

    >>> weights_dtype(nn.Linear(2, 2).bfloat16())
    torch.bfloat16
    """
    dtypes: list[torch.dtype] = []
    modules = [network] if isinstance(network, nn.Module) else []
    while modules:  # `network.parameters()` costs a tenth of a small network's time
        module = modules.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                if parameter.dtype == torch.float32:
                    return torch.float32
                dtypes.append(parameter.dtype)
        modules.extend(child for child in module._modules.values() if child is not None)
    half, double = [dtype for dtype in dtypes if dtype in HALF], dtypes.count(torch.float64)
    if double > len(half):
        return torch.float64
    return torch.float32 if len(set(half)) > 1 else half[0] if half else None


@contextmanager
def evaluation_mode(*models: object) -> Iterator[None]:
    """Switches the models that are modules to evaluation mode, in all threads, and afterwards
    restores the mode of each of their submodules.

    >>> dropout = nn.Dropout(0.5)
    >>> with evaluation_mode(dropout):
    ...     dropout(torch.ones(3))
    tensor([1., 1., 1.])
    >>> dropout.training
    True
    """
    modules = [model for model in models if isinstance(model, nn.Module)]
    training = [child for module in modules for child in module.modules() if child.training]
    try:
        for model in modules:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True

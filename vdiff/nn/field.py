"""Networks that take a field of log-SNR, a noise level for each dimension: its mean is
embedded, and the deviation from the mean enters beside the first layer."""

import copy
from typing import Annotated, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._inputs import broadcasts
from vdiff._modules import WithArguments
from vdiff._precision import float64_for
from vdiff._validate import Given, require, validated
from vdiff.errors import InvalidType
from vdiff.gaussian import scales

Network = TypeVar("Network", bound=nn.Module)
FEATURES = 3  # of each dimension's level: λ/10, α and σ


def one_or_field(logsnr: Tensor, z: Tensor) -> None:
    """Rule: log-SNR is one number per example, or a field that broadcasts against z."""
    if logsnr.ndim == 1:
        return
    fits = broadcasts(logsnr, z) and len(logsnr) == len(z)
    what = f"have shape (batch,), or {z.ndim} dimensions, each 1 or that of z, {tuple(z.shape)}"
    hint = "the first is the batch, never 1 for all examples"
    require(fits, "logsnr", what, tuple(logsnr.shape), hint)


def takes_field(self: nn.Module, logsnr: Tensor) -> None:
    """Rule: only a network that was made for a field gets one."""
    made = logsnr.ndim == 1 or bool(self.field)
    what = "have shape (batch,): the network was made without field=True"
    require(made, "logsnr", what, tuple(logsnr.shape), "with_field(network) takes a field")


def mean_level(logsnr: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
    """The mean λ of each example, added in float64: a constant field's is its number exactly."""
    if logsnr.ndim == 1:
        return logsnr
    return logsnr.flatten(1).mean(1, dtype=float64_for(logsnr.device)).to(logsnr.dtype)


def deviation(
    logsnr: Float[Tensor, "batch *#dims"],
    level: Float[Tensor, " batch"],
    z: Float[Tensor, "batch *dims"],
) -> Float[Tensor, "batch features *size"]:
    """λ/10, α(λ) and σ(λ) of each dimension minus those of the mean, as channels of z's dtype;
    exactly 0 for one number per example."""
    if logsnr.numel() == len(logsnr):
        return z.new_zeros(()).expand(len(z), FEATURES * z.shape[1], *z.shape[2:])
    told = torch.cat([logsnr.flatten(1), level[:, None]], 1)  # the mean as one more dimension
    features = torch.stack([0.1 * told, *scales(told)], 1)
    differs = (features[..., :-1] - features[..., -1:]).to(z.dtype)
    differs = differs.view(len(z), FEATURES, *logsnr.shape[1:])
    return differs.expand(-1, -1, *z.shape[1:]).flatten(1, 2)


@validated(rules=[one_or_field])
def split_field(
    logsnr: Float[Tensor, "batch *#dims"], z: Float[Tensor, "batch *dims"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch features *size"]]:
    """The mean λ of each example, (batch,), and how each dimension deviates from it, as three
    times the channels of z: λ/10, α(λ) and σ(λ) minus those of the mean.

    For a network of your own: embed the first, and let the second enter beside z, with weights
    that start at zero. Of a constant field the deviation is 0.

    >>> level, deviation = split_field(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2))
    >>> level, deviation.shape
    (tensor([2.]), torch.Size([1, 6]))
    """
    level = mean_level(logsnr)
    return level, deviation(logsnr, level, z)


class FieldLayer(nn.Module):
    """What a field adds to the first layer's output: its deviation through a linear map or a
    convolution without bias. The weights start at zero, and no random number is drawn."""

    def __init__(self, first: nn.Module, channels: int) -> None:
        super().__init__()
        beside: Any = first.weight
        width, _, *kernel = beside.shape
        shape = (width, FEATURES * channels, *kernel)
        self.weight = nn.Parameter(torch.zeros(shape, device=beside.device, dtype=beside.dtype))

    def reset_parameters(self) -> None:
        """Set the weights to zero, their first values."""
        nn.init.zeros_(self.weight)

    def forward(
        self,
        first: nn.Module,
        inputs: Float[Tensor, "batch inputs *size"],
        logsnr: Float[Tensor, "batch *field"],
        level: Float[Tensor, " batch"],
        z: Float[Tensor, "batch channels *size"],
    ) -> Float[Tensor, "batch width *size"]:
        """The first layer's output for its inputs, with what the field adds. One number per
        example adds exactly 0."""
        told = deviation(logsnr, level, z)
        if self.weight.ndim > 2:
            conv = F.conv1d if self.weight.ndim == 3 else F.conv2d
            out: Tensor = first(inputs) + conv(
                told, self.weight, padding=self.weight.shape[-1] // 2
            )
        elif logsnr.numel() == len(z):
            out = torch.addmm(first(inputs), told, self.weight.T)
        else:  # one product, which takes less time than two
            layer: Any = first
            weight = torch.cat([layer.weight, self.weight], 1)
            out = F.linear(torch.cat([inputs, told], 1), weight, layer.bias)
        return out


class FieldNetwork(WithArguments, nn.Module):
    """A network of (z, logsnr) that takes a field if `field`. A subclass sets `first_layer`, the
    path of the layer that sees z."""

    first_layer: ClassVar[str]
    field: bool = False
    channels: int  # of z
    from_field: FieldLayer

    def take_field(self) -> None:
        """Take a field from now on, with the same function of one number per example."""
        args, kwargs = self._arguments
        self._arguments = args, kwargs | {"field": True}
        self.field = True
        self.from_field = FieldLayer(self.get_submodule(self.first_layer), self.channels)


def _network(network: Any, argument: str, given: Given) -> Any:
    if not hasattr(network, "take_field"):
        hint = "in a network of your own, split_field(logsnr, z) makes its inputs"
        raise InvalidType(argument, "be a network of vdiff.nn", type(network).__name__, hint)
    return network


@validated
def with_field(network: Annotated[Network, _network]) -> Network:
    """A copy of a network of `vdiff.nn` that takes a field of log-SNR, to fine-tune one that was
    trained on one number per example.

    It has the same weights and, for a constant field, the same function. One layer is new, and it
    starts at zero: what differs within a field counts from the first step of training on.

    >>> from vdiff.nn import MLP
    >>> network = with_field(MLP(2))
    >>> network(torch.zeros(4, 2), torch.randn(4, 2)).shape
    torch.Size([4, 2])
    """
    made: Any = copy.deepcopy(network)
    if not made.field:
        made.take_field()
    return made  # type: ignore[no-any-return]

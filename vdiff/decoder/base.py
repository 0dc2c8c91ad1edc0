"""The base class of decoders."""

import abc
from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from vdiff._modules import RestorableModule
from vdiff._precision import as_float64, at_least_float32, to_float64
from vdiff._validate import Given, require, tensor, validated
from vdiff.gaussian import alpha, diffuse, masked, per_example
from vdiff.parameterization import PosteriorMean
from vdiff.prediction import Prediction

NODE_SPACING, NODE_REACH = 0.1, 9.0  # of the trapezoid rule, whose error is below 1e-13 here

Predict = Callable[[Tensor, Tensor], Prediction]


def normal_nodes(device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Equidistant nodes n and weights φ(n)·dn: Σ w f(n) is E f(N(0, 1)) for smooth f."""
    half = round(NODE_REACH / NODE_SPACING)
    nodes = to_float64(torch.arange(-half, half + 1, device=device)) * NODE_SPACING
    weights = torch.exp(-0.5 * nodes.square())
    return nodes, weights / weights.sum()


def shaped_like_data(value: Tensor, argument: str, given: Given) -> Tensor:
    """A tensor of the shape of `data`."""
    tensor(value, argument, given)
    shape, hint = tuple(given["data"].shape), "it would broadcast in silence"
    same = f"have the shape of data, {shape}"
    require(value.shape == shape, argument, same, tuple(value.shape), hint)
    return value


Mean = Annotated[Tensor, shaped_like_data]


class Decoder(RestorableModule, abc.ABC):
    """p(data | z₀) with its encoding. The mean is x̂(z₀) if `uses_network`, else z₀/α₀.

    >>> data = torch.tensor([[0, 128, 255]])
    >>> decoders = Categorical(levels=256), DiscretizedGaussian(levels=256)
    >>> [torch.equal(decoder.decode(decoder.encode(data)), data) for decoder in decoders]
    [True, True]
    """

    __example__ = "for instance Categorical(levels=256), or Gaussian() for continuous data"
    uses_network: bool = False
    factorises: bool = False  # over dimensions: then log_prob and expected_nll take `mask`

    @abc.abstractmethod
    def encode(self, data: Tensor) -> Tensor:
        """The network's data, in the default dtype or float32, whichever is wider."""

    @abc.abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """The most likely data for a clean x."""

    @abc.abstractmethod
    def log_prob(
        self, data: Tensor, mean: Tensor, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """log p(data | mean) in nats per example, at noise level λ = `logsnr`: a number, or a
        tensor (batch,) or that broadcasts over data. With a `mask`, of the dimensions where it is
        True."""

    @abc.abstractmethod
    def expected_nll(
        self, data: Tensor, logsnr: Tensor | float, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """E[−log p(data | z₀)] over z₀ ~ q(z₀ | x), exact, for a decoder that does not use the
        network; λ and `mask` as in `log_prob`."""

    @validated
    def reconstruction(
        self,
        data: Tensor,
        x: Tensor,
        logsnr: Tensor | float,
        predict: Predict,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """E[−log p(data | z₀)], nats per example: from one sample of z₀ (with `eps`, if given) if
        the decoder uses the network, else exact. With a `mask`, of the dimensions where it is
        True."""
        if not self.uses_network:
            return self.expected_nll(data, logsnr, **masked(mask)).to(at_least_float32(x.dtype))
        if eps is None:
            eps = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        z = diffuse(x, eps, logsnr_of(logsnr, x))
        return self.nll(data, z, logsnr, predict, **masked(mask))

    @validated
    def nll(
        self,
        data: Tensor,
        z: Tensor,
        logsnr: Tensor | float,
        predict: Predict,
        mask: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """−log p(data | z₀) at one given z₀, nats per example."""
        at = logsnr_of(logsnr, z)
        rescaled = not self.uses_network
        mean = z / per_example(alpha(at), z) if rescaled else self.denoised(predict(z, at))
        return -self.log_prob(data, mean, logsnr, **masked(mask))

    def denoised(self, prediction: Prediction) -> Tensor:
        """x̂(z₀)."""
        hint = (
            "no step ends at t = 0, where that target is z itself: predict x, ε or v, or take a "
            "decoder without uses_network"
        )
        chain = isinstance(prediction.parameterization, PosteriorMean)
        other = "be False where the network predicts a chain's posterior mean"
        require(not chain, "uses_network", other, True, hint)
        return prediction.x


def logsnr_of(logsnr: Tensor | float, z: Tensor) -> Tensor:
    """λ of each example, (batch,), or a field."""
    level = as_float64(logsnr, z.device)
    return level.expand(len(z), *level.shape[1:] if level.ndim else ())


def by_dim(logsnr: Tensor | float, data: Tensor) -> Tensor:
    """λ in float64: a number without dimensions, or a tensor with as many as data."""
    level = as_float64(logsnr, data.device)
    if level.numel() == 1:
        return level.reshape(())
    return level if level.ndim > 1 else level.view(-1, *[1] * (data.ndim - 1))

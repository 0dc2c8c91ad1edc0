"""A network over tokens with its process and what it predicts is a model: it returns a
`TokenPrediction`."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vdiff._network import (
    check_labels,
    evaluation_mode,
    field_of,
    network,
    note_call,
    number_of,
    weights_dtype,
)
from vdiff._precision import at_least_float32, to_float64
from vdiff._validate import Function, require, validated
from vdiff.discrete.parameterization import Posterior, TokenParameterization
from vdiff.discrete.prediction import TokenPrediction
from vdiff.discrete.process import Process
from vdiff.errors import InvalidType, has_values, validation_enabled
from vdiff.gaussian import Level

SAME = 1e-3  # nats, by which rounding may change a log-probability
TOKEN_TIME = "logsnr_time gives the network λ; None gives it the tokens alone"


class TokenDenoiser(nn.Module):
    """A network over tokens as a model: `TokenDenoiser(network, Masked(256))(z, logsnr)` is a
    `TokenPrediction`.

    The network is called `network(z, **condition)` with tokens (batch, …), and returns logits
    (batch, …, vocabulary), the values last. Where the process has a mask it may return
    vocabulary + 1: the last, the mask's, is ignored. With `time`, a function of λ such as
    `logsnr_time`, it is called `network(z, time(logsnr), **condition)`. For masks no time is
    needed: how many tokens are masked says it. Logits are cast to float32 at least.

    `parameterization` says of what the logits are: `Posterior()`, the default, or
    `LeaveOneOut()`. With `field=True`, or a network that has `field = True` itself, the time has
    as many dimensions as z.

    >>> from vdiff.discrete import Masked
    >>> model = TokenDenoiser(nn.Embedding(4, 3), Masked(3))
    >>> model(torch.tensor([[3, 1]]), torch.zeros(1)).posterior.shape
    torch.Size([1, 2, 3])
    """

    @validated
    def __init__(
        self,
        network: Annotated[Callable[..., Any], network],
        process: Process,
        parameterization: TokenParameterization | None = None,
        *,
        time: Annotated[Callable[[Tensor], Tensor] | None, Function(TOKEN_TIME)] = None,
        field: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.process = network, process
        self.parameterization = Posterior() if parameterization is None else parameterization
        self.time = time
        self.field = field or bool(getattr(network, "field", False))
        self.trained: tuple[float | Tensor, float | Tensor] | None = None

    @validated
    def forward(
        self, z: Int[Tensor, "batch *dims"], logsnr: Level, **condition: Any
    ) -> TokenPrediction:
        """The prediction from tokens z at log-SNR λ, (batch,) or a field. Raises if the network
        does not return logits, and for a field that the network cannot take."""
        if validation_enabled():
            check_labels(condition, z)
        times = () if self.time is None else (self._time(z, logsnr),)
        try:
            logits = self.network(z, *times, **condition)
        except Exception as error:
            note_call(error, self.network, z, times[0] if times else logsnr, condition)
            note_rows(error, self.network, z, self.process)
            raise
        if validation_enabled():
            check_logits(logits, z, self.process)
        logits = self.process.of_values(logits).to(at_least_float32(logits.dtype))
        return TokenPrediction(z, logsnr, logits, self.process, self.parameterization)

    @property
    def takes_time(self) -> bool:
        """Whether the network gets a time: else its predictions depend on z alone."""
        return self.time is not None

    @torch.no_grad()
    @validated
    def check_leave_one_out(
        self, z: Int[Tensor, "batch length"], logsnr: Level, **condition: Any
    ) -> "TokenDenoiser":
        """Return self if the network's distribution of a token does not depend on that token, as
        `LeaveOneOut()` says. Raises ValueError for the first token where it does: then it is
        `Posterior()`. Calls the network once for each token, in evaluation mode.

        >>> from vdiff.discrete import LeaveOneOut, Uniform
        >>> rest = lambda z: (z.sum(1, keepdim=True) - z)[..., None] * torch.ones(3)
        >>> model = TokenDenoiser(rest, Uniform(3), LeaveOneOut())
        >>> model.check_leave_one_out(torch.tensor([[0, 1]]), torch.zeros(1)) is model
        True
        """
        with evaluation_mode(self):
            first = self(z, logsnr, **condition).log_probs
            for i in range(z.shape[1]):
                other = z.clone()
                other[:, i] = (z[:, i] + 1) % self.process.states
                changed = self(other, logsnr, **condition).log_probs[:, i] - first[:, i]
                most = changed.abs().max().item()
                what = "not depend on a token in its distribution of that token"
                got = f"a log-probability of token {i} that changes by {most:.2g}"
                hint = "what it predicts is p(x_i | z): Posterior()"
                require(most < SAME, "network", what, got, hint)
        return self

    def _time(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """What the network is given for λ."""
        v = to_float64(logsnr)
        if self.field or logsnr.ndim > 1:
            v = field_of(v, z) if self.field else number_of(v, z)
        assert self.time is not None
        time, dtype = self.time(v), weights_dtype(self.network)
        return time.to(at_least_float32(dtype or time.dtype))

    def extra_repr(self) -> str:
        return f"{self.process!r}, {self.parameterization!r}"


def check_logits(logits: object, z: Tensor, process: Process) -> None:
    """Raise unless the network returned logits over the vocabulary, with or without the mask."""
    if not isinstance(logits, Tensor):
        part = _part_of(logits)
        hint = f"take the tensor out: a module around the network that returns out{part}"
        raise InvalidType("network", "return a tensor", type(logits).__name__, hint)
    widths = range(process.vocabulary, process.states + 1)
    words = " or ".join(str((*z.shape, width)) for width in widths)
    fits = logits.shape[:-1] == z.shape and logits.shape[-1] in widths
    mask = "the mask's is last" if process.mask == process.vocabulary else ""
    hint = f"in the order (batch, length, vocabulary){'; ' if mask else ''}{mask}"
    if logits.ndim == z.ndim + 1 and logits.movedim(1, -1).shape[:-1] == z.shape:
        hint = "(batch, length, vocabulary), as Transformers give them: logits.movedim(1, -1)"
    require(fits, "network", f"return logits {words}", tuple(logits.shape), hint)
    if not logits.is_floating_point():
        raise InvalidType("network", "return floating logits", logits.dtype)


def _part_of(out: object) -> str:
    """Where the logits lie in what a network returned."""
    if hasattr(out, "logits"):
        return ".logits"
    if isinstance(out, dict):
        return f"[{next(iter(out), 'logits')!r}]"
    return "[0]" if isinstance(out, tuple | list) else ".logits"


def note_rows(error: Exception, network: object, z: Tensor, process: Process) -> None:
    """Add to an error of a network that an embedding has no row for the mask."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    rows = [m.num_embeddings for m in modules if isinstance(m, nn.Embedding)]
    if isinstance(error, IndexError) and rows and process.mask in rows and has_values(z):
        error.add_note(
            f"TokenDenoiser: the mask is the token {process.mask}, and an embedding of the "
            f"network has {process.mask} rows: it needs {process.states}, one for the mask"
        )


__all__ = ["TokenDenoiser"]

"""A small network whose every output depends on its input and on its noise level, and what several
files need."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor, nn

from vdiff import Denoiser, weighted_elbo
from vdiff.decoder import Decoder, Gaussian
from vdiff.parameterization import Parameterization, V
from vdiff.schedule import Cosine


class Net(nn.Module):
    """A smooth network of points (batch, dims); it remembers the dtype of the time it was told."""

    def __init__(self, dims: int = 2, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first, self.last, self.dropout = (
            nn.Linear(dims + 1, width),
            nn.Linear(width, dims),
            nn.Dropout(dropout),
        )
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        self.told = time.dtype
        hidden = torch.tanh(self.first(torch.cat([z, 0.1 * time[:, None].to(z.dtype)], 1)))
        out: Tensor = self.last(self.dropout(hidden))
        return out


def model(parameterization: Parameterization | None = None, **options: float) -> Denoiser:
    return Denoiser(Net(**options), parameterization or V())  # type: ignore[arg-type]


def batch(
    n: int = 4, dims: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x, t, ε."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, dims, generator=generator, dtype=torch.float64) * 2 - 1
    t = torch.rand(n, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    return (
        x.to(dtype),
        t.to(dtype),
        torch.randn(n, dims, generator=generator, dtype=torch.float64).to(dtype),
    )


@contextmanager
def assert_refused(
    error: type[Exception], function: str | tuple[str, ...], argument: str, *words: str
) -> Iterator[None]:
    """The block must raise `error` with the message `<function>: argument '<argument>' must …
    <words in order> …`. Of several functions, one. A checkpoint is no argument; an empty name is
    that of no function. Two dots, " .. ", in a word stand for any text between."""
    words = tuple(part for word in words for part in word.split(" .. "))
    with pytest.raises(error) as caught:
        yield
    names = "|".join(map(re.escape, (function,) if isinstance(function, str) else function))
    subject = f"({names}): argument" if function else "argument"
    pattern = (
        ("checkpoint" if function == "checkpoint" else subject)
        + re.escape(f" '{argument}' must ")
        + ".*"
        + ".*".join(re.escape(word) for word in words)
    )
    assert re.match(pattern, str(caught.value), re.DOTALL), (
        f"\n{caught.value}\ndoes not match\n{pattern}"
    )
    assert "; got " in str(caught.value)


def assert_refused_with(error: type[Exception], message: str) -> AbstractContextManager[None]:
    """The same from one text, "<function>: <argument> must <words> .. <words>"."""
    function, argument, words = re.match(r"(.*?): (\S+) must (.*)", message).groups()  # type: ignore[union-attr]
    return assert_refused(error, function, argument, words)


def assert_same(value: Tensor, reference: Tensor, rtol: float = 1e-6, atol: float = 0.0) -> None:
    torch.testing.assert_close(
        value.to(torch.float64), reference.to(torch.float64), rtol=rtol, atol=atol
    )


def gradients(module: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of a scalar with respect to every parameter, by name."""
    module.zero_grad()
    loss().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


SCHEDULE = Cosine(10.0, -10.0)


def loss_of(x: object, **options: object) -> Tensor:
    return weighted_elbo(model(), x, schedule=SCHEDULE, **options)  # type: ignore[arg-type]


def data_of(decoder: Decoder, n: int = 4) -> Tensor:
    return (
        batch(n)[0]
        if isinstance(decoder, Gaussian)
        else torch.randint(0, 17, (n, 2), generator=torch.Generator().manual_seed(5))
    )

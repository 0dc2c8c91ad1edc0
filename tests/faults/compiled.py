"""`python -m faults.compiled`: every case compiled with fullgraph=True against eager mode, as JSON
of what went wrong."""

import itertools
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from points import data_of as data_of_points
from points import points
from registry import COUNTED, DECODERS, PROCESSES, SCHEDULES, TARGETS, WEIGHTINGS, made_of
from torch import Tensor, nn

from vdiff import Denoiser, Objective, weighted_elbo
from vdiff.decoder import Categorical, Decoder, DiscretizedGaussian, Gaussian
from vdiff.discrete import TokenDenoiser
from vdiff.nn import MLP, DDPMUNet, IDDPMUNet, UNet, VDMUNet
from vdiff.objective import VLB, Hybrid, Weighted
from vdiff.parameterization import Eps, V
from vdiff.schedule import LearnedLinear, Linear, Spline, Tabulated
from vdiff.training import train
from vdiff.variance import LearnedRange

from .common import Net, assert_same, batch, data_of, gradients, model


def assert_compiles(
    make: Callable[[], Objective], data: Tensor, *, given: bool, **options: Any
) -> None:
    """Compiled without a break, the loss and its gradients are those of eager mode, with times and
    noise given or drawn."""
    _, t, eps = batch(len(data))
    torch._dynamo.reset()
    fresh, eager = make(), make()
    draws = {"t": t, "eps": eps} if given else {}

    def train(objective: Callable[..., Tensor], losses: list[Tensor]) -> Tensor:
        torch.manual_seed(3)
        losses.append(objective(data, **draws))
        return losses[-1].mean()

    ours: list[Tensor] = []
    reference: list[Tensor] = []
    compiled = torch.compile(fresh, fullgraph=True, **options)
    got, expected = (
        gradients(fresh, lambda: train(compiled, ours)),
        gradients(eager, lambda: train(eager, reference)),
    )
    assert_same(ours[0], reference[0], rtol=1e-5)
    assert got.keys() == expected.keys()
    for name in expected:
        assert_same(
            got[name], expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item()
        )


def turns(length: int, *tables: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Entries of every table side by side, each table from its start again at its end."""
    return itertools.islice(
        zip(*(itertools.cycle(t.items()) for t in tables), strict=False), length
    )


def weighted(i: int, schedule: Any, weighting: Any, row: Any) -> None:
    """Every other one on a chain; drawn for every third."""
    steps = weighting().steps or (getattr(schedule(), "steps", 999) if i % 2 else None)
    assert_compiles(
        lambda: Objective(
            model(row), schedule=schedule(), loss=Weighted(weighting(), steps=steps)
        ),
        batch()[0],
        given=bool(i % 3),
        backend="aot_eager",
    )


def bound(i: int, decoder: Any) -> None:
    schedule = Linear if isinstance(decoder(), Gaussian) or i % 2 else LearnedLinear
    assert_compiles(
        lambda: Objective(model(), schedule=schedule(), loss=VLB(decoder())),
        data_of(decoder()),
        given=bool(i % 3),
        backend="aot_eager",
    )


def hybrid(decoder: Decoder | None) -> None:
    """A chain's learned variance; where times are drawn, the decoder reads the rows that need
    it."""

    def make() -> Objective:
        torch.manual_seed(0)
        network = Denoiser(MLP(2, dims_out=4), Eps(), variance=LearnedRange())
        loss = Hybrid(27, bound_weight=0.5, decoder=decoder)
        return Objective(network, schedule=Tabulated.linear_betas(levels=28), loss=loss)

    data = torch.randn(8, 2) if decoder is None else torch.randint(0, 17, (8, 2))
    assert_compiles(make, data, given=False, backend="aot_eager")


def default_backend() -> None:
    assert_compiles(
        lambda: Objective(model(), schedule=LearnedLinear(), loss=VLB(Categorical(17))),
        data_of(Categorical(17)),
        given=False,
        options={"fallback_random": True},
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VDMUNet": lambda: VDMUNet(width=32, depth=1),
    "DDPMUNet": lambda: DDPMUNet(width=32, multipliers=(1, 2)),
    "IDDPMUNet": lambda: IDDPMUNet(channels_out=3, width=32, multipliers=(1, 2), checkpoint=True),
}


def network(name: str) -> None:
    """A published network at a small size, its dropout and, in one, its checkpoints included;
    nothing starts at zero."""

    def make() -> Objective:
        generator = torch.Generator().manual_seed(1)
        made = NETWORKS[name]()
        for parameter in made.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return Objective(Denoiser(made, Eps()), schedule=Linear())

    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert_compiles(make, images, given=False, backend="aot_eager")


def fields() -> None:
    """Networks that are told a noise level for each dimension."""
    for made, shape in ((MLP(3, field=True), (3,)), (UNet(2, field=True), (2, 4, 4))):
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.1)
        z, logsnr = torch.randn(4, *shape), torch.randn(4, *shape)
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        for told in (logsnr, logsnr[:, :1], logsnr.flatten(1)[:, 0].view(4, *(1 for _ in shape))):
            assert_same(compiled(z, told), made(z, told), rtol=1e-5, atol=1e-6)
        parameters = list(made.parameters())
        ours, reference = (
            torch.autograd.grad(network(z, logsnr).square().sum(), parameters)
            for network in (compiled, made)
        )
        for got, expected in zip(ours, reference, strict=True):
            assert_same(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def masks() -> None:
    """A loss with a mask and absent values."""
    model, (x, t, eps) = Denoiser(MLP(2, field=True), V()), batch()
    mask, absent = torch.rand(2, *x.shape, generator=torch.Generator().manual_seed(3)) < 0.5

    def loss(x: Tensor, mask: Tensor, absent: Tensor) -> Tensor:
        return weighted_elbo(model, x, schedule=Linear(), t=t, eps=eps, mask=mask, absent=absent)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x, mask, absent), loss(x, mask, absent), rtol=1e-5, atol=1e-6)


def tokens(kind: str, learned: bool) -> None:
    """A loss over tokens."""
    process = (PROCESSES | COUNTED)[kind]()
    torch.manual_seed(0)
    model = TokenDenoiser(nn.Embedding(process.states, process.vocabulary), process)
    schedule = Spline(12.0, -12.0, learn_ends=False) if learned else Linear()
    x, t, eps = torch.randint(0, 3, (9, 2)), torch.rand(9), torch.rand(9, 2, dtype=torch.float64)

    def loss(x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return weighted_elbo(model, x, schedule=schedule, t=t, eps=eps).mean()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values, grads = [], []
    for one in compiled, loss:
        values.append(one(x, t, eps))
        grads += torch.autograd.grad(values[-1], list(model.parameters()))
    assert_same(*values, rtol=1e-5)
    assert_same(*grads, rtol=1e-5, atol=1e-6)


class Told(nn.Module):
    """A network with a table in bfloat16 before its weights, which is called forward(t, x,
    steps)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.net = (
            nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False),
            Net(),
        )

    def forward(self, t: Tensor, x: Tensor, steps: Tensor) -> Tensor:
        out: Tensor = self.net(x, t) * steps[:, None]
        return out


def conditions() -> None:
    """A condition that has a verb's own name, by the mapping, to a network that is called in
    another way."""
    x, t, eps = batch()
    schedule, condition = Linear(), {"steps": torch.linspace(1, 2, len(x))}
    objective = Objective(
        Denoiser(Told(), Eps(), call=lambda net, z, t, steps: net(t, z, steps)), schedule=schedule
    )
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    expected = objective(x, t=t, eps=eps, condition=condition)
    assert_same(compiled(x, t=t, eps=eps, condition=condition), expected, rtol=1e-5)


def training() -> None:
    """A run whose config asks for it: the network alone is compiled, what is kept of it has the
    same names."""
    states = []
    for compiled in (False, True):
        config = points(compile=compiled, steps=4)
        torch.manual_seed(0)
        states.append(
            train(config.objective(), data_of_points(config), config, quiet=True).state_dict()
        )
    if states[0].keys() != states[1].keys():
        raise AssertionError(list(states[1]))
    for name, value in states[0].items():
        assert_same(states[1][name], value, rtol=1e-5, atol=1e-6)


CASES: dict[str, Callable[[], None]] = {
    **{
        f"weighted {' | '.join(name for name, _ in parts)}": partial(
            weighted, i, *(part for _, part in parts)
        )
        for i, parts in enumerate(turns(len(SCHEDULES), made_of(SCHEDULES), WEIGHTINGS, TARGETS))
    },
    **{
        f"bound {name}": partial(bound, i, make) for i, (name, make) in enumerate(DECODERS.items())
    },
    "hybrid": lambda: hybrid(None),
    "hybrid, decoder": lambda: hybrid(DiscretizedGaussian(17, uses_network=True)),
    **{f"network {name}": lambda name=name: network(name) for name in NETWORKS},  # type: ignore[misc]
    "fields": fields,
    "masks": masks,
    **{
        f"tokens {kind}{learned * ' learned'}": partial(tokens, kind, learned)
        for kind in PROCESSES | COUNTED
        for learned in (False, True)
    },
    "conditions": conditions,
    "default backend": default_backend,
    "training": training,
}

if __name__ == "__main__":
    failures = dict.fromkeys(CASES, "")
    for name, case in CASES.items():
        try:
            case()
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))

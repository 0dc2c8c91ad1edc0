"""The published networks: sizes, what they compute against straight-line code, and every way of
running them."""

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vdiff import Denoiser, elbo, weighted_elbo
from vdiff.decoder import DiscretizedGaussian
from vdiff.denoiser import ScaledGamma
from vdiff.nn import DDPMUNet, IDDPMUNet, VDMUNet
from vdiff.nn.block import Block
from vdiff.parameterization import Eps
from vdiff.schedule import Cosine, Tabulated
from vdiff.training.config import build
from vdiff.variance import LearnedRange

SMALL: dict[str, Callable[[], nn.Module]] = {
    "VDMUNet": partial(VDMUNet, width=64, depth=2, dropout=0.0),
    "DDPMUNet": partial(DDPMUNet, width=64, multipliers=(1, 2), dropout=0.0),
    "IDDPMUNet": partial(IDDPMUNet, width=64, multipliers=(1, 2), dropout=0.0),
}


def drawn(network: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """With nothing at zero, so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = std * torch.randn(
            parameter.shape, generator=generator, dtype=parameter.dtype
        )
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data += 1
    return network


def batch(n: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(
        dtype
    ), torch.tensor([9.0, 0.3, -4.0]).to(dtype)


@pytest.mark.parametrize(
    ("network", "published", "exactly", "gmac"),
    [
        (VDMUNet, "30.58", 30_578_179, 26.7),
        (DDPMUNet, "35.75", 35_746_307, 6.2),
        (IDDPMUNet, "52.55", 52_546_438, 8.4),
    ],
    ids=["vdm", "ddpm", "iddpm"],
)
def test_sizes_are_the_published_ones(network, published, exactly, gmac):
    """On the meta device, so without memory. Multiplications of one image are counted as torch
    does, attention included."""
    with torch.device("meta"):
        made = network()
        with FlopCounterMode(display=False) as counter:
            out = made(torch.empty(1, 3, 32, 32), torch.empty(1))
    count = sum(p.numel() for p in made.parameters())
    assert count == exactly
    assert f"{count / 1e6:.2f}" == published
    assert out.shape == (1, 6 if network is IDDPMUNet else 3, 32, 32)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.05)


def test_the_size_of_vdms_network_by_hand():
    conv, dense = lambda i, o: 9 * i * o + o, lambda i, o: i * o + o
    norm, wide = lambda c: 2 * c, 512
    same = norm(128) + conv(128, 128) + wide * 128 + norm(128) + conv(128, 128)
    joined = norm(256) + conv(256, 128) + wide * 128 + norm(128) + conv(128, 128) + dense(256, 128)
    attention = norm(128) + 4 * dense(128, 128)
    whole = (
        conv(15, 128)
        + dense(129, wide)
        + dense(wide, wide)
        + 34 * same
        + 33 * joined
        + attention
        + norm(128)
        + conv(128, 3)
    )
    assert whole == 30_578_179


def sines(level: Tensor, exponents: Tensor) -> Tensor:
    """sin and cos of a level at frequencies 10^(−4·exponent), in increasing order of the row's
    values."""
    angle = level[:, None] * 10.0 ** (-4 * exponents)
    return torch.cat([angle.sin(), angle.cos()], 1).sort(1).values


def test_the_noise_level_is_told_as_published():
    """The order of the features does not matter to the linear layer behind them."""
    half = torch.arange(64, dtype=torch.float64)
    gamma = torch.tensor([-13.3, -2.1, 5.0], dtype=torch.float64)
    told = VDMUNet(depth=1).time(-gamma).sort(1).values
    assert torch.allclose(told, sines(1000 * (gamma + 13.3) / 18.3, half / 63), atol=1e-4)
    steps = torch.tensor([0, 1, 500, 999])
    linear = Tabulated.linear_betas().table[steps]
    ddpm, iddpm = (network(multipliers=(1,), attention=()) for network in (DDPMUNet, IDDPMUNet))
    assert torch.allclose(
        ddpm.time(linear).sort(1).values, sines(steps.double(), half / 63), atol=2e-4
    )
    cosine = Tabulated.cosine_betas(4000).table[4 * steps + 3]
    assert torch.allclose(
        iddpm.time(cosine).sort(1).values, sines((4 * steps + 3) / 4.0, half / 64), atol=2e-4
    )


class Reference:
    """Straight-line code for one published network, reading the weights of another: no class, no
    loop over modules."""

    def __init__(
        self, network: nn.Module, groups: int, eps: float, heads: int, scale_shift: bool
    ) -> None:
        self.weights = dict(network.named_parameters())
        self.groups, self.eps, self.heads, self.scale_shift = groups, eps, heads, scale_shift

    def norm(self, name: str, h: Tensor) -> Tensor:
        grouped = h.reshape(len(h), self.groups, -1)
        mean, var = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, unbiased=False)
        whole = ((grouped - mean) / (var + self.eps).sqrt()).reshape(h.shape)
        return (
            whole * self.weights[f"{name}.weight"][:, None, None]
            + self.weights[f"{name}.bias"][:, None, None]
        )

    def conv(self, name: str, h: Tensor, **options: int) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(
            h, weight, self.weights[f"{name}.bias"], **{"padding": weight.shape[-1] // 2} | options
        )

    def dense(self, name: str, v: Tensor) -> Tensor:
        out = v @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def block(self, name: str, h: Tensor, cond: Tensor) -> Tensor:
        u = self.conv(f"{name}.conv1", swish(self.norm(f"{name}.norm1", h)))
        told = self.dense(f"{name}.modulate", cond)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told[:, : u.shape[1]], told[:, u.shape[1] :]
            u = self.norm(f"{name}.norm2", u) * (1 + scale) + shift
        else:
            u = self.norm(f"{name}.norm2", u + told)
        u = self.conv(f"{name}.conv2", swish(u))
        h = (self.conv(f"{name}.skip", h) if f"{name}.skip.weight" in self.weights else h) + u
        return (
            self.attention(f"{name}.attention", h)
            if f"{name}.attention.out.weight" in self.weights
            else h
        )

    def attention(self, name: str, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm", h)).reshape(
            b, 3, self.heads, c // self.heads, height * width
        )
        share = (
            torch.einsum("bhcq,bhck->bhqk", qkv[:, 0], qkv[:, 1])
            .div(math.sqrt(c // self.heads))
            .softmax(-1)
        )
        mixed = torch.einsum("bhqk,bhck->bhcq", share, qkv[:, 2]).reshape(b, c, height, width)
        return h + self.conv(f"{name}.out", mixed)

    def embed(self, features: Tensor) -> Tensor:
        return swish(self.dense("embed.2", swish(self.dense("embed.0", features))))


def swish(v: Tensor) -> Tensor:
    return v * torch.sigmoid(v)


def test_vdms_network_against_straight_line_code():
    network = drawn(VDMUNet(width=64, depth=2, dropout=0.0)).double()
    z, logsnr = batch(dtype=torch.float64)
    flag = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    r = Reference(network, groups=32, eps=1e-6, heads=1, scale_shift=False)
    cond = r.embed(torch.cat([network.time(logsnr), flag[:, None]], 1))
    bits = [torch.cat([2**n * 2 * math.pi * z[:, c : c + 1] for c in range(3) for n in (6, 7)], 1)]
    h0 = r.conv("first", torch.cat([z, bits[0].sin(), bits[0].cos()], 1))
    h1 = r.block("down.0", h0, cond)
    h2 = r.block("down.1", h1, cond)
    h = r.block("middle2", r.block("middle1", h2, cond), cond)
    h = r.block("up.0", torch.cat([h, h2], 1), cond)
    h = r.block("up.1", torch.cat([h, h1], 1), cond)
    h = r.block("up.2", torch.cat([h, h0], 1), cond)
    expected = r.conv("last.2", swish(r.norm("last.0", h))) + z
    assert torch.allclose(network(z, logsnr, augmented=flag), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(network(z, logsnr), expected, rtol=1e-3)  # the flag is read


@pytest.mark.parametrize(
    "network",
    [VDMUNet(width=32, depth=1), DDPMUNet(width=32, multipliers=(1,), attention=())],
    ids=lambda n: type(n).__name__,
)
def test_a_narrow_network_hears_the_noise_level(network):
    """With one channel to a group, a norm removes whatever an embedding adds before it."""
    network = drawn(network).eval()
    z, logsnr = batch()
    assert not torch.allclose(network(z, logsnr), network(z, logsnr - 4), rtol=1e-3)


def up(h: Tensor) -> Tensor:
    return h.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_ddpms_network_against_straight_line_code():
    network = drawn(DDPMUNet(width=64, multipliers=(1, 2), dropout=0.0)).double()
    z, logsnr = batch(dtype=torch.float64)
    r = Reference(network, groups=32, eps=1e-6, heads=1, scale_shift=False)
    cond = r.embed(network.time(logsnr))
    a0 = r.conv("first", z)
    a1 = r.block("down.0", a0, cond)
    a2 = r.block("down.1", a1, cond)
    b0 = r.conv("shrink.0.1", F.pad(a2, (0, 1, 0, 1)), stride=2, padding=0)
    b1 = r.block("down.2", b0, cond)
    b2 = r.block("down.3", b1, cond)
    h = r.block("middle2", r.block("middle1", b2, cond), cond)
    for name, skip in (("up.0", b2), ("up.1", b1), ("up.2", b0)):
        h = r.block(name, torch.cat([h, skip], 1), cond)
    h = r.conv("grow.0", up(h))
    for name, skip in (("up.3", a2), ("up.4", a1), ("up.5", a0)):
        h = r.block(name, torch.cat([h, skip], 1), cond)
    expected = r.conv("last.2", swish(r.norm("last.0", h)))
    assert torch.allclose(network(z, logsnr), expected, rtol=1e-10, atol=1e-10)
    assert (
        sum(name.endswith("attention.out.weight") for name in r.weights) == 6
    )  # two down, three up, one in the middle
    assert not any("down.0.attention" in name or "up.5.attention" in name for name in r.weights)


def test_iddpms_network_against_straight_line_code():
    network = drawn(IDDPMUNet(width=64, multipliers=(1, 2), attention=(1,), dropout=0.0)).double()
    z, logsnr = batch(dtype=torch.float64)
    r = Reference(network, groups=32, eps=1e-5, heads=4, scale_shift=True)
    cond = r.embed(network.time(logsnr))
    skips = [h := r.conv("first", z)]
    for name in ("down.0", "down.1", "down.2"):
        skips.append(h := r.block(name, h, cond))
    skips.append(h := r.conv("shrink.0", h, stride=2))
    for name in ("down.3", "down.4", "down.5"):
        skips.append(h := r.block(name, h, cond))
    h = r.block("middle2", r.block("middle1", h, cond), cond)
    for name in ("up.0", "up.1", "up.2", "up.3"):
        h = r.block(name, torch.cat([h, skips.pop()], 1), cond)
    h = r.conv("grow.0", up(h))
    for name in ("up.4", "up.5", "up.6", "up.7"):
        h = r.block(name, torch.cat([h, skips.pop()], 1), cond)
    expected = r.conv("last.2", swish(r.norm("last.0", h)))
    assert network(z, logsnr).shape == (3, 6, 8, 8)
    assert torch.allclose(network(z, logsnr), expected, rtol=1e-10, atol=1e-10)


def spread(layers: Sequence[nn.Conv2d | nn.Linear], std: Callable[[int, int], float]) -> Tensor:
    """The standard deviation of all weights, each in units of what it should be, and of their
    fourth moment."""
    units = []
    for layer in layers:
        fan_out, fan_in = (
            layer.weight.shape[0] * layer.weight[0, 0].numel(),
            layer.weight[0].numel(),
        )
        units.append(layer.weight.detach().flatten() / std(fan_in, fan_out))
    v = torch.cat(units).double()
    assert all((layer.bias == 0).all() for layer in layers if layer.bias is not None)
    return torch.stack([v.square().mean(), v.abs().max()])


def test_initial_weights_are_the_published_ones():
    """flax's Lecun normal, cut at two standard deviations (before the cut: 2/0.8796), for VDM;
    Glorot's uniform for DDPM."""
    torch.manual_seed(0)
    vdm, ddpm = VDMUNet(width=64, depth=2), DDPMUNet(width=64, multipliers=(1, 2))
    z, logsnr = batch()
    assert torch.equal(vdm.eval()(z, logsnr), z)
    assert (ddpm.eval()(z, logsnr) == 0).all()
    assert all(
        not m.modulate.weight.any() and m.modulate.bias is None
        for m in vdm.modules()
        if isinstance(m, Block)
    )
    normal = spread(
        [m for m in vdm.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.any()],
        lambda i, o: i**-0.5,
    )
    assert torch.allclose(normal, torch.tensor([1.0, 2 / 0.87962566]).double(), atol=0.01)
    uniform = spread(
        [m for m in ddpm.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.any()],
        lambda i, o: (2 / (i + o)) ** 0.5,
    )
    assert torch.allclose(uniform, torch.tensor([1.0, 3**0.5]).double(), atol=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_a_model_as_it_is(name):
    network = drawn(SMALL[name](), std=0.05)
    variance = LearnedRange() if name == "IDDPMUNet" else None
    model = Denoiser(network, Eps(), variance=variance)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    loss = elbo(
        model,
        pixels,
        schedule=Tabulated.linear_betas(),
        steps=999,
        decoder=DiscretizedGaussian(256),
        draws=2,
    ).total.mean()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any()
        for p in network.parameters()
    )


@pytest.mark.parametrize("name", SMALL)
def test_autocast_channels_last_and_checkpointing_leave_the_function(name):
    network = drawn(SMALL[name]()).eval()
    z, logsnr = batch()
    plain = network(z, logsnr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(z, logsnr)
    assert (half - plain).norm() < 0.03 * plain.norm()
    assert half.dtype == (
        torch.float32 if name == "VDMUNet" else torch.bfloat16
    )  # VDM's ends on z + …
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    out = last(z.contiguous(memory_format=torch.channels_last), logsnr)
    assert torch.allclose(out, plain, atol=1e-4 * plain.abs().max().item())
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pickle.loads(pickle.dumps(network))(z, logsnr), plain)


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_keeps_less_and_gives_the_same_gradient(name):
    """With dropout: the second forward pass draws the same mask."""
    kept, gradients = [], []
    for checkpoint in (False, True):
        network = drawn(
            SMALL[name].func(**SMALL[name].keywords | {"dropout": 0.3, "checkpoint": checkpoint})
        )
        saved: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda v, saved=saved: saved.append(v.numel()) or v, lambda v: v
        ):
            loss = network(*batch()).square().mean()
        loss.backward()
        kept.append(sum(saved))
        gradients.append([p.grad for p in network.parameters()])
    assert kept[1] < 0.5 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_table_moves_with_the_network_and_stays_in_float64():
    network = SMALL["DDPMUNet"]()
    assert network.time.table is network.time.of.schedule
    assert network.to("meta").time.of.schedule.table.is_meta
    half = SMALL["DDPMUNet"]().to(torch.bfloat16)
    assert half.time.of.schedule.table.dtype == torch.float64


def test_a_config_names_them():
    from vdiff import nn as networks

    made = build(
        networks,
        {"name": "VDMUNet", "width": 32, "depth": 1, "logsnr_max": 10.0, "checkpoint": True},
    )
    assert isinstance(made, VDMUNet)
    assert isinstance(made.time.of, ScaledGamma)
    assert made.time.of.logsnr_max == 10.0


def test_the_last_bits_need_float32():
    network = VDMUNet(width=32, depth=1)
    with pytest.raises(
        TypeError,
        match=(
            r"VDMUNet: argument 'z' must be in float32 or float64; got torch.bfloat16 \(its "
            r"features turn 128 times"
        ),
    ):
        weighted_elbo(Denoiser(network.to(torch.bfloat16), Eps()), batch()[0], schedule=Cosine())

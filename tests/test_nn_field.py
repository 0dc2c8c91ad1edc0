"""Networks that are told a field of log-SNR: a constant one is one number per example, what
differs within a field enters at the input, and a network without a field takes one on."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vdiff import Denoiser, Objective
from vdiff import nn as networks
from vdiff.decoder import Categorical
from vdiff.losses import VLB
from vdiff.nn import (
    MLP,
    DDPMUNet,
    IDDPMUNet,
    LevelHead,
    UNet,
    UNet1d,
    VDMUNet,
    split_field,
    with_field,
)
from vdiff.parameterization import V, X
from vdiff.schedule import Linear
from vdiff.training import Config
from vdiff.training.config import build

SMALL = {
    "MLP": (partial(MLP, 3, width=16), (3,)),
    "UNet": (partial(UNet, 2, width=16), (2, 8, 8)),
    "UNet1d": (partial(UNet1d, 2, width=16, attention=(1,)), (2, 16)),
    "VDMUNet": (partial(VDMUNet, width=32, depth=1, dropout=0.0), (3, 4, 4)),
    "DDPMUNet": (partial(DDPMUNet, width=32, multipliers=(1, 2), dropout=0.0), (3, 4, 4)),
    "IDDPMUNet": (partial(IDDPMUNet, width=32, multipliers=(1, 2), dropout=0.0), (3, 4, 4)),
}
DOUBLE = {"dtype": torch.float64}


def drawn(network: nn.Module) -> nn.Module:
    """With no weight at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return network


def batch(shape: tuple[int, ...], n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """z, a λ for each example, and a field."""
    generator = torch.Generator().manual_seed(1)
    z, field = (torch.randn(n, *shape, generator=generator, **DOUBLE) for _ in range(2))
    return z, torch.linspace(-5, 13.3, n, **DOUBLE), 4 * field


def column(logsnr: Tensor, z: Tensor) -> Tensor:
    return logsnr.view(-1, *(1 for _ in z.shape[1:]))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", SMALL)
def test_a_constant_field_is_one_number_per_example(name, dtype, close):
    """(batch, 1, …, 1) bit for bit, also with stride 0; expanded to rounding; of no other
    function than that of the network without a field."""
    make, shape = SMALL[name]
    network = drawn(make(field=True)).eval().to(dtype)
    scalar = make().eval().to(dtype)
    scalar.load_state_dict({n: p for n, p in network.state_dict().items() if "field" not in n})
    z, logsnr, _ = (v.to(dtype) for v in batch(shape))
    expected, constant = scalar(z, logsnr), column(logsnr, z)
    assert torch.equal(network(z, logsnr), expected)
    assert torch.equal(network(z, constant), expected)
    same = torch.tensor(2.7, dtype=dtype)
    stride_0 = same.expand(4, *(1 for _ in shape))
    assert torch.equal(network(z, stride_0), scalar(z, same.expand(4)))
    expanded = network(z, constant.expand_as(z).contiguous())
    assert (expanded - expected).abs().max() < close * expected.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_the_layer_of_the_field_draws_no_number_and_changes_no_weight(name):
    make, _ = SMALL[name]
    states = []
    for field in (False, True):
        torch.manual_seed(0)
        network = make(field=field)
        states.append((dict(network.named_parameters()), torch.get_rng_state()))
        assert network.field is field
    (scalar, after), (told, after_too) = states
    assert torch.equal(after, after_too)
    assert told.keys() - scalar.keys() == {"from_field.weight"}
    assert not told["from_field.weight"].any()
    assert all(torch.equal(parameter, told[n]) for n, parameter in scalar.items())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 5), (2, 1, 1), (2, 4, 5), (1, 1, 5)])
def test_a_field_is_its_mean_and_its_deviations(shape):
    """By the definition, in float64."""
    z = torch.zeros(3, 2, 4, 5, **DOUBLE)
    field = 5 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), **DOUBLE)
    level, deviation = split_field(field, z)
    whole = field.expand_as(z)
    assert torch.allclose(level, whole.flatten(1).mean(1), rtol=1e-14)
    mean = level.view(3, 1, 1, 1)
    expected = [
        (whole - mean) / 10,
        whole.sigmoid() ** 0.5 - mean.sigmoid() ** 0.5,
        (-whole).sigmoid() ** 0.5 - (-mean).sigmoid() ** 0.5,
    ]
    assert deviation.shape == (3, 6, 4, 5)
    for own, feature in zip(deviation.chunk(3, 1), expected, strict=True):
        assert torch.allclose(own, feature, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "VDMUNet"])
def test_a_network_is_one_with_a_wider_first_layer(name):
    """The deviations as more channels of z, the two layers' weights side by side."""
    make, shape = SMALL[name]
    network = drawn(make(field=True)).eval().double()
    z, _, field = batch(shape)
    level, deviation = split_field(field, z)
    first = network.layers[0] if name == "MLP" else network.first
    wide = type(first)(
        *(first.weight.shape[1] + 3 * z.shape[1], len(first.weight)),
        *([] if name == "MLP" else [3, 1, 1]),
        dtype=z.dtype,
    )
    wide.weight.data = torch.cat([first.weight, network.from_field.weight], 1)
    wide.bias.data = first.bias.data
    first.forward = lambda inputs: wide(torch.cat([inputs, deviation], 1))
    expected = network(z, level)
    del first.forward
    assert torch.allclose(network(z, field), expected, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(network(z, level), expected, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_a_field_counts_from_the_first_step_of_training(name):
    make, shape = SMALL[name]
    scalar = drawn(make()).double()
    network = with_field(scalar)
    z, logsnr, field = batch(shape)
    field = column(logsnr, z) + field - field.flatten(1).mean(1).view(-1, *(1 for _ in shape))
    assert torch.allclose(network.eval()(z, field), scalar.eval()(z, logsnr), rtol=1e-12)
    for told in (column(logsnr, z), field):
        network.zero_grad()
        network(z, told).square().mean().backward()
        assert all(p.grad is not None for p in network.parameters())  # DDP waits for each
        assert bool(network.from_field.weight.grad.any()) is (told is field)
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    assert not torch.allclose(network(z, field), network(z, logsnr), rtol=1e-9)


def test_the_gradient_of_a_field_is_the_derivative():
    network = drawn(MLP(2, width=8, features=8, field=True)).double()
    z, _, field = batch((2,))
    assert torch.autograd.gradcheck(partial(network, z), field.requires_grad_())


@pytest.mark.parametrize("name", SMALL)
def test_a_field_in_half_precision(name):
    make, shape = SMALL[name]
    network = drawn(make(field=True)).eval()
    z, _, field = (v.float() for v in batch(shape))
    plain = network(z, field)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (network(z, field) - plain).norm() < 0.03 * plain.norm()
    if name != "VDMUNet":
        half = network.bfloat16()(z.bfloat16(), field)
        assert half.dtype == torch.bfloat16
        assert (half - plain).norm() < 0.05 * plain.norm()


def test_a_level_head_tells_each_pixel_its_level():
    """Of independent pixels: each pixel's x̂ is that of a batch at its own λ."""
    decoder, inner = Categorical(5), UNet(2, channels_out=10, width=8, field=True)
    head = LevelHead(inner, decoder).double()
    z, logsnr, field = batch((2, 4, 4))
    x = head(z, field)
    for at in [(0, 0, 0, 0), (2, 1, 3, 2), (3, 0, 1, 1)]:
        one = torch.full((4,), field[at].item(), **DOUBLE)
        assert torch.allclose(head(z, one)[at], x[at], rtol=1e-12)
    assert torch.equal(head(z, column(logsnr, z)), head(z, logsnr))


def test_a_network_takes_a_field_on_and_stays_what_it_was():
    scalar = UNet(1, width=8).bfloat16().eval()
    scalar.first.bias.requires_grad_(False)
    network = with_field(scalar)
    assert (network.field, scalar.field, network.training) == (True, False, False)
    assert network.from_field.weight.dtype == torch.bfloat16
    assert not network.first.bias.requires_grad
    assert network.first.weight.data_ptr() != scalar.first.weight.data_ptr()
    again = with_field(drawn(network))
    assert torch.equal(again.from_field.weight, network.from_field.weight)
    head = LevelHead(UNet(1, channels_out=4, width=8), Categorical(4))
    assert (with_field(head).field, head.field) == (True, False)
    with torch.no_grad():
        network.from_field.reset_parameters()
    assert not network.from_field.weight.any()


def mlp(**options: object) -> nn.Module:
    return MLP(4, width=8, depth=1, features=8, **options)


def unet(**options: object) -> nn.Module:
    return UNet(1, channels_out=17, width=8, multipliers=(1,), **options)


SAVED = {
    "made": (lambda: mlp(field=True), V(), (4,)),
    "taken on": (lambda: with_field(mlp()), V(), (4,)),
    "head": (lambda: LevelHead(unet(field=True), Categorical(17)), X(), (1, 4, 4)),
    "head, taken on": (lambda: with_field(LevelHead(unet(), Categorical(17))), X(), (1, 4, 4)),
}


@pytest.mark.parametrize("name", SAVED)
def test_it_is_saved_and_built_again(name, tmp_path):
    make, target, shape = SAVED[name]
    network = drawn(make())
    objective = Objective(Denoiser(network, target), schedule=Linear(), loss=VLB(Categorical(17)))
    objective.save_pretrained(tmp_path)
    loaded = Objective.from_pretrained(tmp_path).model.network
    assert loaded.field is True
    z, _, field = (v.float() for v in batch(shape))
    assert torch.equal(loaded(z, field), network(z, field))


def test_a_config_describes_it():
    made = build(networks, {"name": "DDPMUNet", "width": 32, "multipliers": [1], "field": True})
    assert made.field
    config = Config(network={"name": "MLP", "dims": 2}, level_head=False, shape=[2])
    assert not config.objective().model.network.field
    assert config.override(["network.field=true"]).objective().model.network.field


ALIKE = r"must have shape \(batch,\), or 4 dimensions, each 1 or that of z, \(3, 1, 8, 8\); got \("


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda z: UNet(1, width=8)(z, z),
            ValueError,
            r"UNet: argument 'logsnr' must have shape \(batch,\): the network was made without "
            r"field=True; got \(3, 1, 8, 8\) \(with_field\(network\) takes a field",
        ),
        (lambda z: MLP(2)(z[:, 0, 0, :2], z[:, 0, 0, :2]), ValueError, "MLP: .* field=True; got"),
        (lambda z: VDMUNet(1, width=32, depth=1)(z, z), ValueError, "VDMUNet: .*without field=T"),
        (lambda z: UNet(1, width=8, field=True)(z, z[:, 0]), ValueError, "UNet: .*" + ALIKE),
        (lambda z: UNet(1, width=8, field=True)(z, z[:1]), ValueError, ALIKE + "1, 1, 8, 8"),
        (lambda z: UNet(1, width=8, field=True)(z, z[..., :4]), ValueError, ALIKE + "3, 1, 8, 4"),
        (lambda z: UNet(1, width=8, field=True)(z, z[0, 0, 0, 0]), ValueError, ALIKE + r"\)"),
        (
            lambda z: MLP(2, field=True)(z[:, 0, 0, :2], z[:, 0, 0, :3]),
            ValueError,
            r"MLP: argument 'logsnr' must have shape \(batch,\), or 2 dimensions",
        ),
        (
            lambda z: LevelHead(lambda z, logsnr: z, Categorical(4))(z, z),
            ValueError,
            "LevelHead: argument 'logsnr' must have shape .*without field=True",
        ),
        (lambda z: split_field(z[:, :, 0], z), ValueError, "split_field: .*" + ALIKE),
        (
            lambda z: with_field(nn.Linear(2, 2)),
            TypeError,
            r"with_field: argument 'network' must be a network of vdiff.nn; got Linear \(in a net",
        ),
        (
            lambda z: with_field(LevelHead(nn.Identity(), Categorical(4))),
            TypeError,
            "with_field: argument 'network' must be a network of vdiff.nn; got Identity",
        ),
    ],
)  # fmt: skip
def test_what_is_no_field_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(3, 1, 8, 8))

"""Networks: published sizes, the level head against Bayes' rule, conditions."""

import pytest
import torch

from vdiff import Denoiser, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.nn import MLP, FourierFeatures, LevelHead, UNet, UNet1d
from vdiff.oracle import Lattice
from vdiff.parameterization import X
from vdiff.schedule import Linear


def test_the_level_head_with_the_right_logits_is_the_exact_denoiser():
    """Logits equal to the log-probabilities of independent pixels: x̂ is the lattice's posterior
    mean."""
    decoder = Categorical(levels=5)
    pmf = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.25])
    oracle = Lattice(decoder.level_values, pmf)
    head = LevelHead(
        lambda z, logsnr: pmf.log().repeat(2)[None, :, None].expand(len(z), 10, 3), decoder
    )
    z = torch.randn(64, 2, 3, generator=torch.Generator().manual_seed(0))
    logsnr = torch.linspace(-8, 12, 64)
    known = oracle(z.view(64 * 6, 1), logsnr.repeat_interleave(6)).x.view(64, 2, 3)
    assert torch.allclose(head(z, logsnr), known, atol=2e-5)


def test_the_level_head_lays_logits_out_channel_by_channel():
    decoder = Categorical(levels=3)
    logits = torch.zeros(1, 6, 1, 1)
    logits[0, 0], logits[0, 5] = 50.0, 50.0  # channel 0 surely level 0, channel 1 surely level 2
    head = LevelHead(lambda z, logsnr: logits, decoder)
    x = head(torch.zeros(1, 2, 1, 1), torch.tensor([-20.0]))
    assert torch.allclose(x.flatten(), decoder.level_values.float()[[0, 2]])
    with pytest.raises(
        ValueError,
        match=(
            r"LevelHead: argument 'network' must return channels × levels logits, shape \(1, 6, "
            r"1, 1\)"
        ),
    ):
        LevelHead(lambda z, logsnr: z, decoder)(torch.zeros(1, 2, 1, 1), torch.zeros(1))


def test_published_sizes():
    assert sum(p.numel() for p in MLP(2).parameters()) == 37_762
    assert (
        3.5e5 < sum(p.numel() for p in UNet(3, width=24, multipliers=(1, 2)).parameters()) < 4.5e5
    )


def test_networks_start_at_zero_where_they_promise_and_learn_a_condition():
    torch.manual_seed(0)
    network = UNet(1, width=8, multipliers=(1, 2), labels=10)
    z, logsnr = torch.randn(4, 1, 8, 8), torch.zeros(4)
    assert (network(z, logsnr, label=torch.arange(4)) == 0).all()
    with pytest.raises(
        ValueError, match="'label' must be given: the network was made for 10 labels"
    ):
        network(z, logsnr)
    with pytest.raises(
        ValueError, match=r"UNet: argument 'label' must lie in 0 … 9; got values from 1 to 10"
    ):
        network(z, logsnr, label=torch.tensor([1, 2, 3, 10]))
    with pytest.raises(ValueError, match="divisible by 2"):
        network(torch.randn(4, 1, 7, 7), logsnr, label=torch.arange(4))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before = weighted_elbo(
        Denoiser(network, X()),
        z,
        schedule=Linear(),
        t=torch.full((4,), 0.5),
        eps=torch.ones_like(z),
        condition={"label": torch.arange(4)},
    )
    after = weighted_elbo(
        Denoiser(network, X()),
        z,
        schedule=Linear(),
        t=torch.full((4,), 0.5),
        eps=torch.ones_like(z),
        condition={"label": torch.arange(4) + 5},
    )
    assert not torch.allclose(before, after)


def test_the_one_dimensional_network_is_the_two_dimensional_one_on_a_single_row():
    """Of 3×3 kernels, an image of height 1 sees the middle row alone."""
    torch.manual_seed(0)
    size = {"width": 16, "multipliers": (1,), "attention": (0,), "labels": 3}
    series, image = UNet1d(2, **size), UNet(2, **size)
    for parameter in series.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for own, theirs in zip(image.parameters(), series.parameters(), strict=True):
        own.data.normal_()  # the rows that are not seen
        if own.ndim == 4:
            own.data[:, :, own.shape[2] // 2] = theirs.data
        else:
            own.data.copy_(theirs.data)
    z, logsnr, label = torch.randn(4, 2, 32), torch.linspace(-4, 4, 4), torch.tensor([0, 1, 2, 0])
    expected = image(z[:, :, None], logsnr, label=label)[:, :, 0]
    assert torch.allclose(series(z, logsnr, label=label), expected, rtol=1e-4, atol=1e-5)


def test_the_one_dimensional_network_halves_and_takes_sequences_alone():
    network = UNet1d(1, width=16, multipliers=(1, 2, 2), channels_out=2)
    assert network(torch.randn(3, 1, 16), torch.zeros(3)).shape == (3, 2, 16)
    assert {layer.kernel_size for layer in network.shrink} == {(3,)}
    with pytest.raises(ValueError, match=r"UNet1d: argument 'z' must have length divisible by 4"):
        network(torch.randn(3, 1, 18), torch.zeros(3))
    with pytest.raises(ValueError, match=r"must have shape \(batch, channels, length\); got \(3"):
        network(torch.randn(3, 1, 8, 8), torch.zeros(3))
    with pytest.raises(ValueError, match=r"must have shape \(batch, channels, height, width\)"):
        UNet(1)(torch.randn(3, 1, 8), torch.zeros(3))


def test_features_of_the_noise_level_stay_in_float32_under_autocast_and_half():
    features = FourierFeatures(16)
    level = torch.tensor([13.3, -5.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(level), features(level.clone()))
        assert features(level).dtype == torch.float32
    angle = level.double()[:, None] * features.frequencies.double()
    assert torch.allclose(
        features(level), torch.cat([angle.sin(), angle.cos()], 1).float(), atol=2e-6
    )

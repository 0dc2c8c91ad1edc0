"""The Transformer over tokens: what each output depends on, positions, λ, and a bound."""

import pytest
import torch
from torch import nn

from vdiff import weighted_elbo
from vdiff.denoiser import logsnr_time
from vdiff.discrete import Masked, TokenDenoiser
from vdiff.nn import Transformer
from vdiff.nn.transformer import Neighbours, Rotation, rotated
from vdiff.schedule import Linear
from vdiff.training.structure import parts_of

SMALL = {"length": 12, "width": 16, "depth": 2, "heads": 2}


def drawn(**options):
    """A network whose layers do not start at zero."""
    torch.manual_seed(0)
    network = Transformer(5, **SMALL | options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def test_its_states_hold_the_mask_and_its_first_prediction_is_uniform():
    network = Transformer(5, **SMALL)
    tokens = torch.tensor([[0, 4, 5], [5, 5, 5]])
    assert network(tokens).shape == (2, 3, 5)
    assert (network(tokens) == 0).all()
    model = TokenDenoiser(network, Masked(5))
    loss = weighted_elbo(model, tokens % 5, schedule=Linear(8.0, -8.0))
    loss.sum().backward()
    assert network.last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("neighbours", [0, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_an_output_depends_on_the_tokens_that_it_may_see(causal, neighbours):
    network = drawn(causal=causal, neighbours=neighbours)
    tokens = torch.arange(12)[None] % 6
    first = network(tokens)
    for place in range(12):
        other = tokens.clone()
        other[:, place] = (tokens[:, place] + 1) % 6
        differs = (network(other) - first).abs().amax((0, 2)) > 1e-9
        sees = torch.arange(12) >= place if causal else torch.ones(12, dtype=torch.bool)
        assert torch.equal(differs, sees)


@pytest.mark.parametrize(("causal", "seen"), [(False, [5, 6, 7, 8, 9]), (True, [5, 6, 7, 8, 9])])
def test_the_convolution_sees_the_neighbours(causal, seen):
    layer = Neighbours(4, 2, causal=causal)
    h = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer(h)[0, 7 if not causal else 9].sum().backward()
    assert h.grad[0].abs().sum(1).nonzero()[:, 0].tolist() == seen


def test_a_shorter_sequence_is_the_start_of_a_causal_one():
    network, tokens = drawn(causal=True), torch.arange(12)[None] % 6
    torch.testing.assert_close(network(tokens[:, :7]), network(tokens)[:, :7])


def test_attention_depends_on_the_distance_of_two_places_alone():
    """A block gives the same when all places are moved, and another when their order is turned."""
    block, h = drawn().blocks[0], torch.randn(2, 7, 16, dtype=torch.float64)
    cos, sin = Rotation(20, 8)(20)
    here = block(h, (cos[:7].double(), sin[:7].double()))
    moved = block(h, (cos[5:12].double(), sin[5:12].double()))
    torch.testing.assert_close(moved, here, rtol=0, atol=1e-6)
    turned = block(h, (cos[:7].flip(0).double(), sin[:7].flip(0).double()))
    assert (turned - here).abs().max() > 1e-3


def test_a_rotation_turns_pairs_and_keeps_their_length():
    v = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 1, 12, 8)
    turned = rotated(v, Rotation(12, 8)(12))
    pairs, own = (torch.complex(*w.chunk(2, -1)) for w in (turned, v))
    angle = torch.arange(12.0)[:, None] * 10_000 ** (-torch.arange(4.0) / 4)
    torch.testing.assert_close(pairs, own * torch.exp(1j * angle), rtol=1e-5, atol=1e-5)


def test_with_time_it_depends_on_the_level_and_without_it_takes_none():
    tokens = torch.arange(12).expand(2, -1) % 6
    network = drawn(time=True)
    model = TokenDenoiser(network, Masked(5), time=logsnr_time)
    level = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    apart = model(tokens, level).logits
    assert (apart[0] - apart[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="'logsnr' must be given: the network was made with time"):
        network(tokens)
    with pytest.raises(ValueError, match="'logsnr' must be left out: the network was made with"):
        drawn()(tokens, level)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'width' must be a multiple of twice the heads, 6; got"):
        Transformer(5, length=12, width=16, depth=1, heads=3)
    with pytest.raises(ValueError, match=r"'z' must have shape \(batch, length ≤ 12\); got"):
        drawn()(torch.zeros(1, 13, dtype=torch.long))


def test_it_is_made_again_after_the_meta_device():
    network = Transformer(5, **SMALL)
    rotation = network.rotation.cos.clone()
    network.to("meta").to_empty(device="cpu").rotation.reset_parameters()
    assert torch.equal(network.rotation.cos, rotation)
    assert parts_of(network)


def test_dropout_acts_in_training_alone():
    network, tokens = drawn(dropout=0.5), torch.arange(12)[None] % 6
    assert torch.equal(network(tokens), network(tokens))
    network.train()
    assert not torch.equal(network(tokens), network(tokens))

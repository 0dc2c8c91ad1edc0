"""Models over tokens: what they are told, what is refused, and predictions as tensors."""

import copy
import io

import pytest
import torch
from processes import close, each_process, wrong
from tokens import Conditionals, pairs
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from vdiff import weighted_elbo
from vdiff.denoiser import logsnr_time
from vdiff.discrete import LeaveOneOut, Masked, TokenDenoiser, Uniform
from vdiff.errors import InvalidType, InvalidValue
from vdiff.schedule import Linear, LogLinear


def test_bad_tokens_and_logits_are_refused():
    process, noise = Masked(3), torch.rand(1, 2)
    with pytest.raises(InvalidValue, match="the mask is no value of the data"):
        process.corrupt(torch.tensor([[0, 3]]), noise, torch.zeros(1))
    with pytest.raises(InvalidValue, match="lie in 0 … 2"):
        process.prior(torch.tensor([[0, -1]]), 0.0)
    with pytest.raises(InvalidType, match="integer tokens"):
        process.corrupt(torch.tensor([[0.0, 1.0]]), noise, torch.zeros(1))
    with pytest.raises(InvalidValue, match="shape of x"):
        process.corrupt(torch.tensor([[0, 1]]), noise[0], torch.zeros(1))
    z = torch.tensor([[0, 1]])
    for width, process in (5, Masked(3)), (2, Masked(3)), (4, Uniform(3)):
        with pytest.raises(InvalidValue, match="return logits"):
            TokenDenoiser(nn.Embedding(4, width), process)(z, torch.zeros(1))
    with pytest.raises(InvalidType, match="return a tensor"):
        TokenDenoiser(lambda z: (z,), process)(z, torch.zeros(1))
    with pytest.raises(InvalidType, match="Process"):
        TokenDenoiser(nn.Embedding(4, 3), "masked")


class Output(dict):
    """As a network of Hugging Face returns it."""

    logits = torch.zeros(1, 2, 3)


@pytest.mark.parametrize(
    ("returned", "hint"),
    [((0,), r"out\[0\]"), (Output(logits=0), r"out\.logits"), ({"l": 0}, r"out\['l'\]")],
)
def test_the_hint_says_where_the_logits_lie(returned, hint):
    with pytest.raises(InvalidType, match=rf"network that returns {hint}"):
        TokenDenoiser(lambda z: returned, Masked(3))(torch.tensor([[0, 1]]), torch.zeros(1))


def test_the_order_of_logits_is_named():
    z, model = torch.tensor([[0, 1]]), TokenDenoiser(lambda z: torch.zeros(1, 3, 2), Masked(3))
    with pytest.raises(InvalidValue, match=r"vocabulary\), as .* logits.movedim\(1, -1\)"):
        model(z, torch.zeros(1))
    with pytest.raises(InvalidValue, match=r"order \(batch, length, vocabulary\); the mask's is"):
        TokenDenoiser(nn.Embedding(4, 9), Masked(3))(z, torch.zeros(1))


def test_an_embedding_without_a_row_for_the_mask_is_named():
    model, z = TokenDenoiser(nn.Embedding(3, 3), Masked(3)), torch.tensor([[0, 3]])
    with pytest.raises(IndexError) as caught:
        model(z, torch.zeros(1))
    assert "has 3 rows: it needs 4, one for the mask" in caught.value.__notes__[-1]


def test_a_prompt_for_a_network_with_a_time_needs_a_field():
    seen = []
    network = lambda z, t: (seen.append(t), torch.zeros(*z.shape, 3))[1]  # noqa: E731
    prompt, x = torch.tensor([True, False]), torch.tensor([[0, 1]])
    given = {"schedule": LogLinear(9.0, -9.0), "mask": ~prompt}
    with pytest.raises(InvalidValue, match=r"which says what is given: TokenDenoiser\(…, field"):
        weighted_elbo(TokenDenoiser(network, Uniform(3), time=logsnr_time), x, **given)
    model = TokenDenoiser(network, Uniform(3), time=logsnr_time, field=True)
    weighted_elbo(model, x, **given)
    assert seen[-1].shape == (1, 2)
    assert abs(seen[-1][0, 0] - 9) < 1e-4  # it is given
    assert seen[-1][0, 1] < 8.9


def test_an_ordinary_posterior_that_is_said_to_leave_out_is_found_on_request():
    log_p, x = pairs()
    process, logsnr = Uniform(3), torch.zeros(9)
    for leaves_out in True, False:
        network = Conditionals(log_p, x, process, leave_one_out=leaves_out)
        model = TokenDenoiser(network, process, LeaveOneOut(), time=logsnr_time)
        if leaves_out:
            assert model.check_leave_one_out(x, logsnr) is model
        else:
            with pytest.raises(InvalidValue, match="token 0"):
                model.check_leave_one_out(x, logsnr)


def test_the_mask_s_logit_is_ignored():
    z, wide = torch.tensor([[3, 1]]), torch.randn(1, 2, 4)
    with_mask = TokenDenoiser(lambda z: wide, Masked(3))(z, torch.zeros(1))
    without = TokenDenoiser(lambda z: wide[..., :3], Masked(3))(z, torch.zeros(1))
    assert torch.equal(with_mask.posterior, without.posterior)


def test_a_network_is_told_time_or_none_or_a_field():
    told = []

    def network(z, time=None):
        told.append(time)
        return torch.zeros(*z.shape, 3)

    z, logsnr = torch.tensor([[3, 1]] * 2), torch.tensor([1.0, 2.0], dtype=torch.float64)
    TokenDenoiser(network, Masked(3))(z, logsnr)
    TokenDenoiser(network, Masked(3), time=logsnr_time)(z, logsnr[:, None])
    TokenDenoiser(network, Masked(3), time=logsnr_time, field=True)(z, logsnr)
    assert told[0] is None
    assert [v.shape for v in told[1:]] == [(2,), (2, 1)]
    with pytest.raises(InvalidValue, match="one number per example"):
        TokenDenoiser(network, Masked(3), time=logsnr_time)(z, torch.tensor([[1.0, 2.0]] * 2))


def test_predictions_are_cut_and_copied():
    at = Linear().at(torch.full((2,), 0.5))
    prediction = wrong(Uniform(3))(torch.tensor([[0, 1], [2, 1]]), at.logsnr)
    part = prediction.rows(torch.tensor([1]))
    close(part.posterior, prediction.posterior[1:])
    close(copy.deepcopy(prediction).posterior, prediction.posterior)
    modelled = torch.tensor([[True, False], [True, True]])
    masked = prediction.replace(modelled=modelled)
    x = torch.tensor([[0, 1], [1, 1]])
    terms = prediction.process.integrand(prediction.leave_one_out, prediction.z, x, at.logsnr)
    close(
        masked.loss(x, None, at),
        (terms * modelled * at.rate[:, None]).sum(1),
        rtol=1e-6,
        atol=1e-9,
    )
    close(masked.log_prob(x)[0], prediction.posterior[0, 0, 0])


@each_process
def test_a_prediction_is_a_pytree_of_its_tensors(process):
    torch.manual_seed(0)
    model = TokenDenoiser(nn.Embedding(process.states, process.vocabulary), process)
    z, t = torch.tensor([[0, 1], [2, 2]]), torch.zeros(2, dtype=torch.float64)
    prediction = model(z, t)
    leaves, spec = tree_flatten(prediction)
    assert [leaf.shape for leaf in leaves] == [(2, 2), (2,), (2, 2, process.vocabulary)]
    assert vars(tree_unflatten(leaves, spec)) == vars(prediction)
    apart = torch.vmap(model)(z[:, None], t[:, None])
    torch.testing.assert_close(apart.logits[:, 0], prediction.logits)
    assert apart.process is process


def test_a_model_over_tokens_is_exported():
    model = TokenDenoiser(nn.Embedding(4, 3), Masked(3), LeaveOneOut())
    given, file = (torch.tensor([[0, 3], [3, 2]]), torch.zeros(2)), io.BytesIO()
    torch.export.save(torch.export.export(model, given), file)
    file.seek(0)
    loaded = torch.export.load(file).module()(*given)
    assert (loaded.process.vocabulary, repr(loaded.parameterization)) == (3, "LeaveOneOut()")
    torch.testing.assert_close(loaded.posterior, model(*given).posterior)

"""What an objective over tokens is: a bound, an ELBO of data with more masks, or none."""

import json
import math

import pytest
import torch
from registry import PROCESSES
from tokens import Conditionals, every_z, expected_loss, gauss, pairs, probability
from torch import nn

from vdiff import Objective, cli, recipe, weighted_elbo
from vdiff.cli import main
from vdiff.denoiser import logsnr_time
from vdiff.describe import describe
from vdiff.discrete import AnyOrder, Hybrid, Masked, TokenDenoiser, Uniform
from vdiff.errors import InvalidType, InvalidValue
from vdiff.objective import Weighted
from vdiff.recipes import TOKEN_RECIPES
from vdiff.schedule import Cosine, Linear, LogLinear
from vdiff.weighting import EDM, Sigmoid


def objective(process, schedule=None, **loss):
    network = nn.Embedding(process.states, process.vocabulary)
    schedule = LogLinear(7.0, -7.0) if schedule is None else schedule
    return Objective(TokenDenoiser(network, process), schedule=schedule, loss=Weighted(**loss))


def test_a_bound_is_named():
    for process, name in [
        (Masked(5), "MDLM (arXiv:2406.07524), MD4"), (AnyOrder(5), "ARDM"),
        (Uniform(5), "UDLM"), (Hybrid.gidd(5), "GIDD"),
    ]:  # fmt: skip
        for schedule in LogLinear(7.0, -7.0), Cosine(9.0, -9.0):
            described = describe(objective(process, schedule))
            assert (described.is_bound, described.monotone) == (True, True)
            assert name in described.published
            assert "the evidence lower bound itself" in str(described)
    chain = describe(objective(Masked(5), steps=100))
    assert chain.is_bound
    assert "D3PM" in chain.published


def test_other_losses_are_no_bound():
    told = {
        "ELBO of data with tokens masked": objective(Masked(5), weighting=Sigmoid(1.0)),
        "w rises for λ from -7.0 to -3.3": objective(Masked(5), weighting=EDM()),
        "lie on no one path": objective(Masked(5), independent=(1,)),
        "ELBO of data with tokens lost": objective(Uniform(5), weighting=Sigmoid(1.0)),
    }
    for words, one in told.items():
        described = describe(one)
        assert not described.is_bound
        assert words in str(described)
        assert not described.published
    assert describe(objective(Masked(5), weighting=Sigmoid(1.0))).monotone
    assert not describe(objective(Masked(5), weighting=EDM())).monotone


def test_plain_cross_entropy_of_masked_tokens():
    """With α = 1 − t and w = 1 − α each draw is a constant times the sum over masked tokens."""
    one = objective(Masked(5), weighting=Sigmoid(0.0))
    described = describe(one)
    assert described.plain
    assert "MaskGIT" in described.published
    assert not describe(objective(Masked(5), Linear(7.0, -7.0), weighting=Sigmoid(0.0))).plain
    x = torch.randint(0, 5, (64, 3))
    eps, t = torch.rand(64, 3, dtype=torch.float64), torch.rand(64)
    options = {"schedule": one.schedule, "weighting": Sigmoid(0.0), "t": t, "eps": eps}
    with torch.no_grad():
        loss = weighted_elbo(one.model, x, **options).double()
        z = one.model.process.corrupt(x, eps, one.schedule(t))
        nll = -one.model(z, one.schedule(t)).log_probs.gather(-1, x[..., None])[..., 0]
    plain = torch.where(z == 5, nll, 0.0).sum(1).double()
    some = plain > 0
    ratio = loss[some] / plain[some]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_loss_beyond_a_level_is_the_kl_of_its_tokens(kind):
    """∫ f from λ_min to λ, with the prior, is KL(q(z_λ | x) ‖ p(z_λ)) for exact conditionals, here
    of another distribution than the data's: a monotone weighting is a mixture of such KLs."""
    log_p, x = pairs()
    process = PROCESSES[kind]()
    model = TokenDenoiser(Conditionals(log_p, x, process), process, time=logsnr_time)
    for level in -1.0, 1.5:
        beyond = expected_loss(model, x, Linear(level, -14.0), *gauss(60))
        total = beyond + process.prior(x, -14.0)
        rows, z = every_z(process, x)
        logsnr = torch.full((len(z),), level, dtype=torch.float64)
        q = probability(process, z, x[rows], logsnr)
        joint = torch.stack([probability(process, z, row.expand_as(z), logsnr) for row in x])
        marginal = (log_p.exp()[:, None] * joint).sum(0)
        kl = torch.where(q > 0, q * (q / marginal).log(), 0.0)
        kl = torch.zeros(len(x), dtype=torch.float64).index_add(0, rows, kl)
        # p(z₁) differs from the exact marginal at λ_min by the prior's KL to it alone
        torch.testing.assert_close(total, kl, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", TOKEN_RECIPES)
def test_published_constants(name):
    described, one = describe(name), recipe(name)
    assert described.is_bound
    assert one.source.split(":")[1] in str(described)
    gpt2, cut = 50257, math.log(999)
    high, low = one.schedule.logsnr_max, one.schedule.logsnr_min
    expected = {
        "mdlm": ("Masked(50257)", math.log((1 - 0.999e-3) / 0.999e-3), -cut),
        "md4": ("Masked(50257)", math.log(9999), -math.log(9999)),
        "llada": ("Masked(126464, mask=126336)", cut, -15.0),
        "gidd": (f"Hybrid({gpt2}, gidd(uniform=0.1))", 15.0, -15.0),
    }[name]
    assert (repr(one.process), pytest.approx(high), pytest.approx(low)) == expected
    mine = Hybrid.gidd(5) if name == "gidd" else Masked(5)
    network = nn.Embedding(mine.states, 5)
    made = one.objective(TokenDenoiser(network, mine, one.parameterization))
    assert repr(made.loss) == "Weighted(ELBO())"
    assert describe(made).published == described.published
    with pytest.raises(InvalidValue, match="argument 'model' must have a process of the kind"):
        one.objective(TokenDenoiser(nn.Embedding(5, 5), Uniform(5)))


def test_what_cannot_be_described():
    with pytest.raises(InvalidType, match="be a Recipe or the name of one"):
        describe(nn.Linear(1, 1))
    with pytest.raises(InvalidValue, match=r"argument 'objective.loss' must be Weighted"):
        describe(objective(Masked(5), weighting=lambda logsnr: logsnr.sigmoid()))


def test_the_command(capsys):
    assert cli.main(["describe", "mdlm"]) == 0
    assert "MD4" in capsys.readouterr().out
    assert cli.main(["describe", "gidd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["is_bound"] is True
    assert cli.main(["describe", "mdlm", "--compare", "edm"]) != 0


def test_the_command_describes_an_objective_over_tokens_of_a_file(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from torch import nn\n"
        "from vdiff import Objective\n"
        "from vdiff.denoiser import Denoiser\n"
        "from vdiff.discrete import Masked, TokenDenoiser\n"
        "from vdiff.parameterization import Eps\n"
        "from vdiff.schedule import Cosine, LogLinear\n"
        "tokens = TokenDenoiser(nn.Embedding(4, 3), Masked(3))\n"
        "text = Objective(tokens, schedule=LogLinear())\n"
        "pictures = Objective(Denoiser(nn.Identity(), Eps()), schedule=Cosine())\n"
    )
    assert main(["describe", f"{mine}:text"]) == 0
    assert "Masked(3), continuous time" in capsys.readouterr().out
    assert main(["describe", f"{mine}:pictures"]) == 2
    error = capsys.readouterr().err
    assert "got an Objective with Gaussian noise (Recipe(name, schedule" in error

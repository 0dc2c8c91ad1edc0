"""`evaluate`: the right number, and errors that mean what they say."""

import math

import pytest
import torch

from vdiff import Denoiser, Prediction
from vdiff.decoder import Categorical
from vdiff.likelihood import Estimate, VarianceReduction, evaluate
from vdiff.nn import MLP
from vdiff.oracle import Lattice
from vdiff.parameterization import X
from vdiff.profile import Profile
from vdiff.schedule import Linear

PMF = [0.5, 0.3, 0.15, 0.05]
DECODER = Categorical(levels=4)
ORACLE = Lattice(DECODER.level_values, PMF)
SCHEDULE = Linear(7.0, -6.0)


def draw(n: int, seed: int) -> torch.Tensor:
    return torch.multinomial(
        torch.tensor(PMF), n, replacement=True, generator=torch.Generator().manual_seed(seed)
    )[:, None]


def test_the_bound_of_an_oracle_is_its_known_bits():
    """Data in the exact proportions of the pmf: the only error left is the Monte Carlo one."""
    data = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 60, 30, 10]))[:, None]
    report = evaluate(
        ORACLE, data, schedule=SCHEDULE, decoder=DECODER, draws=64, replicates=8, seed=3
    )
    bound = ORACLE.bound(7.0, -6.0, DECODER)
    for name in ("prior", "diffusion", "reconstruction", "total"):
        estimate: Estimate = getattr(report, name)
        known = getattr(bound, name).item() / math.log(2)
        assert abs(estimate.value - known) < 4 * estimate.monte_carlo + 1e-6, name
    assert report.total.monte_carlo < 0.03


def test_the_standard_errors_are_those_of_repeated_evaluations():
    """Over fresh seeds on the same images the estimates spread by `monte_carlo`; over fresh
    images, by `images`."""
    fixed = draw(40, seed=0)
    same = [
        evaluate(
            ORACLE, fixed, schedule=SCHEDULE, decoder=DECODER, draws=4, replicates=8, seed=s
        ).total
        for s in range(200)
    ]
    spread = torch.tensor([e.value for e in same]).std().item()
    claimed = torch.tensor([e.monte_carlo for e in same]).square().mean().sqrt().item()
    assert spread == pytest.approx(claimed, rel=4 / math.sqrt(2 * 200))
    fresh = [
        evaluate(
            ORACLE,
            draw(40, seed=s),
            schedule=SCHEDULE,
            decoder=DECODER,
            draws=16,
            replicates=4,
            seed=s,
        ).total
        for s in range(200)
    ]
    spread = torch.tensor([e.value for e in fresh]).std().item()
    claimed = torch.tensor([e.images for e in fresh]).square().mean().sqrt().item()
    assert spread == pytest.approx(claimed, rel=4 / math.sqrt(2 * 200))
    assert (
        claimed > torch.tensor([e.monte_carlo for e in fresh]).square().mean().sqrt()
    )  # which it contains


@pytest.mark.parametrize("dims", [1, 8])
def test_a_tolerance_is_in_bits_per_dimension_and_reached_without_waste(dims):
    """The first stage is small, so that the second decides; its number of replicates is whole,
    which is all that may be over."""
    data = draw(30 * dims, seed=4).view(30, dims)

    def model(z, logsnr):
        flat = ORACLE(z.reshape(-1, 1), logsnr.repeat_interleave(dims))
        return Prediction(z, logsnr, flat.output.view(z.shape), flat.parameterization)

    tolerance = 0.04 / math.sqrt(dims)
    found = evaluate(
        model,
        data,
        schedule=SCHEDULE,
        decoder=DECODER,
        tolerance=tolerance,
        draws=4,
        plan=VarianceReduction(antithetic=False),
    ).total
    assert 0.9 * tolerance < found.monte_carlo <= tolerance


def test_one_image_does_not_depend_on_the_others_and_none_is_dropped():
    data = draw(7, seed=1)
    whole = evaluate(
        ORACLE, data, schedule=SCHEDULE, decoder=DECODER, draws=8, replicates=2, batch=24
    )
    assert whole.protocol["images"] == 7
    first = evaluate(
        ORACLE, data[:3], schedule=SCHEDULE, decoder=DECODER, draws=8, replicates=2, batch=24
    )
    rest = evaluate(
        ORACLE, data[3:], schedule=SCHEDULE, decoder=DECODER, draws=8, replicates=2, batch=24
    )
    mean_prior = (3 * first.prior.value + 4 * rest.prior.value) / 7
    assert whole.prior.value == pytest.approx(mean_prior, abs=1e-12)


def test_the_profile_is_the_mmse_and_the_model_is_left_as_it_was():
    data = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 60, 30, 10]))[:, None]
    profile = Profile(logsnr_max=6.0, logsnr_min=-6.0, bins=12)
    evaluate(
        ORACLE,
        data,
        schedule=Linear(6.0, -6.0),
        decoder=DECODER,
        draws=64,
        replicates=4,
        profile=profile,
    )
    fine = torch.linspace(-6.0, 6.0, 12 * 20 + 1, dtype=torch.float64)
    middle = 0.5 * (fine[1:] + fine[:-1])
    known = ORACLE.mmse(middle).view(12, 20).mean(1)
    assert ((profile.mean - known).abs() < 4 * profile.standard_error + 1e-9).all()
    network = torch.nn.Sequential(torch.nn.Dropout(0.5))
    model = Denoiser(lambda z, logsnr: network(z), X())
    model.add_module("inner", network)
    model.train()
    network.eval()
    evaluate(model, data, schedule=SCHEDULE, decoder=DECODER, draws=2, replicates=2)
    assert model.training
    assert not network.training


def test_a_chain_is_looser_than_the_limit_and_a_bad_model_is_named():
    data = torch.repeat_interleave(torch.arange(4), torch.tensor([50, 30, 15, 5]))[:, None]
    chain = evaluate(
        ORACLE, data, schedule=SCHEDULE, decoder=DECODER, steps=16, draws=64, replicates=4
    ).total
    limit = ORACLE.bound(7.0, -6.0, DECODER).total.item() / math.log(2)
    assert chain.value - limit > 4 * chain.monte_carlo
    broken = Denoiser(lambda z, logsnr: torch.where(z > 0.0, torch.nan, z), X())
    with pytest.raises(
        ValueError,
        match=(
            r"evaluate: argument 'model' must give a finite bound; got NaN or infinity on image "
            r"\d+"
        ),
    ):
        evaluate(broken, data, schedule=SCHEDULE, decoder=DECODER, draws=2, replicates=2)
    with pytest.raises(ValueError, match="replicates' must be at least 2"):
        evaluate(Denoiser(MLP(1), X()), data, schedule=SCHEDULE, decoder=DECODER, replicates=1)

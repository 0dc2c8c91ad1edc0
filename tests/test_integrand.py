"""The bound of an image at one (t, ε): its levels, its error, and what is not finite."""

import pytest
import torch

from vdiff import Prediction
from vdiff.decoder import Categorical, Gaussian
from vdiff.likelihood._models import Finite
from vdiff.likelihood.difference import Difference
from vdiff.likelihood.integrand import Integrand, finite_images
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.parameterization import Eps
from vdiff.schedule import Cosine, Linear

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.6, -0.2]], [[0.04, 0.3], [0.09, 0.2]])
WRONG = GaussianMixture(
    [0.6, 0.4], [[-1.2, 0.5], [0.6, 0.0]], [[0.06, 0.2], [0.09, 0.3]]
)  # a model that is not the data's
X = DATA.sample(24, torch.Generator().manual_seed(3))
SCHEDULE = Linear(9.0, -7.0)


def test_the_levels_of_an_integrand_are_linear_and_a_chain_keeps_its_steps():
    data = torch.arange(4)[:, None]
    oracle, decoder = Lattice(Categorical(4).level_values, [0.4, 0.3, 0.2, 0.1]), Categorical(4)
    limit, t = (
        Integrand(oracle, data, Cosine(9.0, -7.0), decoder),
        torch.tensor([0.1, 0.25, 0.9], dtype=torch.float64),
    )
    level, measure = limit.levels(t)
    torch.testing.assert_close(level, 9 - 16 * t)
    torch.testing.assert_close(measure, torch.full_like(t, 16.0))
    chain = Integrand(oracle, data, Cosine(9.0, -7.0), decoder, steps=4)
    assert chain.times(t).tolist() == [0.25, 0.5, 1.0]
    torch.testing.assert_close(
        chain.levels(t)[0], Cosine(9.0, -7.0)(torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64))
    )


@pytest.mark.parametrize("kind", [Integrand, Difference])
def test_the_error_of_the_last_call_and_its_diffusion_term_agree(kind):
    """½ m ‖ε − ε̂‖² with m = 16."""
    models = [WRONG] if kind is Integrand else [WRONG, DATA]
    integrand, t = (
        kind(*models, X, SCHEDULE, Gaussian()),
        torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64),
    )
    rows, eps = (
        torch.tensor([3, 1, 4]),
        torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    terms = [
        8
        * (
            eps
            - one(
                X[rows] * (9 - 16 * t).sigmoid().sqrt()[:, None]
                + (16 * t - 9).sigmoid().sqrt()[:, None] * eps,
                9 - 16 * t,
            ).eps
        )
        .square()
        .sum(1)
        for one in models
    ]
    found = integrand(rows, t, eps)
    torch.testing.assert_close(found[1], terms[0] if kind is Integrand else terms[0] - terms[1])
    level, error = integrand.squared_error(rows, eps, t)
    torch.testing.assert_close(level, 9 - 16 * t)
    torch.testing.assert_close(8 * error, terms[-1])  # of the model that was called last


def test_a_bound_that_is_not_finite_is_named_by_its_first_draw():
    integrand = Integrand(WRONG, X, SCHEDULE, Gaussian())
    rows, t = torch.tensor([7, 5, 3, 2]), torch.tensor([0.0, 0.25, 0.5, 1.0])
    integrand.refuse_nonfinite(torch.zeros(4), rows, t)
    with pytest.raises(
        ValueError, match=r"got NaN or infinity on image 5 at λ = 5 \(2 of 4 draws of its batch\)$"
    ):
        integrand.refuse_nonfinite(torch.tensor([1.0, torch.nan, 0.0, -torch.inf]), rows, t)


def test_conditions_go_along_with_the_images_that_are_finite():
    data = torch.tensor(
        [[[0.0], [1.0]], [[torch.nan], [2.0]], [[3.0], [4.0]], [[5.0], [torch.inf]]]
    )
    condition = {
        "label": torch.tensor([5, 6, 7, 8]),
        "text": torch.arange(8).view(4, 2),
        "table": torch.zeros(3),
        "scale": 2.0,
    }
    seen = {}

    def model(z, logsnr, **condition):
        seen.update(condition)
        return Prediction(z, logsnr, z, Eps())

    kept = finite_images(data)
    assert kept.tolist() == [0, 2]
    integrand = Integrand(model, data, SCHEDULE, Gaussian(), None, condition, kept)
    assert torch.equal(integrand.data, data[[0, 2]])
    assert integrand.numbers.tolist() == [0, 2]
    integrand(torch.tensor([1, 0, 1]), torch.full((3,), 0.5), torch.zeros(3, 2, 1))
    assert seen["label"].tolist() == [7, 5, 7]
    assert seen["text"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert seen["table"] is condition["table"]
    assert seen["scale"] == 2.0


def test_a_prediction_that_is_not_finite_is_named_by_its_first_example():
    z = torch.zeros(3, 2)
    z[1, 1] = z[2, 0] = torch.nan
    model = Finite(
        lambda z, logsnr: Prediction(z, logsnr, z, Eps()),
        torch.tensor([4, 9, 6]),
    )
    assert torch.equal(model(z[:1], torch.zeros(1)).output, z[:1])
    with pytest.raises(
        ValueError,
        match=r"argument 'model' must be finite; got NaN or infinity for example 9 at λ = 1.5$",
    ):
        model(z, torch.tensor([0.5, 1.5, 2.5]))

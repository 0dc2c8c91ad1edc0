"""The theorems' own sums along paths of fields, against numbers of independent code."""

import fields
import pytest
import torch

from vdiff.oracle import Gaussian
from vdiff.schedule import InTurn, Linear
from vdiff.theorems.fields import DATA, DIAGONAL, HIGH, LOW, data_nodes, path_loss, tilted, written
from vdiff.theorems.subject import scaled_x

WRONG = Gaussian(torch.zeros(3), fields.WRONG)
MODELS = {
    "exact": DATA,
    "diagonal_model": DIAGONAL,
    "wrong_model": WRONG,
    "scaled_0_97": scaled_x(DATA, 0.97),
    "wrong_scaled": scaled_x(WRONG, 0.97),
}
PATHS = {  # t goes from data to noise: what leaves the noise first falls last
    "joint": Linear(HIGH, LOW),
    "one_by_one": InTurn(Linear(HIGH, LOW), [2, 1, 0]),
    "reversed": InTurn(Linear(HIGH, LOW), [0, 1, 2]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_losses_are_those_of_independent_code(name):
    for path, schedule in PATHS.items():
        for loss in (path_loss, written):
            found = loss(MODELS[name], schedule)
            number = fields.NUMBERS[name][path]  # midpoints of 20,000 cells: 1.4e-8
            assert found.item() == pytest.approx(number, rel=2e-8)


def test_an_inexact_denoiser_has_another_loss_on_another_path():
    losses = [path_loss(MODELS["wrong_scaled"], path).item() for path in PATHS.values()]
    assert max(losses) / min(losses) - 1 > 7e-4
    ends = torch.full((3,), HIGH).double(), torch.full((3,), LOW).double()
    for powers in ([1, 2, 3], [2, 1, 1]):
        loss = path_loss(MODELS["wrong_scaled"], tilted(powers, *ends)).item()
        assert loss not in (pytest.approx(other, rel=1e-5) for other in losses)
        exact = path_loss(DATA, tilted(powers, *ends)).item()
        assert exact == pytest.approx(fields.NUMBERS["exact"]["closed_form"], rel=1e-11)


def test_the_nodes_have_the_moments_of_data_and_noise():
    mean, covariance = torch.tensor([0.3, -1.0]).double(), torch.tensor([[2.0, 0.7], [0.7, 1.0]])
    x, eps = data_nodes(Gaussian(mean, covariance))
    both = torch.cat([x - mean, eps], 1)
    expected = torch.block_diag(covariance.double(), torch.eye(2).double())
    torch.testing.assert_close(both.mT @ both / len(both), expected)
    torch.testing.assert_close(x.mean(0), mean)

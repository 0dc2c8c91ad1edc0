"""Tables of β of a chain: rescaled, or none."""

import math

import pytest
import torch

from vdiff.chain import first_variance
from vdiff.schedule import Tabulated

from .chains_of_ddpm import TABLE

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("levels", [100, 1000, 4000])
def test_rescaled_betas_keep_the_last_level_and_move_the_first(levels):
    table = Tabulated.linear_betas(levels=levels, rescale_from=1000)
    reference = Tabulated.linear_betas()
    assert table.logsnr_max - reference.logsnr_max == pytest.approx(
        math.log(levels / 1000), abs=2e-3
    )
    assert abs(table.logsnr_min - reference.logsnr_min) < 0.7
    assert torch.allclose(
        table.table, Tabulated.from_betas(torch.linspace(1e-4, 0.02, levels) * 1000 / levels).table
    )


def test_betas_that_rescaling_drives_to_one_are_refused():
    with pytest.raises(
        ValueError, match=r"'betas' must lie strictly between 0 and 1; got 1 at step 20 of 20"
    ):
        Tabulated.linear_betas(levels=20, rescale_from=1000)
    with pytest.raises(ValueError, match=r"got 1\.01.* at step 10 of 10 \(rescaled to few steps"):
        Tabulated.linear_betas(1e-4, 0.01 + 1e-4, levels=10, rescale_from=1000)
    with pytest.raises(
        ValueError,
        match=(
            r"'betas' must be one row of at least two values; got shape \(1,\) \(one noise level "
            r"is a decoder"
        ),
    ):
        Tabulated.from_betas([0.1])
    with pytest.raises(
        ValueError,
        match=(
            r"'alphas_cumprod' must be strictly decreasing \(a step removes signal\); got 0.1 at "
            r"level 1 of 2 and 0.2 at level 2 of 2 \(the table"
        ),
    ):
        Tabulated.from_alphas_cumprod([0.1, 0.2])


def test_tables_that_are_no_tables_of_beta():
    with pytest.raises(
        ValueError,
        match=(
            r"'betas' must start with little noise; got 0.99, falling to 0.1 \(these look like ᾱ"
        ),
    ):
        Tabulated.from_betas([0.99, 0.5, 0.1])
    with pytest.raises(
        ValueError, match=r"'alphas_cumprod' must be one row of .*; got shape \(1, 2\)"
    ):
        Tabulated.from_alphas_cumprod(torch.tensor([[0.9, 0.8]]))
    with pytest.raises(ValueError, match=r"first_variance: argument 'steps' must be .*; got 0"):
        first_variance(TABLE, 0)

"""The losses of a chain from one term per example."""

import pytest
import torch

from vdiff import Denoiser, hybrid_loss
from vdiff.chain import vlb, with_decoder
from vdiff.decoder import DiscretizedGaussian
from vdiff.nn import MLP
from vdiff.parameterization import Eps
from vdiff.schedule import Tabulated
from vdiff.times import stratified
from vdiff.variance import LearnedRange

TABLE = Tabulated.linear_betas(levels=28)


@pytest.mark.parametrize("steps", [1, 3, 27])
@pytest.mark.parametrize("n", [1, 5, 28, 200])
def test_a_decoder_reads_every_row_at_the_first_level(n: int, steps: int) -> None:
    """Where times are drawn, only the rows that may be at t = 0 reach the decoder; where the same
    times are given, all do. The losses are the same."""
    torch.manual_seed(0)
    model = Denoiser(MLP(2, dims_out=4), Eps(), variance=LearnedRange())
    decoder = DiscretizedGaussian(256, uses_network=True, posterior_variance=1e-3)
    data = torch.randint(0, 256, (n, 2))
    what = {"schedule": TABLE, "steps": steps, "decoder": decoder}
    first = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        t = with_decoder(stratified(n, generator=generator), steps)
        eps = torch.randn(n, 2, generator=generator)
        first += int((t == 0).sum())
        for loss in (hybrid_loss, lambda *a, **k: vlb(*a, **k).total):
            drawn = loss(model, data, **what, generator=generator.manual_seed(seed))
            torch.testing.assert_close(drawn, loss(model, data, **what, t=t, eps=eps))
    assert first

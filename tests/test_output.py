"""From the last prediction to levels and to bytes."""

import pytest
import torch

from vdiff import Prediction
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.parameterization import X
from vdiff.sampling import (
    to_levels,
    to_uint8,
)
from vdiff.variance import LearnedRange


def frequencies(drawn, levels):
    return torch.stack([(drawn == k).double().mean(0) for k in range(levels)], -1)


DECODERS = (
    Categorical(4),
    Categorical(4, prior=torch.tensor([0.1, 0.2, 0.3, 0.4]).log()),
    Categorical(4, prior=torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]).log()),
    DiscretizedGaussian(4),
    DiscretizedGaussian(4, variance=0.1, uses_network=True),
    DiscretizedGaussian(4, uses_network=True, posterior_variance=0.02),
)


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_levels_are_drawn_from_the_decoder(decoder):
    """Frequencies against the decoder's own log p(k | z₀) of each example, in standard errors, at
    two noise levels at once."""
    n, logsnr = 40_000, torch.tensor([2.0, 4.0], dtype=torch.float64)
    z, x, head = (
        torch.tensor(rows, dtype=torch.float64)
        for rows in ([[0.05, -0.3]] * 2, [[0.2, -0.4]] * 2, [[0.0, 1.0]] * 2)
    )

    def predict(z, level):
        return Prediction(z, level, x[: len(z)], X(), LearnedRange(), head[: len(z)])

    prediction = predict(z, logsnr)
    p = torch.zeros(
        2, 2, 4, dtype=torch.float64
    )  # example, dimension, level: one is given from a pair with level 0 in the other
    for i in range(2):
        base = decoder.nll(torch.zeros(1, 2, dtype=torch.long), z[:1], logsnr[i].item(), predict)
        for j in range(2):
            data = torch.zeros(4, 2, dtype=torch.long)
            data[:, j] = torch.arange(4)
            ratio = (
                torch.stack(
                    [decoder.nll(row[None], z[:1], logsnr[i].item(), predict) for row in data]
                )[:, 0]
                - base
            )
            p[i, j] = torch.softmax(-ratio, 0)
    torch.testing.assert_close(decoder.log_probs(prediction).exp(), p, rtol=1e-6, atol=1e-9)
    many = prediction.replace(
        **{
            k: v.repeat_interleave(n, 0)
            for k, v in vars(prediction).items()
            if isinstance(v, torch.Tensor)
        }
    )
    drawn = to_levels(decoder, many, draw=True, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        error = frequencies(drawn[i * n : (i + 1) * n], 4) - p[i]
        assert (error.abs() < 4.5 * (p[i] * (1 - p[i]) / n).sqrt()).all()
    assert torch.equal(to_levels(decoder, prediction), decoder.decode(x))


def test_images_become_bytes_by_rounding():
    exact = torch.arange(256) / 127.5 - 1
    assert torch.equal(to_uint8(exact[None]), torch.arange(256, dtype=torch.uint8)[None])
    assert to_uint8(torch.tensor([[-2.0, 2.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1]])).tolist() == [
        [0, 255, 0, 1]
    ]

"""−log p from the denoiser's error: right for the perfect one, tails accounted for, and no bound
for any other."""

import math

import pytest
import torch
from registry import ORACLES

from vdiff import Prediction
from vdiff.decoder import Categorical
from vdiff.gaussian import diffuse
from vdiff.likelihood.immse import immse
from vdiff.oracle import Gaussian, GaussianMixture, Lattice
from vdiff.parameterization import Eps, X
from vdiff.schedule import Cosine, Linear

MIXTURE = ORACLES["mixture"]()


def points(data, n, seed=0):
    return data.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_in_one_dimension_and_in_two(seed):
    plane = GaussianMixture(
        [0.4, 0.6],
        [[-1.0, 0.5], [0.5, 0.0]],
        [[[0.1, 0.05], [0.05, 0.1]], [[0.2, 0.0], [0.0, 0.05]]],
    )
    for data in (MIXTURE, plane):
        x = points(data, 300, seed)
        found = immse(data, x, schedule=Linear(16.0, -12.0), gaussian=data.matched(), seed=seed)
        assert abs(found.mean + data.log_prob(x).mean()) < 4 * found.mean_error
        z = (found.nats + data.log_prob(x)) / found.standard_error
        assert z.abs().median() < 1.5
        assert found.low_tail.abs().max() < 1e-3
        assert found.high_tail.abs().max() < 1e-3


def test_the_gaussian_saves_variance_and_moves_nothing():
    x = points(MIXTURE, 200)
    errors = {}
    for name, gaussian in {"fitted": MIXTURE.matched(), "far": Gaussian([2.0], [4.0])}.items():
        found = immse(MIXTURE, x, schedule=Linear(16.0, -16.0), gaussian=gaussian)
        assert abs(found.mean + MIXTURE.log_prob(x).mean()) < 4 * found.mean_error, name
        errors[name] = found.mean_error
    assert errors["fitted"] < 0.7 * errors["far"]


def test_ends_that_are_too_close_show_in_the_tails():
    """Without the tails the integral would be too small: an estimate too good by what was never
    looked at."""
    x = points(MIXTURE, 2000)
    found = immse(MIXTURE, x, schedule=Linear(6.5, -3.0), gaussian=MIXTURE.matched(), replicates=8)
    tails = (found.low_tail + found.high_tail).mean().item()
    truth = -MIXTURE.log_prob(x).mean().item()
    assert abs(tails) > 1e-3
    assert abs(found.mean - truth) < 4 * found.mean_error + 0.2 * abs(tails)


@pytest.mark.parametrize("x", [-1.3, 0.9])
def test_each_tail_is_what_is_left_of_the_integral_at_that_x(x):
    """To −∞ it is KL(q(z | x) ‖ q(z)) less the Gaussian's, here by quadrature over ε; to +∞ the
    rest of −log p."""
    point, twin = torch.full((60_000, 1), x, dtype=torch.float64), MIXTURE.matched()
    low, high = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([9.0], dtype=torch.float64)
    eps = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    weight = torch.exp(-0.5 * eps.square()) / torch.exp(-0.5 * eps.square()).sum()

    def up_to(level):
        z = diffuse(point[:1].expand(4001, 1), eps[:, None], level.expand(4001))
        return weight @ (
            twin.noisy_log_prob(z, level.expand(4001))
            - MIXTURE.noisy_log_prob(z, level.expand(4001))
        )

    whole = twin.log_prob(point[:1]) - MIXTURE.log_prob(point[:1])
    found = immse(
        MIXTURE,
        point,
        schedule=Linear(high.item(), low.item()),
        gaussian=twin,
        draws=1,
        replicates=2,
    )
    for tail, truth in ((found.low_tail, up_to(low)), (found.high_tail, whole - up_to(high))):
        assert abs(tail.mean() - truth) < 4 * tail.std() / 60_000**0.5 + 0.2 * truth.abs()
        assert abs(tail.mean()) > 4 * tail.std() / 60_000**0.5


def test_levels_of_discrete_data():
    decoder = Categorical(5)
    data = Lattice(decoder.level_values, torch.arange(1, 6) / 15.0)
    x = points(data, 400)
    found = immse(data, x, schedule=Linear(8.0, -12.0), gaussian=data.matched(), discrete=True)
    assert abs(found.mean + data.log_prob(x).mean()) < 4 * found.mean_error
    assert found.high_tail.eq(0).all()


def test_a_gaussians_pointwise_information_is_the_integral_of_its_error():
    data = Gaussian([0.3, -0.1], [[0.5, 0.2], [0.2, 0.4]])
    x = points(data, 3)
    logsnr = torch.linspace(-30.0, 4.0, 20_001, dtype=torch.float64)
    share = (logsnr[:, None] + data.variances[0].log()).sigmoid()
    score = ((x - data.means[0]) @ data.axes[0]).square() / data.variances[0]
    mean = (share.square() + share * (1 - share) * score[:, None]).sum(2)
    assert torch.allclose(
        data.information(x, torch.full((3,), 4.0)), 0.5 * torch.trapezoid(mean, logsnr), atol=1e-6
    )


def test_it_is_no_bound_for_a_denoiser_that_is_not_perfect():
    """The error of a worse denoiser only adds: to a Gaussian told a wrong scale it gives more than
    −log p of anything."""
    data = Gaussian([0.0], [0.25])
    x = points(data, 400)
    with pytest.warns(
        UserWarning,
        match=r"immse: .* of the .* nats lie beyond the clean end of the schedule, "
        r"extrapolated: move its ends",
    ):
        off = immse(
            lambda z, logsnr: Prediction(z, logsnr, 0.9 * data(z, logsnr).x, X()),
            x,
            schedule=Linear(10.0, -12.0),
            gaussian=data,
        )
    assert off.protocol["beyond the clean end, nats"] == pytest.approx(off.high_tail.mean().item())
    assert "an estimate, not a bound" in str(off)
    assert off.mean > -data.log_prob(x).mean() + 0.1


def test_an_answer_does_not_depend_on_its_batch_and_follows_the_seed():
    x = points(MIXTURE, 6)
    setting = {"schedule": Linear(12.0, -12.0), "gaussian": MIXTURE.matched(), "draws": 8}
    whole, other = (immse(MIXTURE, x, seed=seed, **setting).replicates for seed in (0, 1))
    assert torch.allclose(whole[:, :2], immse(MIXTURE, x[:2], **setting).replicates, atol=1e-12)
    assert not torch.allclose(whole, other)


def test_images_and_conditions_go_by_rows():
    data = Gaussian.fit(torch.randn(500, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    x = points(data, 4).view(4, 1, 2, 2)
    shift = torch.arange(4.0).double()

    def model(z, logsnr, shift):
        flat = data(z.flatten(1), logsnr).eps + 0 * shift[:, None]
        return Prediction(z, logsnr, flat.view(z.shape), Eps())

    found = immse(
        model, x, schedule=Linear(12.0, -12.0), gaussian=data, condition={"shift": shift}
    )
    assert torch.allclose(found.nats, -data.log_prob(x.flatten(1)), atol=1e-9)
    assert math.isclose(found.mean_error, 0.0, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"draws": 0}, "'draws' must be at least 1"),
        ({"replicates": 1}, "'replicates' must be at least 2"),
    ],
)
def test_bad_arguments_are_named(change, text):
    with pytest.raises(ValueError, match=text):
        immse(MIXTURE, torch.zeros(1, 1), schedule=Linear(), gaussian=MIXTURE.matched(), **change)


def bent(gaussian, bend):
    """A Gaussian's denoiser whose ε̂ is off by `bend`(λ) in each of two dimensions."""

    def model(z, logsnr):
        return Prediction(
            z,
            logsnr,
            gaussian(z, logsnr).eps + bend(logsnr)[:, None] * torch.tensor([2.0, -1.0]).double(),
            Eps(),
        )

    return model


def test_a_constant_error_at_the_mean_is_its_square_over_the_whole_range_and_its_tails():
    """With ε and −ε the rest cancels at x = m: ½ ‖b‖² (λ_max − λ_min + 1 + ⅓) more than the
    Gaussian's −log p, exactly."""
    data, schedule = Gaussian([0.3, -0.4], [0.25, 1.0]), Linear(8.0, -3.0)
    with pytest.warns(UserWarning, match="move its ends apart"):
        found = immse(
            bent(data, lambda level: 0.0 * level + 0.1),
            data.means,
            schedule=schedule,
            gaussian=data,
            draws=5,
            replicates=2,
        )
    square = 0.01 * 5.0
    normal = math.log(2 * math.pi) + 0.5 * math.log(0.25)
    assert torch.allclose(
        found.replicates,
        torch.full((2, 1), normal + 0.5 * square * (11.0 + 1.0 + 1 / 3)).double(),
        atol=1e-9,
    )
    assert found.dims == 2
    assert found.evaluations.tolist() == [2 * 2 * (5 + 2)]
    with pytest.warns(UserWarning, match="beyond the noisy end"):
        levels = immse(
            bent(data, lambda level: 0.0 * level + 0.1),
            data.means,
            schedule=schedule,
            gaussian=data,
            discrete=True,
            draws=5,
        )
    # to λ_max the Gaussian's part is KL(N(αm, σ²) ‖ N(αm, α²s² + σ²)), with ratio of variances 1 +
    # s² e^λ
    ratio = 1 + math.exp(8.0) * torch.tensor([0.25, 1.0]).double()
    known = 0.5 * (ratio.log() + 1 / ratio - 1).sum()
    assert torch.allclose(
        levels.replicates, (known + 0.5 * square * (11.0 + 1 / 3)).expand(4, 1), atol=1e-9
    )
    assert levels.high_tail.eq(0).all()


def test_each_tail_comes_from_the_error_at_its_end_whatever_the_schedules_rate():
    """A denoiser that is off at the two ends alone: nothing lies between them, and a tail is ½
    (‖b‖² + 2 α σ b·(x − m)/C), or ⅓ of it."""
    data, schedule, spread = (
        Gaussian([0.3, -0.4], [0.25, 1.0]),
        Cosine(4.0, -6.0),
        torch.tensor([0.25, 1.0]).double(),
    )
    x = data.means + torch.tensor([[0.0, 0.0], [0.2, 0.3], [-0.5, 0.1]]).double()

    def bend(logsnr):
        return torch.where(logsnr > 4.0 - 1e-9, 0.2, torch.where(logsnr < -6.0 + 1e-9, 0.5, 0.0))

    def tail(level, size):
        signal, noise = (1 / (1 + math.exp(-sign * level)) for sign in (1, -1))
        b = size * torch.tensor([2.0, -1.0]).double()
        cross = math.sqrt(signal * noise) * (b * (x - data.means) / (signal * spread + noise)).sum(
            1
        )
        return 0.5 * (b.square().sum() + 2 * cross)

    with pytest.warns(UserWarning, match="move its ends apart"):
        found = immse(bent(data, bend), x, schedule=schedule, gaussian=data, draws=3, replicates=2)
    low, high = tail(-6.0, 0.5) / 3, tail(4.0, 0.2)
    assert torch.allclose(found.low_tail, low, atol=1e-9)
    assert torch.allclose(found.high_tail, high, atol=1e-9)
    assert torch.allclose(
        found.replicates, (low + high - data.log_prob(x)).expand(2, 3), atol=1e-9
    )
    assert found.protocol["beyond the noisy end, nats"] == pytest.approx(low.mean().item())
    assert found.protocol["beyond the clean end, nats"] == pytest.approx(high.mean().item())

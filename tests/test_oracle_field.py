"""Oracles that are told a field of log-SNR: against decimal arithmetic, the numbers of
`oracles/field.json`, densities on a grid, and bounds with a mask."""

import decimal
import math
from decimal import Decimal

import fields
import pytest
import torch
from fields import GAINS, NUMBERS, PATHS

from vdiff._mixture import _fits_points
from vdiff.gaussian import diffuse
from vdiff.oracle import Gaussian, GaussianMixture, Lattice

HIGH, LOW = fields.LOGSNR_MAX, fields.LOGSNR_MIN
CORRELATED = GaussianMixture(
    [0.35, 0.65],
    [[-1.0, 0.3], [0.6, -0.2]],
    [[[0.2, 0.12], [0.12, 0.3]], [[0.15, -0.1], [-0.1, 0.25]]],
)
DIAGONAL = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.5, 0.0]], [[0.1, 0.4], [0.3, 0.05]])
# prior, diffusion and reconstruction at λ = 10 and −6, given x_0 of (0.7, −0.4)
BOUNDS = {
    "correlated": (0.00019934084307861934, 3.7008240269574566, -3.5810614667953278),
    "diagonal": (0.00019934084307861934, 4.601391637504435, -3.5810614667953278),
}
MIXTURES = {"correlated": CORRELATED, "diagonal": DIAGONAL}


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def covariances_of(oracle):
    roots = oracle._roots()
    return roots @ roots.mT


# ── the denoiser


@pytest.mark.parametrize("oracle", [*MIXTURES.values(), fields.gaussian()])
def test_one_number_per_example_as_a_field(oracle):
    z, logsnr = 2 * normal(40, oracle.dims), torch.linspace(-20, 20, 40, dtype=torch.float64)
    scalar, column = oracle(z, logsnr).output, oracle(z, logsnr[:, None]).output
    assert torch.equal(column, scalar)
    log_prob = oracle.noisy_log_prob(z, logsnr)
    assert torch.equal(oracle.noisy_log_prob(z, logsnr[:, None]), log_prob)
    whole = logsnr[:, None].expand(-1, oracle.dims)
    torch.testing.assert_close(oracle(z, whole).output, scalar, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(oracle.noisy_log_prob(z, whole), log_prob, rtol=1e-12, atol=0.0)
    narrow = oracle(z.float(), logsnr.float()[:, None]).output
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, oracle(z.float(), logsnr.float()).output)


def test_data_in_one_dimension_have_a_field_of_one_number():
    oracle, z, logsnr = Lattice([-0.5, 0.5], [0.25, 0.75]), normal(9, 1), torch.linspace(-9, 9, 9)
    assert torch.equal(oracle(z, logsnr[:, None]).output, oracle(z, logsnr).output)
    assert torch.equal(
        oracle.mutual_information(logsnr[:, None]), oracle.mutual_information(logsnr)
    )


def decimal_eps(weights, means, roots, z, logsnr):
    """E[ε | z] in two dimensions, in 60 digits, from what float64 holds; Σ = L Lᵀ of `roots`."""
    with decimal.localcontext(prec=60):
        signal = [1 / (1 + (-Decimal(v)).exp()) for v in logsnr]
        noise = [1 / (1 + Decimal(v).exp()) for v in logsnr]
        total, eps = Decimal(0), [Decimal(0), Decimal(0)]
        for weight, mean, root in zip(weights, means, roots, strict=True):
            p, q = ([Decimal(v) for v in row] for row in root)
            a = signal[0] * (p[0] ** 2 + p[1] ** 2) + noise[0]
            d = signal[1] * (q[0] ** 2 + q[1] ** 2) + noise[1]
            b = signal[0].sqrt() * signal[1].sqrt() * (p[0] * q[0] + p[1] * q[1])
            r, s = (Decimal(z[i]) - signal[i].sqrt() * Decimal(mean[i]) for i in (0, 1))
            det = a * d - b * b
            solved = (d * r - b * s) / det, (a * s - b * r) / det
            density = (-(r * solved[0] + s * solved[1]) / 2).exp() * Decimal(weight) / det.sqrt()
            total += density
            eps = [eps[i] + density * noise[i].sqrt() * solved[i] for i in (0, 1)]
        return [float(e / total) for e in eps]


EXTREMES = [-30.0, -15.0, -4.0, 0.0, 4.0, 15.0, 30.0]


@pytest.mark.parametrize("name", [*MIXTURES, "almost singular", "singular"])
def test_levels_from_minus_30_to_30_in_one_field(name):
    """To 1e-13 of ε̂. Where two dimensions determine each other and both have λ = 30, the rounding
    of z is 3e-10 of ε, and ε̂ has 1e-8."""
    oracle = MIXTURES.get(name)
    if oracle is None:
        rho = {"almost singular": 1 - 1e-9, "singular": 1.0}[name]
        oracle = Gaussian([0.0, 0.0], [[1.0, rho], [rho, 1.0]])
    pairs = torch.cartesian_prod(vector(*EXTREMES), vector(*EXTREMES)).repeat(3, 1)
    x = oracle.sample(len(pairs), torch.Generator().manual_seed(1))
    z = pairs.sigmoid().sqrt() * x + (-pairs).sigmoid().sqrt() * normal(len(pairs), 2)
    law = oracle.weights.tolist(), oracle.means.tolist(), oracle._roots().tolist()
    exact = vector(
        *[decimal_eps(*law, *row) for row in zip(z.tolist(), pairs.tolist(), strict=True)]
    )
    got = oracle(z, pairs).output
    error = ((got - exact).abs() / exact.abs().clamp(min=1e-3)).amax(1)
    assert error[pairs.amin(1) < 30].max() < 1e-11
    assert error.max() < (1e-12 if name in MIXTURES else 1e-8)


def test_a_field_that_does_not_fit_is_refused():
    z = normal(5, 2)
    for shape in [(5, 3), (4,), (1, 2), (5, 2, 1), ()]:
        with pytest.raises(ValueError, match=r"'logsnr' must .*broadcast over z, \(5, 2\)"):
            _fits_points(z, torch.zeros(shape))


def test_gradients_reach_the_field():
    z, field = normal(3, 2), normal(3, 2, seed=1)
    for oracle in MIXTURES.values():
        assert torch.autograd.gradcheck(
            lambda z, f, oracle=oracle: oracle(z, f).output,
            (z.requires_grad_(), field.requires_grad_()),
        )


# ── paths


def moments_of_oracle(logsnr):
    """E e_i² of the library's denoiser: a sum over the basis of its linear error."""
    x, eps = fields.basis()
    n, k = len(logsnr), len(x)
    x, eps = (v.repeat_interleave(n, 0) for v in (x, eps))
    told = logsnr.repeat(k, 1)
    prediction = fields.gaussian()(diffuse(x, eps, told), told)
    return prediction.error(x, eps).square().view(k, n, -1).sum(0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", GAINS)
def test_the_numbers_of_the_file(name, path):
    """By the file's own rule, which is 1e-8 to 4e-8 of the loss off where the error grows as e^λ
    or λ starts steeply."""
    got = fields.loss_in_cells(lambda f: fields.second_moments(GAINS[name], f), PATHS[path])
    assert got == pytest.approx(NUMBERS[name][path], rel=1e-12)
    exact = fields.loss_of(lambda f: fields.second_moments(GAINS[name], f), PATHS[path])
    assert exact == pytest.approx(NUMBERS[name][path], rel=5e-8)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_the_exact_denoiser_has_the_same_loss(path):
    got = fields.loss_of(moments_of_oracle, PATHS[path])
    assert got == pytest.approx(NUMBERS["exact"]["closed_form"], rel=1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_another_gaussian_s_denoiser_too(path):
    models = {"diagonal_model": fields.COVARIANCE.diagonal().diag(), "wrong_model": fields.WRONG}
    for name, model in models.items():
        got = fields.loss_of(lambda f, n=name: fields.second_moments(GAINS[n], f), PATHS[path])
        assert got == pytest.approx(fields.gaussian_loss(model), rel=1e-11)


def test_a_scaled_wrong_denoiser_has_another_loss_on_each_path():
    def losses(name):
        return [
            fields.loss_of(lambda f: fields.second_moments(GAINS[name], f), path)
            for path in PATHS.values()
        ]

    scaled, wrong, mean = (losses(n) for n in ("scaled_0_97", "wrong_scaled", "told_the_mean"))
    assert max(scaled) - min(scaled) < 1e-9
    assert max(wrong) - min(wrong) == pytest.approx(0.012514, abs=1e-5)
    assert mean[0] == pytest.approx(11.60929558, rel=1e-8)
    assert min(mean[1:]) > 100


def test_information_of_a_field():
    oracle, fields_ = fields.gaussian(), 6 * normal(20, 3)
    signal = (0.5 * fields_).exp()
    matrix = torch.eye(3) + signal[:, :, None] * fields.COVARIANCE * signal[:, None, :]
    torch.testing.assert_close(oracle.mutual_information(fields_), 0.5 * torch.logdet(matrix))
    ends = torch.tensor([[HIGH] * 3, [LOW] * 3], dtype=torch.float64)
    high, low = oracle.mutual_information(ends)
    assert (high - low).item() == pytest.approx(NUMBERS["exact"]["closed_form"], rel=1e-12)
    same = oracle.mutual_information(ends[:, 0])
    torch.testing.assert_close(torch.stack([high, low]), same, rtol=1e-12, atol=1e-14)
    diagonal = Gaussian([0.0, 0.0], [0.5, 2.0])
    separate = torch.nn.functional.softplus(fields_[:, :2] + vector(0.5, 2.0).log())
    torch.testing.assert_close(diagonal.mutual_information(fields_[:, :2]), 0.5 * separate.sum(1))
    with pytest.raises(NotImplementedError, match="exact for one Gaussian"):
        CORRELATED.mutual_information(fields_[:, :2])


@pytest.mark.parametrize(
    ("given", "number"), [((0,), "conditional_given_0"), ((1, 2), "conditional_given_12")]
)
def test_information_given_some_dimensions(given, number):
    mask = torch.tensor([i not in given for i in range(3)])
    rest = fields.gaussian().conditional(normal(3), mask)
    high, low = rest.mutual_information(vector(HIGH, LOW))
    assert (high - low).item() == pytest.approx(NUMBERS[number], rel=1e-12)
    told = torch.where(mask, vector(HIGH, LOW)[:, None], torch.tensor(60.0).double())
    high, low = fields.gaussian().mutual_information(told)  # the given ones hardly noisy
    assert (high - low).item() == pytest.approx(NUMBERS[number], rel=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", GAINS)
def test_the_weighted_elbo_of_a_path(name, path):
    model = fields.linear_denoiser(GAINS[name])
    got = sum(fields.expected_loss(model, fields.LegSchedule(leg)) for leg in PATHS[path])
    exact = fields.loss_of(lambda f: fields.second_moments(GAINS[name], f), PATHS[path])
    assert got == pytest.approx(exact, rel=1e-10)


# ── conditionals


@pytest.mark.parametrize("oracle", MIXTURES.values(), ids=MIXTURES)
def test_a_conditional_is_the_joint_density_normalised(oracle):
    grid = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    for kept in (0, 1):
        for value in (-2.0, 0.1, 1.3):
            points = torch.full((len(grid), 2), value, dtype=torch.float64)
            points[:, kept] = grid
            joint = oracle.log_prob(points).exp()
            mass = torch.trapezoid(joint, grid)
            mask = torch.tensor([i == kept for i in (0, 1)])
            point = torch.full((2,), value, dtype=torch.float64)
            rest = oracle.conditional(point, mask)
            torch.testing.assert_close(rest.log_prob(grid[:, None]).exp(), joint / mass)
            cumulative = torch.cumulative_trapezoid(joint / mass, grid)
            torch.testing.assert_close(rest.cdf(grid[1:, None]), cumulative, rtol=0.0, atol=1e-5)
            nll = oracle.conditional_nll(points, mask)
            torch.testing.assert_close(nll, -(joint / mass).log(), rtol=1e-9, atol=1e-9)


def test_masks_and_absent_values_of_each_example():
    oracle = GaussianMixture(
        [0.4, 0.6], normal(2, 3), torch.stack([fields.COVARIANCE, 0.5 * fields.WRONG])
    )
    x = oracle.sample(8, torch.Generator().manual_seed(0))
    mask = torch.tensor([[(k >> i) & 1 == 1 for i in range(3)] for k in range(8)])
    absent = torch.zeros(8, 3, dtype=torch.bool)
    absent[2:6, 2] = True
    x[absent] = math.nan
    got = oracle.conditional_nll(x, mask, absent)
    assert got[[0, 4]].tolist() == [0.0, 0.0]  # nothing is modelled
    for row in (1, 2, 3, 5, 6, 7):
        rest = oracle.conditional(x[row], mask[row], absent[row])
        modelled = mask[row] & ~absent[row]
        expected = -rest.log_prob(x[row][modelled][None])[0]
        torch.testing.assert_close(got[row], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(oracle.conditional_nll(x[6:]), -oracle.log_prob(x[6:]))
    shared = oracle.conditional_nll(x[6:], mask[3])
    assert torch.equal(shared, oracle.conditional_nll(x[6:], mask[3].expand(2, 3)))
    torch.testing.assert_close(  # the chain rule
        oracle.conditional_nll(x[6:], absent=~mask[3]) + oracle.conditional_nll(x[6:], ~mask[3]),
        -oracle.log_prob(x[6:]),
    )


def test_of_one_gaussian_the_conditional_is_the_regression():
    c, x = fields.COVARIANCE, normal(3)
    rest = fields.gaussian().conditional(x, torch.tensor([True, False, True])).matched()
    gain = c[[0, 2], 1] / c[1, 1]
    torch.testing.assert_close(rest.means[0], gain * x[1])
    covariance = c[[0, 2]][:, [0, 2]] - torch.outer(gain, c[1, [0, 2]])
    torch.testing.assert_close(covariances_of(rest)[0], covariance)


def test_far_from_a_component_its_weight_is_left_out():
    rest = DIAGONAL.conditional(vector(40.0, 0.0), torch.tensor([False, True]))
    assert len(rest.weights) == 1


def test_what_cannot_be_conditioned_is_refused():
    lattice, one = Lattice([-0.5, 0.5], [0.25, 0.75]), torch.zeros(1, 1)
    for ask in (lambda: lattice.cdf(one), lambda: lattice.conditional_nll(one)):
        with pytest.raises(NotImplementedError, match=r"Lattice.*needs a density"):
            ask()
    with pytest.raises(ValueError, match="leave a dimension to model"):
        DIAGONAL.conditional(vector(0.0, 0.0), torch.tensor([False, False]))


# ── the parts of a bound with a mask


@pytest.mark.parametrize("oracle", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("kept", [0, 1])
def test_the_diffusion_term_with_a_mask(oracle, kept):
    """½ ∫ E[e² | x] dλ over the modelled dimension is KL(q(z | x) ‖ q(z | x_given)) at one end
    minus at the other."""
    x, mask = vector(0.7, -0.4), torch.tensor([i == kept for i in (0, 1)])
    got = fields.masked_diffusion(oracle, x, mask, HIGH, LOW)
    assert got == pytest.approx(fields.masked_information(oracle, x, mask, HIGH, LOW), rel=1e-10)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_bound_with_a_mask(name):
    """Its parts sum to −log p(x_modelled | x_given) up to what the ends leave."""
    x, mask = vector(0.7, -0.4), torch.tensor([False, True])
    oracle = MIXTURES[name]
    nll = oracle.conditional_nll(x[None], mask).item()
    total = sum(fields.masked_bound(oracle, x, mask, 18.0, -18.0))
    assert total == pytest.approx(nll, abs=2e-7)
    assert fields.masked_bound(oracle, x, mask, 10.0, -6.0) == pytest.approx(
        BOUNDS[name], rel=1e-9
    )


def test_told_the_end_the_bound_of_an_example_is_off_by_about_that_noise():
    x, mask = vector(0.7, -0.4), torch.tensor([False, True])
    for high in (8.0, 12.0):
        told, exact = (
            fields.masked_diffusion(CORRELATED, x, mask, high, -8.0, level)
            for level in (high, 40.0)
        )
        assert 0.5 * math.exp(-high) < told - exact < 2 * math.exp(-high)

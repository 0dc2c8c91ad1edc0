"""`evaluate` and `compare` of some dimensions given the others: closed forms, and what a mask
changes beside the number."""

import math

import pytest
import torch
from conditionals import Told
from masked_laws import COVARIANCE, HIGH, LOW, NORMAL, PLAIN, SETTING, SMALL, by_dim, closed_form
from scipy import stats

from vdiff import Denoiser
from vdiff.decoder import Categorical
from vdiff.likelihood import Share, VarianceReduction, compare, evaluate
from vdiff.likelihood.chunks import StateMismatch
from vdiff.parameterization import X
from vdiff.profile import Profile
from vdiff.schedule import Linear

MIXTURE = Told(
    [0.4, 0.6],
    [[-1.0, 0.5], [0.8, -0.6]],
    [[[0.3, 0.2], [0.2, 0.4]], [[0.2, -0.1], [-0.1, 0.3]]],
)

# a few draws of a density of its own, in small tests
pytestmark = pytest.mark.filterwarnings("ignore:(evaluate|compare). .*draws?")


def errors_off(report, nats, dims):
    """How many standard errors a total is from Σ nats / Σ dims."""
    known = nats.sum().item() / (dims.sum().item() * math.log(2))
    return (report.total.value - known) / report.total.monte_carlo


def test_the_closed_form_is_the_negative_log_density_and_little_more():
    """The slack of two ends at 12 and −12 is about e^{−12} d."""
    x, left = MIXTURE.sample(6, 1), torch.tensor([True, False])
    law = [MIXTURE.given(row, ~left, left) for row in x]
    known = [-one.log_prob(row[None, ~left]) for one, row in zip(law, x, strict=True)]
    torch.testing.assert_close(closed_form(MIXTURE, x, ~left), torch.cat(known), rtol=0, atol=1e-4)
    joint = torch.tensor([True, True])
    chained = closed_form(MIXTURE, x, left, given=~joint) + closed_form(MIXTURE, x, ~left)
    torch.testing.assert_close(closed_form(MIXTURE, x, joint), chained, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "mask"),
    [(NORMAL, [False, True, True]), (NORMAL, [True, False, False]), (MIXTURE, [False, True])],
    ids=["two of a Gaussian", "one of a Gaussian", "one of a mixture"],
)
def test_a_masked_bound_is_that_of_the_conditional_distribution(model, mask):
    x, mask = model.sample(24, 2), torch.tensor(mask)
    report = evaluate(model, x, **SETTING, draws=32, plan=SMALL, mask=mask)
    nats, dims = closed_form(model, x, mask), mask.expand_as(x).sum(1)
    assert report.total.monte_carlo < 0.1
    assert abs(errors_off(report, nats, dims)) < 4
    marginal = closed_form(model, x, mask, given=torch.zeros_like(mask))
    assert abs(errors_off(report, marginal, dims)) > 5


def test_a_mask_with_a_row_for_each_image_and_what_is_absent():
    """Every image has its own given, modelled and absent dimensions. NaN is where nothing is
    known."""
    x = NORMAL.sample(24, 3)
    kind = torch.randint(0, 3, x.shape, generator=torch.Generator().manual_seed(0))
    mask, absent = kind > 0, kind == 2
    holed = torch.where(absent, torch.nan, x)
    report = evaluate(NORMAL, holed, **SETTING, draws=16, plan=SMALL, mask=mask, absent=absent)
    nats, dims = closed_form(NORMAL, x, kind == 1, kind == 0), (kind == 1).sum(1)
    assert len(dims.unique()) > 2
    assert (dims == 0).any()
    assert abs(errors_off(report, nats, dims)) < 4
    assert torch.equal(report.dims, dims)
    assert report.protocol["modelled"] == {
        "dims": int(dims.sum()), "of": x.numel(), "images": int((dims > 0).sum()),
    }  # fmt: skip
    assert torch.equal(report.by_image == 0, dims == 0)


def test_the_bits_of_one_half_and_of_the_other_given_it_are_those_of_both():
    """The chain rule, for the exact denoiser: one half's marginal has the other absent."""
    x, left = NORMAL.sample(32, 4), torch.tensor([True, False, False])
    both, first, second = (
        evaluate(NORMAL, x, **SETTING, draws=16, plan=SMALL, **masks).total
        for masks in ({}, {"absent": ~left}, {"mask": ~left})
    )
    parts = (first.value + 2 * second.value) / 3
    error = math.hypot(both.monte_carlo, first.monte_carlo / 3, 2 * second.monte_carlo / 3)
    assert abs(parts - both.value) < 4 * error
    assert error < 0.1 < abs(first.value - second.value)


def intervals(count):
    """How many of `count` evaluations have the closed form in their Monte Carlo interval."""
    x = MIXTURE.sample(4, 5)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    dims = mask.sum(1)
    known = closed_form(MIXTURE, x, mask).sum().item() / (dims.sum().item() * math.log(2))
    plan = VarianceReduction(pilot=256)
    held = 0
    for seed in range(count):
        total = evaluate(
            MIXTURE, x, **SETTING, draws=8, replicates=4, plan=plan, mask=mask, seed=seed
        ).total
        low, high = total.interval()
        held += low < known < high
    return held


def test_the_interval_of_a_masked_bound_holds_the_closed_form_nineteen_times_in_twenty():
    assert stats.binom.ppf(1e-4, 60, 0.95) <= intervals(60)


@pytest.mark.soak
def test_the_interval_of_a_masked_bound_in_500_evaluations():
    held = intervals(500)
    print(f"{held} of 500 intervals hold the closed form")
    assert 0.93 * 500 <= held <= 0.97 * 500


def test_a_mask_of_everything_changes_no_bit():
    x = NORMAL.sample(7, 8)
    setting = SETTING | {"draws": 8, "plan": SMALL}
    for masks in ({"mask": torch.ones(3, dtype=torch.bool)}, {"absent": torch.zeros(7, 3) > 0}):
        without, whole = (evaluate(by_dim, x, **setting, **m) for m in ({}, masks))
        for part in ("prior", "diffusion", "reconstruction", "total", "relative_costs"):
            assert getattr(without, part) == getattr(whole, part)
        assert torch.equal(without.by_image, whole.by_image)
        assert set(whole.protocol) - set(without.protocol) == {*masks, "modelled"}


def test_the_model_is_told_the_ends_where_nothing_is_modelled():
    model = Told([1.0], [[0.2, 0.0, -0.1]], [COVARIANCE])
    mask, absent = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    setting = SETTING | {"draws": 4, "plan": PLAIN}
    evaluate(model, NORMAL.sample(5, 0), **setting, mask=mask, absent=absent)
    assert (model.told[:, 1] == HIGH).all()
    assert (model.told[:, 2] == LOW).all()
    assert len(model.told[:, 0].unique()) > 1


def test_batches_shares_and_a_resumed_evaluation_give_the_whole():
    x = NORMAL.sample(10, 9)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    setting = SETTING | {"draws": 4, "mask": mask, "plan": SMALL}
    states = []
    whole = evaluate(NORMAL, x, **setting, batch=8, checkpoint=states.append)
    once = evaluate(NORMAL, x, **setting)
    assert once.total.value == pytest.approx(whole.total.value, rel=1e-12)
    torch.testing.assert_close(once.by_image, whole.by_image, rtol=1e-12, atol=1e-14)
    resumed = evaluate(NORMAL, x, **setting, batch=8, resume=states[2])
    assert resumed.total == whole.total
    for other in ({"mask": ~mask}, {"mask": None}, {"absent": ~mask}):
        with pytest.raises(StateMismatch, match="be the state of this evaluation"):
            evaluate(NORMAL, x, **setting | other, batch=8, resume=states[2])
    shares = []
    for index in range(2):
        kept = []
        evaluate(
            NORMAL, x, **setting, share=Share(index, 2), checkpoint=lambda s, k=kept: k.append(s)
        )
        shares.append(kept[-1])
    nats = sum(state["mean"][3] for state in shares)
    torch.testing.assert_close(
        nats / math.log(2), whole.by_image * mask.sum(1), rtol=1e-12, atol=1e-13
    )


def test_a_tolerance_is_that_of_the_modelled_dimensions():
    x = NORMAL.sample(16, 10)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    report = evaluate(NORMAL, x, **SETTING, tolerance=0.02, plan=SMALL, mask=mask)
    assert report.total.monte_carlo <= 0.02
    assert abs(errors_off(report, closed_form(NORMAL, x, mask), mask.sum(1))) < 4


def test_compare_shares_the_mask():
    wrong = Told([1.0], [[0.2, 0.0, -0.1]], [[[1.0, 0, 0], [0, 1.5, 0], [0, 0, 0.7]]])
    x = NORMAL.sample(16, 11)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(6)) < 0.6
    setting = SETTING | {"draws": 16, "plan": SMALL, "mask": mask}
    one, other = (evaluate(m, x, **setting, seed=i).total for i, m in enumerate((wrong, NORMAL)))
    paired = compare(wrong, NORMAL, x, **setting)
    unpaired = math.hypot(one.monte_carlo, other.monte_carlo)
    assert abs(paired.difference.value - (one.value - other.value)) < 4 * unpaired
    known = closed_form(NORMAL, x, mask)
    apart = closed_form(wrong, x, mask)  # the same marginals, and no correlation
    gap = (apart - known).sum().item() / (mask.sum().item() * math.log(2))
    assert abs(paired.difference.value - gap) < 4 * paired.difference.monte_carlo
    assert paired.protocol["mask"] == evaluate(NORMAL, x, **setting).protocol["mask"]


def test_a_discrete_decoder_and_images():
    """A network that sees the field; half of the image given, its levels absent elsewhere."""
    images = torch.randint(0, 17, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    model = Denoiser(lambda z, t: z * t.sigmoid(), X(), field=True)
    setting = {"schedule": Linear(), "decoder": Categorical(17), "draws": 4, "plan": SMALL}
    report = evaluate(model, images, **setting, mask=mask[None])
    wide = evaluate(model, images, **setting, mask=mask[None, None].expand_as(images))
    assert report.total == wide.total
    assert report.dims == 8
    other = images.clone()
    other[..., :2] = 16 - other[..., :2]  # given, and seen by nobody but this network's own pixels
    again = evaluate(model, other, **setting, mask=mask[None])
    assert again.reconstruction == report.reconstruction
    assert again.prior == report.prior


def test_a_profile_has_the_error_of_the_modelled_dimensions_at_their_level():
    x, mask = NORMAL.sample(8, 12), torch.tensor([False, True, True])
    profile = Profile(logsnr_max=HIGH, logsnr_min=LOW, bins=6)
    evaluate(NORMAL, x, **SETTING, draws=64, plan=PLAIN, mask=mask, profile=profile)
    assert profile.count.sum() == 8 * 4 * 64
    assert (profile.count > 0).all()
    at_noise = profile.mean[0]  # λ ≈ −10: ε̂ is nearly ε, e² = sigmoid(λ + log v) in two dimensions
    assert at_noise < 1e-3
    assert profile.mean[-1] == pytest.approx(2, abs=5 * profile.standard_error[-1].item() + 0.05)

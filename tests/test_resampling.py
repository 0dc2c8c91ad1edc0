"""The loss's second moment as a density over steps: unbiased, of least variance, saved and
restored."""

import io

import pytest
import torch
from registry import ORACLES

from vdiff import elbo
from vdiff.decoder import Gaussian
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Linear
from vdiff.times import grid

STEPS = 50


def warmed(losses, memory=4):
    """A sampler that has seen these losses, one row per step."""
    sampler = LossSecondMoment(len(losses), memory=memory)
    t = torch.arange(1, len(losses) + 1, dtype=torch.float64) / len(losses)
    for column in losses.T:
        sampler.update(t, column)
    return sampler


def test_it_is_uniform_until_every_step_has_its_memory():
    sampler = LossSecondMoment(3, memory=2)
    t = torch.tensor([1 / 3, 2 / 3, 1.0, 1 / 3, 2 / 3])
    sampler.update(t, torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]))
    assert torch.equal(sampler.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
    sampler.update(t[2:3], torch.tensor([3.0]))
    expected = 0.999 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 6 + 0.001 / 3
    assert torch.allclose(sampler.probabilities(), expected)


def test_it_remembers_the_last_losses_of_each_step():
    """Also where a batch holds more of one step than are remembered."""
    sampler = LossSecondMoment(2, memory=3)
    sampler.update(
        torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 7.0, 2.0, 3.0, 4.0, 5.0])
    )
    assert sampler.history[1].sort().values.tolist() == [3.0, 4.0, 5.0]
    assert sampler.count.tolist() == [1, 5]
    sampler.update(torch.tensor([1.0]), torch.tensor([9.0]))
    assert sampler.history[1].sort().values.tolist() == [4.0, 5.0, 9.0]


def test_weighted_means_are_what_they_are_under_uniform_steps():
    sampler = warmed(torch.rand(STEPS, 4, generator=torch.Generator().manual_seed(0)) ** 3)
    f = torch.linspace(-1, 5, STEPS, dtype=torch.float64).square()
    p = sampler.probabilities()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-14)
    batch = 200_000
    t, weight = sampler.draw(batch, torch.Generator().manual_seed(1))
    step = (t * STEPS).round().long() - 1
    assert torch.allclose(weight * p[step] * STEPS, torch.ones_like(weight))
    # stratified: each step comes n p_i times, to within one
    assert (torch.bincount(step, minlength=STEPS) - batch * p).abs().max() <= 1
    assert (weight * f[step]).mean().item() == pytest.approx(
        f.mean().item(), abs=2 * (f / (STEPS * p)).sum().item() / batch
    )


def test_it_cuts_the_variance_of_a_chains_bound():
    """To (Σ √E[K²])² − L², the least that any density over steps can reach, at its own estimate of
    E[K²]."""
    oracle, steps, n = ORACLES["mixture"](), 20, 20_000
    options = {"schedule": Linear(8.0, -5.0), "decoder": Gaussian(), "steps": steps}
    generator = torch.Generator().manual_seed(0)
    sampler, terms = LossSecondMoment(steps, memory=2000), []
    for t in grid(2000, steps, steps=steps):
        loss = elbo(oracle, oracle.sample(2000), t=t, generator=generator, **options).diffusion
        sampler.update(t, loss)
        terms.append(loss)
    second = torch.stack(terms).square().mean(1)
    best, uniform = second.sqrt().mean().square(), second.mean()
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    step = torch.searchsorted(
        sampler.probabilities().cumsum(0), u
    )  # independent draws, to compare variances
    t, weight = (step + 1) / steps, 1 / (steps * sampler.probabilities()[step])
    drawn = weight * elbo(oracle, oracle.sample(n), t=t, generator=generator, **options).diffusion
    got, error = drawn.square().mean(), drawn.square().std() / n**0.5
    assert abs(got - best) < 5 * error
    assert got < 0.8 * uniform


def test_a_restored_sampler_goes_on_as_before():
    sampler = warmed(torch.rand(STEPS, 4, generator=torch.Generator().manual_seed(0)))
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    other = LossSecondMoment(STEPS, memory=4)
    other.load_state_dict(torch.load(file))
    for one in (sampler, other):
        one.update(torch.tensor([0.5]), torch.tensor([3.0]))
    a, b = (one.draw(64, torch.Generator().manual_seed(5)) for one in (sampler, other))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert (
        sampler.half().history.dtype == torch.float64
    )  # squares of losses do not fit half precision


def test_losses_of_zero_leave_it_uniform_and_bad_ones_are_passed_over():
    assert torch.equal(
        warmed(torch.zeros(3, 4)).probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64)
    )
    sampler = warmed(torch.ones(3, 4))
    sampler.update(torch.tensor([1.0, 1.0]), torch.tensor([torch.inf, torch.nan]))
    assert torch.isfinite(sampler.probabilities()).all()


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_the_probabilities_do_not_depend_on_the_unit_of_the_losses(unit):
    """Squares of the first would be zero, of the last infinite."""
    p = warmed(
        unit * torch.tensor([[3.0, 4.0], [0.0, 5.0], [0.0, 0.0]], dtype=torch.float64), memory=2
    ).probabilities()
    expected = torch.tensor(
        [0.5, 0.5, 0.0], dtype=torch.float64
    )  # root mean squares of 5/√2, 5/√2 and 0
    assert torch.allclose(p, 0.999 * expected + 0.001 / 3, rtol=1e-12)


def test_the_ends_of_the_unit_interval_are_the_first_and_the_last_step():
    """A number below one may be rounded to it."""
    t, weight = warmed(torch.ones(3, 4)).at(torch.tensor([0.0, 1.0]))
    assert t.tolist() == [1 / 3, 1.0]
    assert weight.tolist() == pytest.approx([1.0, 1.0])


def test_what_is_noted_is_remembered_as_a_root_mean_square_of_the_finite():
    sampler = LossSecondMoment(2, memory=1)
    sampler.note(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([3.0, torch.nan, torch.inf]))
    sampler.note(torch.tensor([0.5, 1.0]), torch.tensor([-1.0, 2.0]))
    sampler.remember()
    assert sampler.history[:, 0].tolist() == pytest.approx([5**0.5, 2.0])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"LossSecondMoment: argument 'steps' must be .*; got 0"):
        LossSecondMoment(0)
    with pytest.raises(
        ValueError, match=r"argument 'uniform' must lie in \(0, 1\]; got 0 \(without it a step"
    ):
        LossSecondMoment(3, uniform=0.0)
    with pytest.raises(ValueError, match=r"argument 'uniform' must lie in \(0, 1\]; got 2"):
        LossSecondMoment(3, uniform=2.0)
    with pytest.raises(
        ValueError,
        match=r"LossSecondMoment.update: argument 't' must be i/3 with i = 1 … 3; got 0",
    ):
        LossSecondMoment(3).update(torch.zeros(2), torch.ones(2))

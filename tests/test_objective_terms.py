"""An objective that draws terms of the bound of a chain, evenly or by their size."""

import pytest
import torch
from chains import DECODER, EVERY, LEVELS, NOISE, STEPS, TABLE, Heads, chain

from vdiff import Denoiser, Objective, elbo
from vdiff.chain import vlb
from vdiff.decoder import Categorical
from vdiff.objective import VLB
from vdiff.parameterization import Eps
from vdiff.resampling import LossSecondMoment
from vdiff.times import stratified
from vdiff.variance import LearnedRange


def test_one_term_of_the_bound_times_their_number_is_the_bound_on_average():
    """Term by term: each is n times what `elbo`, which evaluates the network twice, has for it."""
    objective, n = chain(), STEPS + 1
    one = vlb(
        objective.model, LEVELS, schedule=TABLE, steps=STEPS, decoder=DECODER, t=EVERY, eps=NOISE
    )
    whole = elbo(
        objective.model,
        LEVELS,
        schedule=TABLE,
        steps=STEPS,
        decoder=DECODER,
        t=EVERY.clamp(min=1 / STEPS),
        eps=NOISE,
    )
    assert torch.allclose(one.prior, whole.prior)
    assert torch.allclose(one.diffusion[1:] / n, whole.diffusion[1:] / STEPS, rtol=1e-5)
    assert torch.allclose(one.reconstruction[:1] / n, whole.reconstruction[:1], rtol=1e-5)
    assert (one.diffusion[0], *one.reconstruction[1:].tolist()) == (0.0, *[0.0] * STEPS)
    drawn = vlb(
        objective.model,
        LEVELS,
        schedule=TABLE,
        steps=STEPS,
        decoder=DECODER,
        generator=torch.Generator().manual_seed(0),
    )
    assert int((drawn.reconstruction > 0).sum()) == 1  # ten examples, ten terms, stratified


@pytest.mark.parametrize("looks", [True, False])
def test_terms_drawn_by_their_size_have_the_mean_of_the_bound(looks):
    torch.manual_seed(0)
    decoder, terms = (DECODER, STEPS + 1) if looks else (Categorical(17), STEPS)
    sampler = LossSecondMoment(terms, memory=1)
    sampler.update(torch.arange(1, terms + 1) / terms, torch.logspace(0, 2, terms))
    objective = Objective(
        Denoiser(Heads(), Eps(), variance=LearnedRange()),
        schedule=TABLE,
        loss=VLB(decoder, steps=STEPS, resampling=sampler),
    ).eval()
    data, eps = LEVELS[:1].expand(200_000, 2), NOISE[:1].expand(200_000, 2)
    found = objective(data, u=stratified(200_000, offset=0.5), eps=eps).double().mean()
    whole = [objective.bound(LEVELS[:1], t=t[None], eps=NOISE[:1]) for t in EVERY[1:]]
    known = whole[0].prior + whole[0].reconstruction + sum(one.diffusion for one in whole) / STEPS
    assert found.item() == pytest.approx(known.item(), rel=1e-3)
    assert (sampler.noted == 0).all()  # an evaluation is not noted


def test_at_given_times_a_drawn_term_has_the_rest_of_its_bound():
    """The reconstruction too, which is small beside the term."""
    chosen = VLB(Categorical(17), steps=STEPS, resampling=LossSecondMoment(STEPS))
    objective = Objective(chain().model, schedule=TABLE, loss=chosen)
    given = {"t": EVERY.clamp(min=1 / STEPS), "eps": NOISE}
    bound = objective.bound(LEVELS, **given)
    rest = bound.prior + bound.reconstruction
    found = objective(LEVELS, **given) - bound.diffusion
    torch.testing.assert_close(found, rest, rtol=1e-3, atol=1e-6)
    assert (rest > 1e-3).any()


def test_what_is_drawn_follows_the_losses_of_all_micro_batches_and_ranks():
    """Two halves of a batch with their notes summed leave the memory that one process has."""
    one, halves = (
        chain(resampling=LossSecondMoment(STEPS + 1)),
        [chain(resampling=LossSecondMoment(STEPS + 1)) for _ in range(2)],
    )
    t = EVERY.roll(1)
    one(LEVELS, t=t, eps=NOISE)
    for i, half in enumerate(halves):
        half(LEVELS[i::2], t=t[i::2], eps=NOISE[i::2])
    notes = sum(half.loss.resampling.noted for half in halves)
    one.update()
    for half in halves:
        half.update(lambda _: notes.clone())
        assert torch.allclose(half.loss.resampling.history, one.loss.resampling.history)
        assert torch.equal(half.loss.resampling.count, torch.ones(STEPS + 1, dtype=torch.long))
        assert (half.loss.resampling.noted == 0).all()
    known = vlb(one.model, LEVELS, schedule=TABLE, steps=STEPS, decoder=DECODER, t=t, eps=NOISE)
    known = (known.diffusion + known.reconstruction)[EVERY.roll(1).argsort()]
    assert torch.allclose(one.loss.resampling.history[:, 0], known.double(), rtol=1e-6)
    one.loss.resampling.note(torch.tensor([0.1, 0.1, 0.2]), torch.tensor([3.0, 4.0, torch.nan]))
    one.update()
    assert one.loss.resampling.history[0, 1].item() == pytest.approx(12.5**0.5)
    assert one.loss.resampling.count[:3].tolist() == [2, 1, 1]

"""`evaluate` and `compare` over tokens: exact −log p of a Markov chain within the stated
errors."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tokens import Chain

from vdiff import Objective, elbo
from vdiff.denoiser import logsnr_time
from vdiff.discrete import AnyOrder, Hybrid, LeaveOneOut, Masked, TokenDenoiser, Uniform
from vdiff.likelihood import Independent, VarianceReduction, compare, evaluate, path_gap
from vdiff.likelihood.chunks import Share
from vdiff.losses import Weighted
from vdiff.schedule import Cosine, InTurn, Linear, LogLinear

LENGTH = 10
PLAIN = VarianceReduction.plain()
STRATA = VarianceReduction(importance=False, antithetic=False, baseline=False)
INDEPENDENT = VarianceReduction(any_order=False)
HARD = torch.tensor([[0] * 5 + [1] * 5])
PROCESSES = {
    "any order": (partial(Masked, 2), VarianceReduction()),
    "masked": (partial(Masked, 2), INDEPENDENT),
    "uniform": (partial(Uniform, 2), VarianceReduction()),
    "hybrid": (partial(Hybrid.gidd, 2, uniform=0.3), VarianceReduction()),
}


def model_of(process, keep=0.9, **options):
    if not isinstance(process, Masked):
        options |= {"time": logsnr_time}
    return TokenDenoiser(Chain(process, keep), process, LeaveOneOut(), **options)


MASKED = model_of(Masked(2))
CHAIN = MASKED.network


def texts(n, length=LENGTH, seed=0):
    """Draws of the chain."""
    generator = torch.Generator().manual_seed(seed)
    moved = torch.rand(n, length, generator=generator) < torch.tensor([0.5] + [0.1] * (length - 1))
    return moved.long().cumsum(1) % 2


X = texts(6)
MINUS_LOG_P = -CHAIN.log_prob(X)
BITS = (MINUS_LOG_P.mean() / LENGTH / math.log(2)).item()


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_bound_of_exact_conditionals_is_minus_log_p(kind):
    make, plan = PROCESSES[kind]
    process = make()
    report = evaluate(model_of(process), X, plan=plan, draws=32, replicates=16)
    used = report.protocol["process"]
    assert used == ("AnyOrder(2)" if kind == "any order" else repr(process))
    assert abs(report.total.value - BITS) < 4 * report.total.monte_carlo < 0.2 * BITS
    by_text = report.by_image * LENGTH * math.log(2)
    assert (by_text - MINUS_LOG_P).square().mean().sqrt() < 0.25
    assert report.prior.value + report.reconstruction.value < 1e-5


def per_call(plan, replicates, draws=10, copies=100):
    """The variance of one call of the network at 0000011111, nats², and the mean."""
    x = HARD.repeat(copies, 1)
    report = evaluate(MASKED, x, plan=plan, draws=draws, replicates=replicates)
    nats = report.nats
    return nats.monte_carlo**2 * copies * replicates * draws, nats.value


def test_masks_of_a_stratified_number_have_a_fifth_of_the_variance():
    """Exact, nats² at 0000011111 in units of one call: 4.2895 with k stratified over 1 … 10,
    8.5270 with k uniform. Masks of each token, in the time of `Cosine()`: 18.611."""
    uniform_k = replace(STRATA, times=Independent())
    strata, uniform_k, each = (
        per_call(p, n)[0] for p, n in ((STRATA, 80), (uniform_k, 30), (PLAIN, 30))
    )
    assert strata == pytest.approx(4.2895, rel=0.05)
    assert strata < 4.4
    assert uniform_k == pytest.approx(8.5270, rel=0.1)
    assert each == pytest.approx(18.611, rel=0.1)
    default, mean = per_call(VarianceReduction(), 30)
    assert default < 4.4
    assert mean == pytest.approx(3.83861640, abs=4 * math.sqrt(default / 30_000))


def coverage(evaluations, kind="any order", **options):
    """How many of the 95 % intervals hold the exact number."""
    make, plan = PROCESSES[kind]
    model, x = model_of(make()), X[:4]
    exact = (-CHAIN.log_prob(x).mean() / LENGTH / math.log(2)).item()
    held = 0
    for seed in range(evaluations):
        report = evaluate(model, x, plan=plan, seed=seed, **options)
        low, high = report.total.interval()
        held += low < exact < high
    return held / evaluations


def test_intervals_cover():
    assert 0.86 <= coverage(100, draws=8, replicates=6) <= 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["any order", "masked"])
def test_intervals_cover_as_often_as_they_say(kind):
    """Measured: 94.1 and 95.5 %. Uniform tokens, with rare large draws: 93.4 % of 40."""
    assert 0.935 <= coverage(1000, kind, draws=10, replicates=8) <= 0.965


@pytest.mark.parametrize("kind", PROCESSES)
def test_opposite_noise_has_the_same_mean(kind):
    make, plan = PROCESSES[kind]
    model, paired = model_of(make()), replace(plan, antithetic=True)
    seen = Seen(model)
    evaluate(seen, X, plan=replace(paired, importance=False, baseline=False), draws=32)
    first, second = seen.z[0].view(len(X), 2, 16, LENGTH).unbind(1)
    assert not torch.equal(first, second)
    report = evaluate(model, X, plan=paired, draws=16, replicates=16)
    assert report.protocol["antithetic"] is True
    assert abs(report.total.value - BITS) < 4 * report.total.monte_carlo < 0.2


def test_a_tolerance_is_reached():
    report = evaluate(MASKED, X, tolerance=0.02)
    assert report.total.monte_carlo < 0.025
    assert abs(report.total.value - BITS) < 4 * report.total.monte_carlo


def test_the_draws_of_a_text_are_its_own():
    setting = {"draws": 16, "plan": STRATA}
    whole = evaluate(MASKED, X, **setting)
    small = evaluate(MASKED, X, **setting, batch=1)
    part = evaluate(MASKED, X[:2], **setting)
    assert torch.equal(whole.by_image[:2], part.by_image)
    torch.testing.assert_close(small.by_image, whole.by_image, rtol=1e-12, atol=1e-12)
    assert evaluate(MASKED, X, **setting, seed=1).total.value != whole.total.value
    shares = [Share(index, 2, lambda v: v) for index in range(2)]
    halves = [evaluate(MASKED, X, **setting, share=share) for share in shares[:1]]
    torch.testing.assert_close(halves[0].by_image[::2], whole.by_image[::2])


class Seen(torch.nn.Module):
    """A model that keeps every z."""

    def __init__(self, model):
        super().__init__()
        self.model, self.process, self.z = model, model.process, []
        self.takes_time = model.takes_time

    def forward(self, z, logsnr):
        self.z.append(z)
        return self.model(z, logsnr)


def test_two_models_share_z_and_their_difference_has_a_smaller_error():
    first, second = Seen(MASKED), Seen(model_of(Masked(2), keep=0.8))
    setting = {"draws": 16, "replicates": 8}
    comparison = compare(first, second, X, **setting)
    assert all(map(torch.equal, first.z, second.z))
    alone = [evaluate(m, X, **setting).total for m in (first, second)]
    apart = math.hypot(*(e.monte_carlo for e in alone))
    assert comparison.difference.monte_carlo < 0.5 * apart
    wanted = (MINUS_LOG_P + second.model.network.log_prob(X)).mean() / LENGTH / math.log(2)
    error = comparison.difference.monte_carlo
    assert abs(comparison.difference.value - wanted.item()) < 4 * error
    assert comparison.protocol["process"] == "AnyOrder(2)"
    assert "bits/token" in str(comparison)
    assert comparison.asdict()["unit"] == "bits/token"


def test_models_of_two_processes_are_compared_on_one_noise():
    uniform = model_of(Uniform(2))
    comparison = compare(MASKED, uniform, X, draws=16, replicates=16)
    error = comparison.difference.monte_carlo
    assert abs(comparison.difference.value) < 4 * error < 0.2
    assert comparison.protocol["process"] == "Masked(2)"  # as the other one has no order
    assert comparison.protocol["process, second"] == "Uniform(2)"


def test_between_other_ends_each_bound_is_its_own():
    near = Linear(1.0, -1.0)
    comparison = compare(
        MASKED, MASKED, X, schedule=(near, None), draws=16, replicates=32, plan=INDEPENDENT
    )
    alone = evaluate(MASKED, X, schedule=near, draws=32, replicates=32, plan=INDEPENDENT).total
    error = math.hypot(alone.monte_carlo, comparison.difference.monte_carlo)
    assert abs(comparison.difference.value - (alone.value - BITS)) < 4 * error < 0.05


class Killed(Exception):
    pass


@pytest.mark.parametrize("tolerance", [None, 0.03])
def test_a_resumed_evaluation_is_the_uninterrupted_one_bit_for_bit(tolerance):
    setting = {"draws": 4, "batch": 8, "tolerance": tolerance, "bytes": [7] * 6}
    whole = evaluate(MASKED, X, **setting)
    states = []

    def kill(state):
        states.append(copy.deepcopy(state))
        if len(states) == 2:
            raise Killed

    with pytest.raises(Killed):
        evaluate(MASKED, X, **setting, checkpoint=kill)
    resumed = evaluate(MASKED, X, **setting, resume=states[-1])
    assert resumed.asdict() == whole.asdict()
    assert torch.equal(resumed.by_image, whole.by_image)
    for other in ({"plan": INDEPENDENT}, {"seed": 1}):
        with pytest.raises(ValueError, match="state of this evaluation"):
            evaluate(MASKED, X, **setting | other, resume=states[-1])


def test_given_tokens_are_a_prompt_and_absent_ones_padding():
    """−log p(rest | prompt), with prompts and paddings of other lengths in each text."""
    prompts, ends = torch.tensor([0, 1, 4, 9, 3, 10]), torch.tensor([10, 8, 10, 10, 6, 10])
    place = torch.arange(LENGTH)
    mask, absent = place >= prompts[:, None], place >= ends[:, None]
    padded = torch.where(absent, -100, X)
    wanted = []
    for x, start, end in zip(X, prompts.tolist(), ends.tolist(), strict=True):
        whole = CHAIN.log_prob(x[None, :end])
        wanted.append(-whole + (CHAIN.log_prob(x[None, :start]) if start else 0))
    exact = torch.cat(wanted)
    counts = (ends - prompts).clamp(min=0)
    exact[-1] = 0.0
    for plan in VarianceReduction(), INDEPENDENT:
        report = evaluate(
            MASKED, padded, mask=mask, absent=absent, plan=plan, draws=16, replicates=32,
            bytes=counts * 3,
        )  # fmt: skip
        bits = (exact.sum() / counts.sum() / math.log(2)).item()
        assert report.dims.tolist() == counts.tolist()
        assert abs(report.total.value - bits) < 4 * report.total.monte_carlo < 0.1
        assert report.total.count == 5
        assert report.bits_per_byte.value == pytest.approx(report.total.value / 3, rel=1e-12)
        assert report.bits_per_byte.images == pytest.approx(report.total.images / 3, rel=1e-12)
        assert report.protocol["modelled"] == {"tokens": 27, "of": 60, "texts": 5}


def test_bits_per_byte_are_a_ratio_of_sums_with_its_errors():
    counts = torch.tensor([11, 30, 12, 9, 17, 25])
    report = evaluate(MASKED, X, draws=8, bytes=counts)
    nats = report.by_image * LENGTH * math.log(2)
    per_byte, bits = report.bits_per_byte, nats / math.log(2)
    ratio = (bits.sum() / counts.sum()).item()
    assert per_byte.value == pytest.approx(ratio, rel=1e-12)
    off = bits - ratio * counts.double()
    by_hand = (off.square().sum() * 6 / 5).sqrt() / counts.sum()
    assert per_byte.images == pytest.approx(by_hand.item(), rel=1e-12)
    scale = 60 / counts.sum().item()
    assert per_byte.monte_carlo == pytest.approx(report.total.monte_carlo * scale, rel=1e-12)
    assert report.nats.value == pytest.approx(nats.mean().item(), rel=1e-12)
    assert report.nats.images == pytest.approx((nats.std() / 6**0.5).item(), rel=1e-12)
    assert report.bits_per_token == report.total
    jackknife = []
    for i in range(6):
        rest = [j for j in range(6) if j != i]
        jackknife.append((bits[rest].sum() / counts[rest].sum()).item())
    spread = torch.tensor(jackknife).double()
    close = (5 / 6 * (spread - spread.mean()).square().sum()).sqrt().item()
    assert per_byte.images == pytest.approx(close, rel=0.25)


def test_a_difference_in_bits_per_byte_is_that_of_two_evaluations():
    counts, same = [11, 30, 12, 9, 17, 25], {"draws": 8, "seed": 3}
    flat = TokenDenoiser(lambda z: torch.zeros(*z.shape, MASKED.process.vocabulary), Masked(2))
    paired = compare(flat, MASKED, X, bytes=counts, **same)
    per_byte, scale = paired.bits_per_byte, X.numel() / sum(counts)
    assert per_byte.value == pytest.approx(paired.difference.value * scale, rel=1e-12)
    assert per_byte.monte_carlo == pytest.approx(paired.difference.monte_carlo * scale, rel=1e-12)
    alone = [evaluate(m, X, bytes=counts, draws=4096).bits_per_byte for m in (flat, MASKED)]
    error = math.hypot(per_byte.monte_carlo, *(e.monte_carlo for e in alone))
    assert abs(per_byte.value - (alone[0].value - alone[1].value)) < 5 * error
    for shown in str(paired), paired._repr_html_(), json.dumps(paired.asdict()):
        assert "bits/byte" in shown
    assert paired.protocol["bytes"] == 104
    assert compare(flat, MASKED, X, **same).bits_per_byte is None
    with pytest.raises(ValueError, match="a number for each of 6 texts"):
        compare(flat, MASKED, X, bytes=counts[1:], **same)


def test_bytes_counted_in_all_have_the_error_of_the_tokens():
    report = evaluate(MASKED, X, draws=8, bytes=300)
    per_byte = report.bits_per_byte
    for name in ("value", "monte_carlo", "images"):
        assert getattr(per_byte, name) == pytest.approx(getattr(report.total, name) / 5, rel=1e-12)
    assert report.protocol["bytes"] == 300
    assert "bytes by text" not in report.protocol
    assert "300 bytes counted" in str(report)


def test_a_report_of_texts_speaks_of_texts():
    report = evaluate(MASKED, X, draws=8, bytes=[11, 30, 12, 9, 17, 25])
    for shown in str(report), report._repr_html_(), json.dumps(report.asdict()):
        assert "image" not in shown
        assert "bits/dim" not in shown
        assert "bits/token" in shown
        assert "bits/byte" in shown
    assert "104 bytes counted" in str(report)
    plain = report.asdict()
    assert plain["bytes"] == 104
    assert plain["bits/byte"]["texts"] == report.bits_per_byte.images
    assert plain["protocol"]["texts"] == 6
    assert plain["protocol"]["asked for"]["any order"] is True
    assert report.protocol["bytes by text"]
    one = evaluate(MASKED, X[:1], draws=8, bytes=[11])
    assert "one text" in str(one)
    assert one.bits_per_byte.images is None


def test_an_objective_has_its_own_schedule_and_steps():
    schedule = Cosine(9.0, -8.0)
    setting = {"draws": 8}
    chain = Objective(MASKED, schedule=schedule, loss=Weighted(steps=16))
    report = evaluate(chain, X, **setting)
    same = evaluate(MASKED, X, schedule=schedule, steps=16, **setting)
    assert report.asdict() == same.asdict()
    assert report.protocol["process"] == "Masked(2)"  # a chain keeps its process
    free = Objective(MASKED, schedule=LogLinear())
    same = evaluate(MASKED, X, schedule=LogLinear(), **setting)
    assert evaluate(free, X, **setting).asdict() == same.asdict()
    assert compare(free, chain, X, **setting).protocol["T, second"] == 16


def test_a_chain_has_its_own_bound():
    report = evaluate(MASKED, X, schedule=LogLinear(), steps=4, draws=16, replicates=64)
    bound = elbo(MASKED, X.repeat(400, 1), schedule=LogLinear(), steps=4, draws=4)
    nats = bound.total.view(400, 6).double()
    error = math.hypot(report.nats.monte_carlo, nats.std(0).square().sum().sqrt().item() / 120)
    assert abs(report.nats.value - nats.mean().item()) < 4 * error
    assert report.total.value > BITS + 4 * report.total.monte_carlo


def test_a_network_that_gets_a_time_keeps_its_process():
    """Its prediction depends on λ beside k, so that its bound in any order is another one."""
    told = TokenDenoiser(Chain(Masked(2)), Masked(2), time=logsnr_time)
    assert evaluate(told, X, draws=8).protocol["process"] == "Masked(2)"
    mixed = compare(told, model_of(Masked(2), keep=0.8), X, draws=8)
    assert mixed.protocol["process"] == "Masked(2)"
    own = TokenDenoiser(Chain(AnyOrder(2)), AnyOrder(2), LeaveOneOut())
    setting = {"draws": 8, "plan": STRATA}
    assert evaluate(own, X, **setting).total == evaluate(MASKED, X, **setting).total


def test_one_token_after_another_has_the_bound_of_all_at_once():
    """The chain rule of an autoregressive model is a path; for exact conditionals none matters."""
    in_turn = InTurn(LogLinear(), LENGTH)
    gap = path_gap(MASKED, X, paths=[LogLinear(), in_turn], draws=32, replicates=16)
    difference = gap.gaps[0].difference
    assert abs(difference.value) < 4 * difference.monte_carlo < 0.2
    assert "bits/token" in str(gap)


def test_a_bound_worse_than_uniform_tokens_is_warned_of():
    with pytest.warns(UserWarning, match="bits/token is more than uniform noise over 2 values"):
        evaluate(MASKED, 1 - HARD.cumsum(1) % 2, draws=8)


@pytest.mark.parametrize("process", [Masked(2), AnyOrder(2), Uniform(2)])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(process, wrong):
    right = model_of(process)
    time = logsnr_time if right.takes_time else None
    bad = TokenDenoiser(lambda z, *_: torch.full((*z.shape, 2), wrong), process, time=time)
    with pytest.raises(ValueError, match=r"evaluate.*finite bound; got NaN or infinity on text"):
        evaluate(bad, HARD, schedule=LogLinear(), tolerance=0.5)
    with pytest.raises(ValueError, match=r"compare.*finite bound; got NaN or infinity on text"):
        compare(right, bad, HARD, schedule=LogLinear(), tolerance=0.5)
    many = HARD.expand(64, -1)  # a draw without a lost token does not read the logits
    assert not elbo(bad, many, schedule=LogLinear()).total.isfinite().all()

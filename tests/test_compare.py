"""`compare`: the difference of two bounds, on the same images, times and noise; a report that says
what it rests on."""

import json
import math
import re
import warnings

import pytest
import torch
from registry import ORACLES

from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.likelihood import Stratified, VarianceReduction, compare, evaluate
from vdiff.likelihood.digest import data_hash
from vdiff.likelihood.tally import BINS
from vdiff.oracle import GaussianMixture, Lattice
from vdiff.sampling import Clipped
from vdiff.schedule import Cosine, Linear, Normal, Tabulated

DECODER = Categorical(levels=4)
PMF = [0.5, 0.3, 0.15, 0.05]
RIGHT, WRONG = Lattice(DECODER.level_values, PMF), ORACLES["lattice"]()
DATA = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 60, 30, 10]))[:, None]
SETTING = {"schedule": Linear(7.0, -6.0), "decoder": DECODER, "draws": 32}


def test_the_difference_is_that_of_the_two_bounds_with_a_fraction_of_the_error():
    both = [
        evaluate(model, DATA, **SETTING, seed=s).total for s, model in enumerate((WRONG, RIGHT))
    ]
    paired = compare(WRONG, RIGHT, DATA, **SETTING).difference
    unpaired = math.hypot(both[0].monte_carlo, both[1].monte_carlo)
    assert abs(paired.value - (both[0].value - both[1].value)) < 4 * unpaired
    assert paired.monte_carlo < unpaired / 3
    assert paired.interval()[0] > 0


def test_what_was_done_to_either_model_is_in_the_protocol():
    clipped = Clipped(RIGHT, -0.5, 0.5)
    known = compare(clipped, WRONG, DATA[:20], **SETTING | {"draws": 4}).protocol
    assert known["x̂ clipped to, first"] == "[-0.5, 0.5]"
    assert "x̂ clipped to, second" not in known


def test_the_difference_by_log_snr_adds_up_and_turns_its_sign_with_the_models():
    one, other = compare(WRONG, RIGHT, DATA, **SETTING), compare(RIGHT, WRONG, DATA, **SETTING)
    assert one.difference.value == pytest.approx(-other.difference.value, rel=1e-9)
    assert one.curve.value.sum().item() == pytest.approx(
        one.difference.value, rel=1e-9
    )  # prior and decoder are the same
    assert len(one.curve.value) == BINS
    assert one.curve.logsnr_min[0] == -6.0
    assert one.curve.logsnr_max[-1] == 7.0
    inner = (
        one.curve.value.abs() > 0.05 * one.curve.value.abs().max()
    )  # where the levels overlap: neither in pure noise nor where all is given
    assert -6 < one.curve.logsnr_min[inner].min() < one.curve.logsnr_max[inner].max() < 7
    assert "difference by log-SNR\n  -6.0 to " in str(one)


def test_a_report_is_plain_data_from_which_the_number_comes_again():
    report = evaluate(RIGHT, DATA, **SETTING, seed=7, record={"ema": 0.999})
    known = json.loads(json.dumps(report.asdict(), allow_nan=False))
    protocol = known["protocol"]
    assert known["unit"] == "bits/dim"
    assert protocol["data"] == data_hash(DATA)
    assert (protocol["levels"], protocol["T"], protocol["ema"], protocol["images"]) == (
        4,
        "∞",
        0.999,
        200,
    )
    assert protocol["evaluations"] == 200 * 4 * 32 + protocol["pilot"]
    again = evaluate(
        RIGHT, DATA, schedule=Linear(*reversed(protocol["logsnr"])), decoder=DECODER,
        draws=protocol["draws"],
        replicates=protocol["replicates"], seed=protocol["seed"], batch=protocol["batch"],
    )  # fmt: skip
    assert again.total == report.total
    for word in (
        "95 %",
        "data ",
        "seed 7",
        "ema 0.999",
        "decoder Categorical(levels=4, levels_at_ends=False)",
        "diffusion by log-SNR",
    ):
        assert word in re.sub(" +", " ", str(report))


def test_the_evaluation_takes_only_the_ends_of_the_schedule():
    there = [
        evaluate(RIGHT, DATA, schedule=s, decoder=DECODER, draws=8).total
        for s in (Linear(7.0, -6.0), Normal(1.0, 2.0, 7.0, -6.0))
    ]
    assert there[0] == there[1]


def test_a_density_that_never_reaches_the_tail_is_told_of():
    """A narrow density over a wide range: the bound would come out too good, and its own error
    would not say so."""
    narrow = Normal(6.0, 0.35, 7.0, -6.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # several; the report lists them
        bad = evaluate(
            RIGHT,
            DATA,
            **SETTING,
            plan=VarianceReduction(
                importance=narrow, controls=(), antithetic=False, baseline=False
            ),
        )
    assert any(
        re.match(
            r"the density sends \d+ of \d+ draws to λ between .* the bound may come out too good",
            w,
        )
        for w in bad.warnings
    )
    truth = RIGHT.bound(7.0, -6.0, DECODER).total.item() / math.log(2)
    assert bad.total.value < truth - 4 * bad.total.monte_carlo
    good = evaluate(RIGHT, DATA, **SETTING)
    assert not good.warnings
    assert good.diagnostics.effective > 0.1 * good.diagnostics.draws


def test_a_few_draws_that_carry_the_integral_are_told_of():
    oracle = GaussianMixture([1.0], [[0.0]], [[1e-4]])
    plain = VarianceReduction(
        times=Stratified(), importance=False, controls=(), antithetic=False, baseline=False
    )
    far = GaussianMixture([1.0], [[0.5]], [[1e-6]])  # its error explodes at the clean end
    with pytest.warns(
        UserWarning,
        match=r"draws are worth \d+: a few of them carry the integral|one draw of 8 makes",
    ):
        evaluate(
            far,
            oracle.sample(2),
            schedule=Linear(20.0, -5.0),
            decoder=Gaussian(),
            draws=2,
            replicates=2,
            plan=plain,
        )


def test_what_the_pieces_bought_is_in_the_report():
    savings = evaluate(RIGHT, DATA, **SETTING).relative_costs
    assert list(savings)[:4] == [
        "plain Monte Carlo",
        "stratified times",
        "importance density",
        "control variates",
    ]
    assert (
        savings["plain Monte Carlo"]
        > savings["stratified times"]
        > savings["importance density"]
        > savings["control variates"]
        >= 1
    )


def test_the_decoder_is_part_of_the_number():
    """Reconstruction of an inner level at λ_max = 13.3, bits/dim, as the report gives it: VDM's
    softmax and the interval Gaussian."""
    data = torch.full((4, 3), 128)
    oracle = GaussianMixture([1.0], torch.zeros(1, 3), 0.1 * torch.ones(1, 3))
    for closed, softmax, interval in ((True, 0.0101, 0.0512), (False, 0.0105, 0.0523)):
        for decoder, known in (
            (Categorical(256, levels_at_ends=closed), softmax),
            (DiscretizedGaussian(256, levels_at_ends=closed), interval),
        ):
            report = evaluate(oracle, data, schedule=Linear(13.3, -5.0), decoder=decoder, draws=2)
            assert report.reconstruction.value == pytest.approx(known, abs=5e-5)
            assert report.reconstruction.monte_carlo == 0
            assert repr(decoder) in " ".join(str(report).split())


def test_a_table_has_the_mean_of_the_samples_it_replaces():
    """The decoder's exact term against sampled z₀."""
    data, generator = (
        torch.tensor([[0], [1], [2], [3]]).repeat(20_000, 1),
        torch.Generator().manual_seed(0),
    )
    for decoder in (Categorical(4), DiscretizedGaussian(4)):
        eps = torch.randn(len(data), 1, generator=generator)
        for level in (2.0, 5.0):
            x = decoder.encode(data)
            a, s = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
            sampled = decoder.nll(data, a * x + s * eps, level, lambda z, logsnr: None)
            exact = decoder.expected_nll(data, level)
            assert abs((sampled - exact).mean()) < 4 * (sampled - exact).std() / math.sqrt(
                len(data)
            )


LONG, SHORT = Linear(9.0, -8.0), Linear(4.0, -3.0)
PAIRS = {
    "ends": {"schedule": (LONG, SHORT), "decoder": DECODER},
    "ends that overlap": {"schedule": (Linear(9.0, -3.0), Cosine(5.0, -8.0)), "decoder": DECODER},
    "ends that do not": {"schedule": (Linear(9.0, 3.0), Linear(1.0, -8.0)), "decoder": DECODER},
    "steps": {"schedule": Cosine(7.0, -6.0), "decoder": DECODER, "steps": (4, 9)},
    "chains": {
        "schedule": (Tabulated.cosine_betas(12), Linear(6.0, -6.0)),
        "decoder": DECODER,
        "steps": (11, 5),
    },
    "a chain and the limit": {
        "schedule": (Cosine(7.0, -6.0), SHORT),
        "decoder": DECODER,
        "steps": (6, None),
    },
    "decoders": {"schedule": Linear(7.0, -6.0), "decoder": (DECODER, DiscretizedGaussian(4))},
    "a decoder that looks at the network": {
        "schedule": SHORT,
        "decoder": (DiscretizedGaussian(4, uses_network=True), DECODER),
    },
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_difference_of_two_whole_bounds_each_with_its_own_ends(pair):
    """Against each bound by itself, with many draws; and the other way round it turns its sign."""
    setting = PAIRS[pair]
    models, bounds = (WRONG, RIGHT), []
    for i, model in enumerate(models):
        side = {w: v[i] if isinstance(v, tuple) else v for w, v in setting.items()}
        bounds.append(evaluate(model, DATA, **side, draws=64, replicates=8).total)
    there = compare(*models, DATA, **setting, draws=64)
    turned = {w: v[::-1] if isinstance(v, tuple) else v for w, v in setting.items()}
    back = compare(*models[::-1], DATA, **turned, draws=64)
    for sign, found in ((1, there.difference), (-1, back.difference)):
        error = math.hypot(found.monte_carlo, bounds[0].monte_carlo, bounds[1].monte_carlo)
        assert abs(sign * found.value - (bounds[0].value - bounds[1].value)) < 4 * error
        assert found.monte_carlo < 0.02 * max(1.0, abs(found.value))
    assert abs(bounds[0].value - bounds[1].value) > 0.01
    assert abs(there.difference.value + back.difference.value) < 4 * error
    json.dumps(there.asdict(), allow_nan=False)


def test_unequal_ends_in_closed_form_and_in_the_protocol():
    """Of one exact denoiser, whose bound between any ends is known."""
    found = compare(RIGHT, RIGHT, DATA, schedule=(LONG, SHORT), decoder=DECODER, draws=32)
    known = [RIGHT.bound(s.logsnr_max, s.logsnr_min, DECODER) for s in (LONG, SHORT)]
    exact = [bound.total.item() / math.log(2) for bound in known]
    error = 4 * found.difference.monte_carlo
    assert found.difference.value == pytest.approx(exact[0] - exact[1], abs=error)
    assert found.protocol["logsnr"] == [-8.0, 9.0]
    assert found.protocol["logsnr, second"] == [-3.0, 4.0]
    assert (found.curve.logsnr_min[0], found.curve.logsnr_max[-1]) == (-8.0, 9.0)
    same = compare(WRONG, RIGHT, DATA, **SETTING | {"draws": 4}).protocol
    assert "logsnr, second" not in same
    chains = compare(WRONG, RIGHT, DATA, **SETTING | {"draws": 4, "steps": (3, None)}).protocol
    assert (chains["T"], chains["T, second"]) == (3, "∞")


def test_unequal_ends_cost_no_more_error_than_the_two_bounds_apart():
    setting, ends = {"decoder": DECODER, "draws": 32}, (LONG, Linear(8.5, -8.0))
    paired = compare(WRONG, RIGHT, DATA, schedule=ends, **setting).difference
    alone = [evaluate(m, DATA, schedule=LONG, **setting).total for m in (WRONG, RIGHT)]
    assert paired.monte_carlo < 0.5 * math.hypot(*(one.monte_carlo for one in alone))


def test_no_network_is_asked_beyond_its_own_ends():
    seen = {"first": [], "second": []}

    def watched(name, model):
        def answer(z, logsnr):
            seen[name].append(logsnr)
            return model(z, logsnr)

        return answer

    both = [watched("first", WRONG), watched("second", RIGHT)]
    compare(*both, DATA, schedule=(Linear(9.0, -3.0), Linear(5.0, -8.0)), decoder=DECODER, draws=8)
    asked = {name: torch.cat(levels).aminmax() for name, levels in seen.items()}
    assert -3 <= asked["first"][0] < asked["first"][1] <= 9
    assert -8 <= asked["second"][0] < asked["second"][1] <= 5


def test_data_of_other_levels_is_other_data():
    cases = ((DATA, (DECODER, Categorical(5))), (DATA.double(), (Gaussian(), DECODER)))
    for data, decoder in cases:
        with pytest.raises(ValueError, match="'decoder' must be a pair for the same levels"):
            compare(WRONG, RIGHT, data, schedule=LONG, decoder=decoder)

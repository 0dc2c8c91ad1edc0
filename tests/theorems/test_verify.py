"""Every theorem holds, every counterexample fails; and what `verify` does with a model of one's
own."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from vdiff import Denoiser
from vdiff.nn import MLP, UNet
from vdiff.parameterization import Eps, V
from vdiff.theorems import THEOREMS, Report, Sides, Subject, Verdict, verification, verify
from vdiff.theorems.pages import theorem_page
from vdiff.theorems.theorem import AT_LEAST, equal, paired, sampled
from vdiff.theorems.verification import by_topic
from vdiff.variance import LearnedRange


@pytest.mark.parametrize("name", THEOREMS)
def test_the_theorem_holds_and_fails_without_its_hypotheses(name):
    report = verify(names=[name])
    assert len(report) == 1 + len(THEOREMS[name].counterexamples)
    assert report.ok, report


def test_there_are_many_and_each_says_what_it_is():
    assert len(THEOREMS) >= 40
    assert sum(bool(t.counterexamples) for t in THEOREMS.values()) >= 0.9 * len(THEOREMS)
    assert sum(t.any_network for t in THEOREMS.values()) >= 10
    for theorem in THEOREMS.values():
        assert theorem.statement.endswith("."), theorem.name
        assert theorem.source, theorem.name


def test_every_module_with_theorems_is_a_topic():
    assert {theorem.topic for theorem in THEOREMS.values()} == set(by_topic())
    files = Path(verification.__file__).parent.glob("*.py")
    assert {file.stem for file in files if "\n@theorem(" in file.read_text()} == set(by_topic())


ANY = [
    theorem.name for theorems in by_topic().values() for theorem in theorems if theorem.any_network
]


class Noisy(nn.Module):
    """A network whose answers depend on whether it trains."""

    def __init__(self):
        super().__init__()
        self.inner, self.dropout = MLP(3, width=16), nn.Dropout(0.5)

    def forward(self, z, logsnr):
        return self.dropout(self.inner(z, logsnr))


MODELS = {
    "float32": lambda: (Denoiser(MLP(3, width=16), Eps()), torch.randn(20, 3)),
    "images": lambda: (Denoiser(UNet(1, width=8), V()), torch.randn(8, 1, 8, 8)),
    "a learned variance": lambda: (
        Denoiser(MLP(3, width=16, dims_out=6), V(), variance=LearnedRange()),
        torch.randn(200, 3),
    ),
    "dropout": lambda: (Denoiser(Noisy(), Eps()), torch.randn(20, 3)),
}


@pytest.mark.parametrize("case", MODELS)
def test_any_network_is_any_network(case):
    torch.manual_seed(0)
    model, data = MODELS[case]()
    names = (
        ANY
        if case == "float32"
        else [
            "step-is-a-squared-error",
            "telescoped-bound",
            "parameterization-invariance",
            "simple-loss-is-a-weighted-bound",
        ]
    )
    report = verify(model, data, names=names)
    assert report.ok, report
    assert model.training
    assert torch.is_grad_enabled()


def test_a_model_runs_what_holds_of_any_network_by_default():
    model, data = MODELS["float32"]()
    report = verify(model, data)
    assert [verdict.name for verdict in report] == ANY


def test_names_are_theorems_or_topics():
    assert {verdict.name for verdict in verify(names="scores")} == {
        t.name for t in by_topic()["scores"]
    }
    assert len(verify(names=["tweedie", "tweedie"])) == 2


def test_bad_requests_are_named():
    model, data = MODELS["float32"]()
    with pytest.raises(
        ValueError,
        match=(
            r"verify: argument 'names' must be names of theorems or topics; got 'tweedy' \(did "
            r"you mean 'tweedie'\?\)"
        ),
    ):
        verify(names=["tweedy"])
    with pytest.raises(
        ValueError,
        match=(
            r"argument 'names' must hold of any network where a model is given; got 'tweedie' "
            r"\(it is about the exact"
        ),
    ):
        verify(model, data, names=["tweedie"])
    with pytest.raises(
        TypeError,
        match=(
            r"verify: argument 'data' must come with model; got None \(a theorem about a network "
            r"needs both\)"
        ),
    ):
        verify(model)
    with pytest.raises(TypeError, match=r"verify: argument 'model' must come with data; got None"):
        verify(data=data)
    with pytest.raises(
        TypeError,
        match=r"verify: argument 'data' must be real and floating; got torch.uint8 \(encode first",
    ):
        verify(model, data.byte())
    with pytest.raises(
        TypeError,
        match=(
            r"verify: argument 'model' must be called as model\(z, logsnr\) and return a "
            r"Prediction; got .*Denoiser"
        ),
    ):
        verify(Denoiser, data)
    with pytest.raises(
        TypeError,
        match=r"verify: argument 'model' must return a Prediction; got Tensor \(wrap the network",
    ):
        verify(lambda z, logsnr: z, data, names=["telescoped-bound"])


def test_an_error_in_one_theorem_is_its_own_and_the_rest_run(monkeypatch):
    def broken(subject):
        raise ZeroDivisionError("of\n this theorem")

    monkeypatch.setitem(
        THEOREMS, "tweedie", dataclasses.replace(THEOREMS["tweedie"], sides=broken)
    )
    report = verify(names=["tweedie", "kl-of-equal-covariances"])
    assert [verdict.ok for verdict in report] == [False, True, True, True]
    assert not report.ok
    assert str(report[0]).splitlines()[-1] == "    FAILS: ZeroDivisionError: of this theorem"
    shapes = dataclasses.replace(
        THEOREMS["tweedie"], sides=lambda subject: Sides(torch.zeros(2), torch.zeros(3), 0.0, "")
    )
    monkeypatch.setitem(THEOREMS, "tweedie", shapes)
    assert "FAILS: RuntimeError" in str(verify(names=["tweedie"]))


def test_a_models_table_says_that_it_is_no_proof_of_the_network():
    model, data = MODELS["float32"]()
    printed = str(verify(model, data, names=["step-is-a-squared-error"]))
    assert "not that the network is right" in printed
    assert "`vdiff verify --estimators --model`" in printed.splitlines()[-1]
    assert "the network" not in str(verify(names=["step-is-a-squared-error"]))


SAMPLED = [
    "schedule-invariance-of-any-network",
    "importance-sampling-invariance",
    "training-on-noisier-data",
    "estimators-share-their-mean",
    "path-estimators-share-their-mean",
    "raw-terms-differ-by-an-entropy",
]


def points(parameterization, scale=0.1):
    torch.manual_seed(0)
    network = MLP(3, width=16)
    for parameter in network.parameters():  # a new network's last layer is zero
        parameter.data.add_(scale * torch.randn_like(parameter))
    return Denoiser(network, parameterization), torch.randn(64, 3)


def percent(verdict):
    _, right, allowed = verdict.sides.worst
    return 100 * allowed / abs(right)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sampled_theorem_allows_a_few_percent_and_draws_lower_it(name):
    for given in ((None, None), points(Eps()), points(V())):
        report = verify(*given, names=[name])
        assert report.ok, report
        assert percent(report[0]) < 3.5
    more = verify(*given, names=[name], draws=65_536)
    assert more.ok, more
    assert percent(more[0]) < 0.4 * percent(report[0])


def test_the_report_has_the_statements_and_fits_in_80_columns():
    report = verify(names=["forward", "information", "scores"])
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert all(f"{verdict.name}: {verdict.statement}" in text for verdict in report)
    assert all(f"without: {verdict.dropped}" in text for verdict in report if verdict.dropped)


def test_the_report_says_what_is_allowed_in_percent():
    report = verify(names=["importance-sampling-invariance"])
    share = re.search(r"\(([\d.]+) %\)", str(report)).group(1)
    assert float(share) == pytest.approx(percent(report[0]), rel=0.06)
    nothing = str(Verdict("a", "", Sides(0.0, 0.0, 0.1, ""), must_hold=True))
    assert "0 = 0 ± 1.0e-01" in nothing
    assert "%" not in nothing
    with pytest.raises(ValueError, match="verify: argument 'draws' must be at least 1"):
        verify(names=["tweedie"], draws=0)


def test_a_verdict_is_not_fooled():
    nan = Sides(math.nan, 1.0, 0.1, "")
    assert not Verdict("a", "", nan, must_hold=True).ok
    assert not Verdict("a", "", nan, must_hold=False).ok
    one_bad = Sides(torch.tensor([1.0, 2.0]), 1.0, torch.tensor([0.1, 0.1]), "")
    assert not one_bad.holds
    assert one_bad.worst == (2.0, 1.0, pytest.approx(0.1))
    assert Sides(2.0, 1.0, 0.0, "", AT_LEAST).holds
    assert not Sides(1.0, 2.0, 0.5, "", AT_LEAST).holds
    assert equal(1.0, 0.0, rel=1.0).holds is False
    report = Report(
        [
            Verdict(
                "a", "1 = 1", equal(1.0, 1.0, rel=1e-9, why=""), must_hold=False, dropped="sense"
            )
        ]
    )
    assert not report.ok
    assert str(report[0]).splitlines()[-1].split("  ")[-1] == "HOLDS, and should not"
    assert str(report).endswith("0 of 1 as they must be")


@pytest.mark.parametrize(
    ("sides", "left"),
    [
        (Sides(torch.tensor([1.0, 0.0, 1.5]), 2.0, 0.0, "", AT_LEAST), 0.0),  # all fail: by most
        (
            Sides(torch.tensor([9.0, 2.5, 4.0]), 2.0, 0.0, "", AT_LEAST),
            2.5,
        ),  # all hold: the nearest
        (Sides(torch.tensor([9.0, 2.0, 1.9]), 2.0, 0.0, "", AT_LEAST), 1.9),
        (Sides(torch.tensor([9.0, 2.0, 2.1]), 2.0, 0.0, "", AT_LEAST), 2.0),
        (Sides(torch.tensor([2.1, 5.0, 2.0]), 2.0, 0.0, ""), 5.0),
        (
            Sides(torch.tensor([2.0, 2.1]), 2.0, torch.tensor([0.0, 0.2]), ""),
            2.1,
        ),  # an exact hit is the farthest from failing
        (
            Sides(torch.tensor([1.9, 0.0]), 2.0, torch.tensor([0.0, 1.0]), "", AT_LEAST),
            1.9,
        ),  # a share of nothing is the largest
        (Sides(torch.tensor([3.0, 1.0, 1.9]), 2.0, torch.tensor([0.1, 2.0, 0.1]), ""), 3.0),
    ],
)
def test_the_worst_case_is_the_one_that_fails_by_most_or_is_nearest_to_failing(sides, left):
    assert sides.worst[0] == pytest.approx(left)


def test_a_case_that_is_no_number_is_the_worst():
    assert math.isnan(Sides(torch.tensor([5.0, math.nan]), 2.0, 0.0, "").worst[0])
    assert math.isnan(Sides(torch.tensor([math.nan, 5.0]), 2.0, 0.1, "", AT_LEAST).worst[0])


def test_sampled_sides_are_in_standard_errors():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(10_000, generator=generator, dtype=torch.float64)
    assert sampled(draws, 0.0).holds
    assert not sampled(draws, 0.1).holds
    assert not sampled(draws, -0.1).holds
    assert paired(draws, draws + 0.001 * torch.randn(10_000, generator=generator)).holds
    assert not paired(draws, draws + 1e-4 + 0.001 * torch.randn(10_000, generator=generator)).holds


def test_a_subject_is_float64_and_a_few_rows():
    subject = Subject.of(Denoiser(MLP(3, width=16), Eps()), torch.randn(500, 3))
    assert subject.x.dtype == torch.float64
    assert len(subject.x) == 64
    prediction = subject.model(
        torch.zeros(300, 3, dtype=torch.float64), torch.zeros(300, dtype=torch.float64)
    )
    assert prediction.output.shape == (300, 3)
    assert torch.equal(subject.rows(100)[64:], subject.x[:36])


def test_the_page_has_all_and_its_links_lead_somewhere():
    page = theorem_page()
    assert all(f"`{name}`" in page for name in THEOREMS)
    root = Path(verification.__file__).parents[2]
    links = {part.split(")")[0] for part in page.split("](")[1:]}
    assert links
    assert all((root / "docs" / link).resolve().exists() for link in links)
    assert "/work" not in page

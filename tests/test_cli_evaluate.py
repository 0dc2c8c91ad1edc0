"""`vdiff evaluate`: a number with its errors and its protocol, beside those of others."""

import json
import math
import re
import warnings
from dataclasses import replace

import pytest
from evaluations import CONFIG, call, made

from vdiff.cli import evaluate as command
from vdiff.cli import main
from vdiff.data import Splits, splits
from vdiff.data.digits import LEVELS
from vdiff.flow import SolverError
from vdiff.likelihood import compare, evaluate
from vdiff.training import Config, Run


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        command.DATA,
        "digits",
        lambda folder: Splits(*(part[:12] for part in splits("digits", folder))),
    )


def test_it_prints_and_writes_what_evaluate_says(tmp_path, capsys):
    run = made(tmp_path / "run")
    assert call(run, "--draws", 4, "--replicates", 2) == 0
    known = json.loads((run / "evaluation.json").read_text())
    out = capsys.readouterr().out
    assert f"{known['total']['value']:.4f}" in out
    assert known["total"]["monte_carlo"] > 0
    protocol = known["protocol"]
    assert (protocol["images"], protocol["levels"], protocol["ema"], protocol["split"]) == (
        12,
        17,
        0.5,
        "test",
    )
    objective = Run(run).load()
    again = evaluate(
        objective.model,
        command.DATA["digits"]("data").test.pixels,
        schedule=objective.schedule,
        decoder=objective.decoder,
        draws=4,
        replicates=2,
    )
    assert again.total.value == pytest.approx(known["total"]["value"], rel=1e-9)
    assert [path.name for path in run.iterdir() if path.name.startswith("evaluation")] == [
        "evaluation.json"
    ]
    assert " s; in " in out


def test_a_chains_own_bound_of_a_conditional_run(tmp_path):
    """Without --steps it is that of the run's chain; the network is given the classes."""
    config = Config(
        network={
            "name": "UNet",
            "channels": 1,
            "channels_out": 2,
            "width": 8,
            "multipliers": [1],
            "heads": 1,
            "labels": 10,
        },
        parameterization={"name": "Eps"},
        schedule={"name": "Tabulated.cosine_betas", "levels": 21},
        decoder={
            "name": "DiscretizedGaussian",
            "levels": LEVELS,
            "uses_network": True,
            "posterior_variance": 0.01,
        },
        variance={"name": "LearnedRange"},
        chain=20,
        resampling=True,
        conditional=True,
        level_head=False,
    )
    run = Run(made(tmp_path / "run", config=config))
    assert call(run.folder, "--draws", 4, "--replicates", 2) == 0
    known = json.loads((run.folder / "evaluation.json").read_text())
    assert known["protocol"]["T"] == 20
    images, loaded = command.DATA["digits"]("data").test, run.load()

    def bound(label, steps=20):
        setting = {
            "schedule": loaded.schedule,
            "decoder": loaded.decoder,
            "draws": 4,
            "replicates": 2,
        }
        return evaluate(
            loaded.model, images.pixels, steps=steps, **setting, condition={"label": label}
        ).total.value

    assert known["total"]["value"] == pytest.approx(bound(images.labels), rel=1e-9)
    assert known["total"]["value"] != pytest.approx(bound(0 * images.labels), rel=1e-6)
    assert call(run.folder, "--steps", 10, "--draws", 4, "--replicates", 2) == 0
    again = json.loads((run.folder / "evaluation.json").read_text())
    assert again["total"]["value"] == pytest.approx(bound(images.labels, steps=10), rel=1e-9)


@pytest.mark.parametrize("name", ["cuda0", "cuda:99"])
def test_a_device_that_is_not_there_is_said(tmp_path, capsys, name):
    assert call(made(tmp_path / "run"), "--device", name) == 2
    assert f"be one of this machine: cpu, cuda or cuda:1; got '{name}'" in capsys.readouterr().err


def test_it_compares_two_runs(tmp_path, capsys):
    one, other = made(tmp_path / "one"), made(tmp_path / "other", seed=1)
    assert call(one, "--against", other, "--draws", 4, "--replicates", 2) == 0
    assert "first − second: " in capsys.readouterr().out
    assert json.loads((one / "comparison.json").read_text())["protocol"]["against"] == str(other)


OTHERS = {
    "ends": {"schedule": {"name": "Linear", "logsnr_max": 4.0, "logsnr_min": 1.0}},
    "the same": {},
    "ends of a chain": {
        "schedule": {"name": "Linear", "logsnr_max": 5.0, "logsnr_min": -4.0},
        "chain": 20,
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_each_run_of_a_comparison_has_its_own_bound(tmp_path, kind):
    """The difference of both numbers, and with the runs exchanged its sign is turned."""
    chain = replace(CONFIG, chain=OTHERS[kind].get("chain"))
    one = made(tmp_path / "one", config=chain)
    other = made(tmp_path / "other", seed=1, config=replace(CONFIG, **OTHERS[kind]), scale=0.15)
    cost = ("--draws", 32, "--replicates", 4)
    found = {}
    for run, against in ((one, other), (other, one)):
        assert call(run, *cost) == 0
        assert call(run, "--against", against, *cost) == 0
        bound = json.loads((run / "evaluation.json").read_text())["total"]
        paired = json.loads((run / "comparison.json").read_text())
        found[run] = bound, paired["difference"]
    (bound, there), (bound_other, back) = found[one], found[other]
    alone = bound["value"] - bound_other["value"]
    error = math.hypot(*(v["monte_carlo"] for v in (bound, bound_other, there, back)))
    assert abs(there["value"] - alone) < 4 * error
    assert abs(there["value"] + back["value"]) < 4 * error
    if kind == "ends":  # what both networks between the ends of one would give
        loaded = [Run(folder).load() for folder in (one, other)]
        models, images = [v.model for v in loaded], command.DATA["digits"]("data").test
        setting = {"schedule": loaded[0].schedule, "decoder": loaded[0].decoder}
        with pytest.warns(UserWarning, match="was trained on"):
            wrong = compare(*models, images.pixels, **setting).difference.value
        assert abs(wrong - there["value"]) > 10 * error
    protocol = json.loads((one / "comparison.json").read_text())["protocol"]
    assert ("logsnr, second" in protocol) == (kind != "the same")


def test_runs_whose_data_or_conditions_differ_do_not_compare(tmp_path, capsys):
    one = made(tmp_path / "one")
    network = CONFIG.network | {"labels": 10}
    told = made(tmp_path / "told", config=replace(CONFIG, network=network, conditional=True))
    for run, against in ((one, told), (told, one)):
        assert call(run, "--against", against) == 2
        assert "'against' must be a run with the same conditions, " in capsys.readouterr().err


def test_every_warning_is_in_the_file(tmp_path, monkeypatch):
    """Those of the report, and those that another part of the library gives."""
    run, other = made(tmp_path / "one"), made(tmp_path / "other", seed=1)
    warning = "Denoiser: the network is asked beyond its table"

    def warns(estimate):
        def estimated(*given, **settings):
            warnings.warn(warning, stacklevel=2)
            report = estimate(*given, **settings)
            warnings.warn("evaluate: one that the report knows", stacklevel=2)
            return replace(report, warnings=["one that the report knows"])

        return estimated

    monkeypatch.setattr(command, "evaluate_bound", warns(command.evaluate_bound))
    monkeypatch.setattr(command, "compare", warns(command.compare))
    for words, name in (((), "evaluation"), (("--against", other), "comparison")):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            assert call(run, *words, "--draws", 4, "--replicates", 2) == 0
        assert any("asked beyond its table" in str(one.message) for one in shown)
        known = json.loads((run / f"{name}.json").read_text())["warnings"]
        assert known[:2] == ["one that the report knows", warning]
        assert not any("evaluate: one that" in text for text in known)


def test_the_cost_is_said_first_and_no_carriage_returns_fill_a_log(tmp_path, capsys, monkeypatch):
    """What is written to something that is no terminal: a line before the first evaluation."""
    run, said = made(tmp_path / "run"), []
    load = Run.loaded

    def watched(self):
        loaded = load(self)
        model = loaded.objective.model
        model.register_forward_pre_hook(lambda *_: said.append(capsys.readouterr().err))
        return loaded

    monkeypatch.setattr(Run, "loaded", watched)
    cost = ["--draws", "4", "--replicates", "2"]
    pilot = 1024
    for words, text in (
        ([], f"bound: {pilot + 12 * 4 * 2:,} network evaluations\n"),
        (["--against", made(tmp_path / "other", 1)], "comparison: 1,216 network evaluations\n"),
        (["--tolerance", "0.5"], "bound: 8,384 network evaluations at least\n"),
    ):
        said.clear()
        assert main(["evaluate", str(run), *map(str, words), *cost]) == 0
        assert said[0] == text
        assert "\r" not in "".join([*said, capsys.readouterr().err])
    said.clear()
    words = ["--ode", "--ode-tolerance", "1e-2", *cost]
    assert main(["evaluate", str(run), *words]) == 0
    whole = "".join([*said, capsys.readouterr().err])
    assert "ODE, uniform dequantisation: 24 draws, each a path of the ODE\n" in whole
    assert "\r" not in whole


def test_an_evaluation_says_first_how_much_there_is_to_do(capsys):
    with command.progress_bar(False, "bound", "network evaluations") as show:
        show(0, 40)
        assert capsys.readouterr().err == "bound: 40 network evaluations\n"
        show(10, 40)
        show(40, 40)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert "network evaluations" not in shown
    with command.progress_bar(True, "bound", "network evaluations") as show:
        show(0, 40)
    assert capsys.readouterr().err == ""


def test_the_flow_stands_beside_the_bound_and_a_failure_leaves_the_bound(
    tmp_path, capsys, monkeypatch
):
    """Cut off in the second likelihood, the command continues there. Where a solver gives up, the
    report says so, and everything else is written."""
    run = made(tmp_path / "run")
    words = [run, "--draws", 4, "--replicates", 2, "--ode", "--ode-tolerance", 1e-2]
    solved, names = command.dequantized_ode, []

    def cut(model, images, *, dequantization, **settings):
        names.append(type(dequantization).__name__)
        if names[-1] == "Uniform":
            raise KeyboardInterrupt
        return solved(model, images, dequantization=dequantization, **settings)

    monkeypatch.setattr(command, "dequantized_ode", cut)
    assert call(*words) == 130
    left = sorted(path.name for path in run.iterdir() if path.suffix == ".safetensors")
    assert left == [
        "ema.safetensors",
        "evaluation.bound.0.safetensors",
        "evaluation.truncated.0.safetensors",
    ]

    def gives_up(model, images, *, dequantization, resume, **settings):
        if type(dequantization).__name__ == "Uniform":
            raise SolverError("dequantized_ode: dopri5 gave up")
        assert resume is not None
        return solved(model, images, dequantization=dequantization, resume=resume, **settings)

    monkeypatch.setattr(command, "dequantized_ode", gives_up)
    assert call(*words) == 1
    out = capsys.readouterr().out
    known = json.loads((run / "evaluation.json").read_text())
    assert known["failed"] == {"ODE, uniform dequantisation": "dequantized_ode: dopri5 gave up"}
    assert "FAILED: ODE, uniform dequantisation: dequantized_ode: dopri5 gave up" in out
    other = known["references"]["ODE, truncated normal dequantisation"]
    assert other["gap"]["value"] == pytest.approx(
        known["total"]["value"] - other["estimate"]["value"]
    )
    assert re.fullmatch(r"Gaussian [0-9a-f]{16} at λ_min", other["protocol"]["prior"])
    assert other["protocol"]["prior fitted to"] == "12 training images"
    assert "bound minus this" in out
    assert [path.name for path in run.iterdir() if path.suffix == ".safetensors"] == [
        "ema.safetensors"
    ]
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ode", "--against", "other"], "'ode' must come without against"),
        (["--data", "digts"], "did you mean 'digits'?"),
        (["--tolerance", "1e-4", "--budget", "300", "--draws", "4"], "a budget of "),
        (["--draws", "0"], "'draws' must be at least 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, words, text):
    assert call(made(tmp_path / "run"), *words) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.strip().splitlines()) == 1

"""`vdiff evaluate RUN --data OTHER`: read as the run reads its own, compared with what it was
trained on, from one image on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from own_network import convolution
from PIL import Image

from vdiff.cli import main
from vdiff.data import load_images

pytestmark = pytest.mark.filterwarnings("ignore:evaluate. ")
MINE = (
    convolution(3)
    + """

class Another(Net):
    pass
"""
)
RNG = np.random.default_rng(0)


def pictures(folder: Path, count: int, mode: str = "RGB", side: int = 0) -> None:
    """Pictures of random sizes, or of one."""
    folder.mkdir()
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "I;16": ()}[mode]
    top, kind = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    for i in range(count):
        size = (side, side) if side else tuple(RNG.integers(9, 15, 2))
        values = RNG.integers(0, top, (*size, *channels)).astype(kind)
        Image.fromarray(values).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 40 photos with --size 8, and other data beside it."""
    root = tmp_path_factory.mktemp("other")
    (root / "mine.py").write_text(MINE)
    pictures(root / "photos", 40)
    for name, mode, side in (("rgba", "RGBA", 0), ("deep", "I;16", 9), ("grey", "L", 0)):
        pictures(root / name, 2, mode, side)
    pictures(root / "large", 3)
    pictures(root / "one", 1, "RGB", 8)
    for name in ("one", "two"):
        builder = {"one": "Net", "two": "Another"}[name]
        words = ["--data", str(root / "photos"), "--size", "8", "--out", str(root / name / "run")]
        words += ["--quiet", "--device", "cpu", "--set", "steps=2", "batch=4"]
        assert main(["train", f"{root}/mine.py:{builder}", *words]) == 0
    return root


@pytest.fixture
def evaluate(home, monkeypatch, capsys):
    """The report of an evaluation, or its error."""
    monkeypatch.chdir(home)

    def call(*words: object, model: str = "Net") -> dict | str:
        given = ["one/run", "--model", f"mine.py:{model}", "--draws", "2", "--replicates", "2"]
        given += ["--device", "cpu", "--quiet", "--json"]
        code = main(["evaluate", *given, *map(str, words)])
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else err

    return call


def test_training_images_among_others_are_warned_of(home, evaluate):
    """By content: also under other names, and from a file of arrays."""
    mixed = home / "mixed"
    pictures(mixed, 5)
    for i in range(40):
        (mixed / f"again{i}.png").write_bytes((home / "photos" / f"{i}.png").read_bytes())
    trained = trained_images(home)
    text = f"{trained} of the 45 images are in the training data of this run, run"
    with pytest.warns(UserWarning, match=text):
        report = evaluate("--data", "mixed")
    assert report["protocol"]["in the training data"] == f"{trained} of the 45 images"
    assert any(text in warning for warning in report["warnings"])
    np.save(home / "some.npy", load_images(mixed, size=8).pixels[:20].permute(0, 2, 3, 1).numpy())
    with pytest.warns(UserWarning, match=r"\d+ of the 20 images are in the training data"):
        evaluate("--data", "some.npy")


def trained_images(home: Path) -> int:
    from vdiff.data import load

    return len(load(home / "photos", size=8).train)


@pytest.mark.parametrize("data", ["large", "photos"])
def test_new_images_and_the_run_s_own_test_part_are_not(data, evaluate, recwarn):
    report = evaluate("--data", data)
    assert report["protocol"]["in the training data"].startswith("0 of the ")
    assert not [w for w in recwarn if "training data" in str(w.message)]


def test_both_runs_of_a_comparison_are_asked_each_with_its_builder(home, evaluate):
    words = ("--data", "large", "--against", "two/run")
    with pytest.warns(UserWarning, match=r"trained with mine\.py:Another"):
        evaluate(*words)  # of one builder for both
    report = evaluate(*words, "--against-model", "mine.py:Another")
    assert report["protocol"]["in the training data against"] == "0 of the 3 images"
    assert "'against-model' must come with --against" in evaluate(
        "--data", "large", "--against-model", "mine.py:Another"
    )


def test_other_pictures_and_arrays_are_read_as_the_run_s_own(home, evaluate):
    """The bits are those of the same images, read by hand."""
    for name, path in (("large", home / "large"), ("raw.npy", home / "raw.npy")):
        if name == "raw.npy":
            raw = RNG.integers(0, 256, (4, 12, 9, 3)).astype(np.uint8)
            np.save(path, raw)
            pictures(home / "same", 0)
            for i, values in enumerate(raw):
                Image.fromarray(values).save(home / "same" / f"{i}.png")
            path = home / "same"
        by_hand = load_images(path, size=8).pixels
        np.save(home / "hand.npy", by_hand.permute(0, 2, 3, 1).numpy())
        found, known = (evaluate("--data", data) for data in (name, "hand.npy"))
        assert found["total"] == known["total"]
        assert "bicubic to 8, centre" in found["protocol"]["read as"]
        assert "bicubic" not in known["protocol"]["read as"]  # it has the form already
        assert found["protocol"]["images"] == len(by_hand)


READ = {
    "rgba": ("data_options.alpha=drop",),
    "deep": ("data_options.levels=256", "data_options.channels=3"),
    "grey": ("data_options.channels=3",),
}


@pytest.mark.parametrize("data", READ)
def test_what_differs_is_said_in_the_words_of_the_command_and_helps(data, evaluate):
    """The error has what to type, until there is none."""
    given: list[str] = []
    for setting in READ[data]:
        error = evaluate("--data", data, *given)
        assert f"--set {setting}" in error, error
        given = ["--set", *given[1:], setting]
    assert evaluate("--data", data, *given)["protocol"]["images"] == 2


def test_a_size_of_its_own(home, evaluate):
    assert "got [3, 9, 9] (--size 8 resizes pictures)" in evaluate("--data", "large", "--size", 9)
    assert evaluate("--data", "large", "--size", 8)["protocol"]["images"] == 3
    assert "'size' must come with --data" in evaluate("--size", 8)
    assert "'set' must be data_options.NAME=VALUE" in evaluate("--data", "large", "--set", "lr=1")


def test_train_speaks_the_words_of_the_command_too(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    for data, text in (
        ("photos", "(--size 64 resizes them)"),
        ("rgba", "(--set data_options.alpha=drop drops it)"),
    ):
        assert main(["train", "mine.py:Net", "--data", data, "--out", "none", "--quiet"]) == 2
        error = capsys.readouterr().err
        assert "argument 'data' must hold pictures" in error
        assert text in error


def test_one_image_has_a_number_without_an_error_over_images(evaluate):
    report = evaluate("--data", "one")
    assert (report["protocol"]["images"], report["total"]["images"]) == (1, None)
    assert report["total"]["monte_carlo"] > 0
    assert torch.isfinite(torch.tensor(report["total"]["value"]))

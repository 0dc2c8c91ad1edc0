"""An error in a network or a builder of one's own is shown with its lines; one of ours is one
line."""

from pathlib import Path

import numpy as np
import pytest
from own_network import convolution

from vdiff.cli import main

MINE = (
    "import torch\nfrom vdiff.schedule import Cosine\n"
    + convolution(1)
    + """

class Value(Net):
    def forward(self, z, logsnr):
        return self.helper(z)

    def helper(self, z):
        raise ValueError("no such thing")


class Type(Net):
    def forward(self, z, logsnr):
        return z + None


class Assertion(Net):
    def forward(self, z, logsnr):
        assert z.mean() > 1e9, "small"
        return z


class Half(Net):
    def forward(self, z, logsnr):
        return z[..., :4]


def grey():
    return nn.Sequential(Net())


def layers():
    return Layers(nn.Conv2d(1, 1, 3))


def key():
    return {}["width"]


def ends():
    return Cosine(-3.0, 5.0)


class Needs(Net):
    def __init__(self, width):
        super().__init__()
"""
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    rng = np.random.default_rng(0)
    np.save("photos.npy", rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8))
    np.save("grey.npy", rng.integers(0, 256, (40, 8, 8)).astype(np.uint8))
    return tmp_path


def error_of(name: str, capsys: pytest.CaptureFixture[str], data: str = "grey.npy") -> list[str]:
    words = ["train", name, "--data", data, "--out", "run", "--quiet", "--device", "cpu"]
    assert main([*words, "--set", "steps=2", "batch=4"]) == 2
    return capsys.readouterr().err.splitlines()


GIVEN = (
    "Denoiser: the network was given z (4, 1, 8, 8) in torch.float32, time (4,) in torch.float32"
)
INSIDE = {
    "Value": ("ValueError: no such thing", 'raise ValueError("no such thing")', "in helper"),
    "Type": ("TypeError: unsupported operand", "return z + None", "in forward"),
    "Assertion": ("AssertionError: small", 'assert z.mean() > 1e9, "small"', "in forward"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_an_error_inside_the_network_has_its_lines(name, here, capsys):
    text, source, function = INSIDE[name]
    first, given, *frames = error_of(f"mine.py:{name}", capsys)
    assert first.startswith(f"vdiff train: mine.py:{name}: {text}")
    assert given == GIVEN
    line = 1 + next(i for i, row in enumerate(MINE.splitlines()) if row.strip() == source)
    assert frames[-2:] == [f'  File "mine.py", line {line}, {function}', f"    {source}"]


def test_a_grey_network_on_color_says_what_it_was_given(here, capsys):
    first, given, *frames = error_of("mine.py:Net", capsys, "photos.npy")
    assert first.startswith("vdiff train: mine.py:Net: RuntimeError: Given groups=1")
    assert given.startswith(GIVEN.replace("1, 8", "3, 8"))
    assert frames[1] == "    return self.layer(z)"
    assert not any("modules/module.py" in row for row in frames)


@pytest.mark.parametrize(
    ("name", "text", "source"),
    [
        ("key", "KeyError: 'width'", 'return {}["width"]'),
        ("ends", "InvalidValue: Cosine: argument 'logsnr_max' must be greater than", "Cosine(-3."),
        ("layers", "NameError: name 'Layers'", "return Layers("),
        ("grey", "TypeError: Sequential.forward() takes 2", ""),
    ],
)
def test_an_error_inside_the_builder_or_of_a_library_in_it(name, text, source, here, capsys):
    first, *rest = error_of(f"mine.py:{name}", capsys)
    assert first.startswith(f"vdiff train: mine.py:{name}: {text}")
    assert source in rest[-1]
    assert not any("vdiff/" in row for row in rest)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Needs", "must name a function that runs without arguments, as mine.py:Needs does not"),
        ("Half", "'network' must return the shape of z, (4, 1, 8, 8); got (4, 1, 8, 4)"),
        ("COLOR", "must be something that mine.py defines"),
    ],
)
def test_what_we_check_is_one_line(name, text, here, capsys):
    (line,) = error_of(f"mine.py:{name}", capsys)
    assert text in line


def test_a_file_that_does_not_run_is_shown_where_it_stops(here, capsys):
    Path("part.py").write_text("def deep():\n    return 1 / 0\n")
    Path("mine.py").write_text("from part import deep\n\nx = deep()\n")
    first, *frames = error_of("mine.py:x", capsys)
    assert "as mine.py does not; got ZeroDivisionError" in first
    assert [row.strip() for row in frames[1::2]] == ["x = deep()", "return 1 / 0"]

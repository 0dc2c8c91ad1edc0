"""`vdiff verify` and `vdiff describe`."""

import re
from pathlib import Path

import pytest

from vdiff.cli import main
from vdiff.theorems import pages


def test_verify_prints_a_table_and_fails_where_something_does(capsys, tmp_path):
    assert main(["verify", "tweedie"]) == 0
    assert "2 of 2 as they must be" in capsys.readouterr().out
    assert main(["verify", "tweedy"]) == 2
    assert "did you mean 'tweedie'?" in capsys.readouterr().err
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import torch\nfrom vdiff import Denoiser\nfrom vdiff.parameterization import V\n"
        "model = Denoiser(lambda z, logsnr: 0.1 * z, V())\ndata = torch.randn(64, 2)\n"
    )
    assert main(["verify", "--model", f"{mine}:model", "schedule-invariance-of-any-network"]) == 0
    assert "1 of 1 as they must be" in capsys.readouterr().out
    assert main(["verify", "--model", f"{mine}:modle"]) == 2
    assert "must be something that" in capsys.readouterr().err


def test_verify_estimators_prints_a_table_and_tells_of_a_class_that_is_wrong(capsys, tmp_path):
    assert main(["verify", "--estimators", "gaussian", "--points", "16"]) == 0
    assert "4 of 4 passed" in capsys.readouterr().out
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from vdiff import Denoiser\nfrom vdiff.parameterization import V, X\n"
        "def right(oracle):\n    return Denoiser(lambda z, logsnr: oracle(z, logsnr).v, V())\n"
        "def wrong(oracle):\n    return Denoiser(lambda z, logsnr: oracle(z, logsnr).v, X())\n"
    )
    assert (
        main(["verify", "--estimators", "lattice", "--points", "16", "--model", f"{mine}:right"])
        == 0
    )
    assert (
        main(["verify", "--estimators", "lattice", "--points", "16", "--model", f"{mine}:wrong"])
        == 1
    )
    assert "FAILED" in capsys.readouterr().out
    assert main(["verify", "--estimators", "latice"]) == 2
    assert "did you mean 'lattice'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--points", "16"],
            "'points' must come with --estimators; got 16 (--draws says how much",
        ),
        (["--seed", "0"], "'seed' must come with --estimators; got 0"),
        (["--estimators", "--draws", "64"], "'draws' must come without --estimators; got 64"),
        (["--pages", "docs", "tweedie"], "'names' must come without --pages; got ['tweedie']"),
        (["tweedie", "--draws", "0"], "'draws' must be at least 1"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(words, text, capsys):
    assert main(["verify", *words]) == 2
    assert text in capsys.readouterr().err


def test_more_draws_of_a_theorem_see_smaller_errors(capsys, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import torch\nfrom vdiff import Denoiser\nfrom vdiff.parameterization "
        "import V\ndata = torch.randn(64, 2)\n"
        "model = Denoiser(lambda z, logsnr: torch.sin(3 * z), V())\n"
    )
    shares = []
    for draws in ([], ["--draws", "65536"]):
        words = ["verify", "--model", f"{mine}:model", "schedule-invariance-of-any-network"]
        assert main([*words, *draws]) == 0
        shares.append(float(re.search(r"\(([\d.]+) %\)", capsys.readouterr().out).group(1)))
    assert shares[1] < 0.4 * shares[0] < 2.0


def test_describe_says_it_in_words_and_compares(capsys, tmp_path):
    assert main(["describe", "edm"]) == 0
    assert "no likelihood, not even of noisier data" in capsys.readouterr().out
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from vdiff.weighting import MSE, MinSNR\nfrom vdiff.schedule import Cosine\nfrom "
        "vdiff.parameterization import Eps\nfrom vdiff.recipes import Recipe\n"
        "recipe = Recipe('mine', Cosine(), Eps(), MSE(Cosine(), Eps()) * MinSNR(3.0))\n"
    )
    assert (
        main(
            [
                "describe",
                f"{mine}:recipe",
                "--compare",
                "min-snr",
                "vdm",
                "--figure",
                str(tmp_path / "figure.png"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "the part of the signal shared with mine" in printed
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert main(["describe", "--all"]) == 0
    assert capsys.readouterr().out.count("\n") == 15


def test_the_page_of_the_theorems_is_the_one_that_they_make():
    """`vdiff verify --pages docs` writes it again."""
    here = Path(__file__).parent.parent / "docs" / "theorems.md"
    assert pages.theorem_page() == here.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["describe"], "name an objective, or --all"), (["describe", "edn"], "did you mean 'edm'")],
)
def test_what_cannot_be_described_is_said(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", ["describe", "sample", "verify"])
def test_the_help_says_that_a_file_is_run(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "FILE.py is run as a Python program: name only a file that you trust" in said


@pytest.mark.parametrize("page", ["samplers.md", "evaluating.md"])
def test_the_pages_say_it_too(page):
    text = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    assert "is run as a Python program: name only a file that you trust" in " ".join(text.split())


def test_a_file_that_fails_is_named_with_its_line(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("x = 1\n\nraise KeyError('no such recipe')\n", encoding="utf-8")
    assert main(["describe", f"{mine}:x"]) == 2
    words = (
        "name a file that runs as Python, as {} does not; got KeyError: 'no such recipe', line 3"
    )
    assert words.format(mine) in capsys.readouterr().err

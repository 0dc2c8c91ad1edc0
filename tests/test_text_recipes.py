"""The training recipes over tokens, and the command on a file of tokens."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff import recipe
from vdiff.cli import main
from vdiff.cli.load import reading_options
from vdiff.cli.train import with_data
from vdiff.describe import describe
from vdiff.training import Run, train
from vdiff.training.logger import read_log

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import text_recipes

MINE = """
from torch import nn
from vdiff.training import Config
from vdiff import Objective
from vdiff.discrete import Masked, TokenDenoiser
from vdiff.schedule import LogLinear


def build():
    return nn.Embedding(257, 256)


def model():
    return TokenDenoiser(build(), Masked(256))


def objective():
    return Objective(model(), schedule=LogLinear())


CONFIG = Config(
    network={"name": "mine.py:build"}, process={"name": "Masked", "vocabulary": 256},
    schedule={"name": "LogLinear"}, data="tokens.npy", shape=[8], steps=3, batch=4,
)
"""


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    x = np.random.default_rng(0).integers(0, 256, (200, 8)).astype(np.uint16)
    np.save(tmp_path / "tokens.npy", x)
    return tmp_path


@pytest.mark.parametrize("dry", [False, True])
def test_the_command_trains_on_a_file_of_tokens(tokens, dry, capsys):
    what, run = f"{tokens}/mine.py:CONFIG", str(tokens / "run")
    words = ["train", what, "--model", f"{tokens}/mine.py:build", "--out", run, "--quiet"]
    words += ["--data", f"{tokens}/tokens.npy", "--set", "data_options.levels=256"]
    assert main([*words, *(["--dry-run"] if dry else [])]) == 0
    if dry:
        shown = json.loads(capsys.readouterr().out)
        assert shown["process"] == {"name": "Masked", "vocabulary": 256}
        assert shown["parameterization"] == {"name": "Posterior"}
        return
    log = read_log(tokens / "run" / "log.jsonl")
    # a network that knows nothing at first: 8 bits of a byte
    assert log[-1]["selection_bits_per_token"] == pytest.approx(8.0, abs=1.5)
    assert Run(run).config.shape == [8]


def test_published_settings():
    mdlm = text_recipes.load("mdlm")
    assert (mdlm.steps, mdlm.batch, mdlm.lr, mdlm.warmup, mdlm.ema) == (
        1_000_000, 512, 3e-4, 2500, [0.9999]
    )  # fmt: skip
    built, published = mdlm.objective(outline=True), recipe("mdlm")
    assert repr(built.schedule) == repr(published.schedule)
    assert repr(built.model.process) == repr(published.process)
    assert describe(built).published == describe("mdlm").published


@pytest.mark.parametrize("name", text_recipes.NAMES)
def test_a_text_recipe_trains(name):
    config = text_recipes.load(name)
    network = config.network | {"width": 32, "depth": 1, "heads": 2}
    small = replace(config, network=network, steps=2, batch=2, compile=False, autocast=False)
    data = torch.randint(0, 256, (4, *config.shape))
    log = []
    train(small.objective(), data, small, log=log.append, quiet=True)
    assert log[-1]["skipped"] == 0


def test_token_ids_of_a_config_with_a_process_need_no_levels(tokens):
    config = text_recipes.load("mdlm")
    ids = tokens / "ids.npy"
    np.save(ids, np.arange(200 * 8).reshape(200, 8).astype(np.uint16) % 251)
    options = argparse.Namespace(set=[], size=None, data=str(ids))
    made, parts = with_data(config, options, torch.device("cpu"))
    assert made.shape == [8]
    assert parts.train.example == "text"
    assert parts.train.pixels.dtype == torch.uint16
    older = replace(made, data_options={"levels": 256})
    assert reading_options(older) == {"tokens": True}


def test_a_model_over_tokens_is_trained_and_evaluated_by_the_commands(tokens, capsys):
    builder, run, data = (str(tokens / name) for name in ("mine.py:model", "run", "tokens.npy"))
    words = ["--data", data, "--set", "data_options.levels=256", "--set", "steps=3"]
    assert main(["train", builder, "--out", run, "--quiet", *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--model", builder, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "bits/token"
    assert 8 < found["total"]["value"] < 9.5
    assert main(["sample", run, "--model", builder, "--count", "2", "--steps", "2"]) == 0
    capsys.readouterr()
    drawn = np.load(Path(run) / "samples" / "samples.npy")
    assert drawn.shape == (2, *np.load(data).shape[1:])
    own = str(tokens / "mine.py:objective")
    np.save(tokens / "bytes.npy", np.load(data).astype(np.uint8))
    options = [
        "--data",
        str(tokens / "bytes.npy"),
        "--out",
        str(tokens / "own.json"),
        "--json",
        "--quiet",
    ]
    assert main(["evaluate", own, *options]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "bits/token"

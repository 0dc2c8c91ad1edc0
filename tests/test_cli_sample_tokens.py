"""`vdiff sample RUN` for a run over tokens."""

import numpy as np
import pytest
import torch

from vdiff import sample
from vdiff.cli import main
from vdiff.sampling import confidence, per_sample_generators
from vdiff.training import Config, Run


@pytest.fixture
def run(tmp_path):
    def make(vocabulary=256):
        torch.manual_seed(0)
        network = {"name": "Transformer", "vocabulary": vocabulary, "length": 6, "width": 8}
        process = {"name": "Masked", "vocabulary": vocabulary}
        config = Config(network | {"depth": 1, "heads": 2}, process=process, shape=[6])
        made, objective = Run.create(tmp_path / f"run{vocabulary}", config), config.objective()
        for parameter in objective.model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
        made.save(objective)
        return made.folder

    return make


@pytest.mark.parametrize("step", ["ancestral", "confidence"])
def test_tokens_are_those_of_the_library(run, step, tmp_path):
    folder = run()
    options = ["--count", "8", "--steps", "4", "--quiet", "--device", "cpu", "--step", step]
    assert main(["sample", str(folder), *options, "--batch", "3"]) == 0
    drawn = np.load(folder / "samples" / "samples.npy")
    assert (drawn.dtype.kind, drawn.shape) == ("u", (8, 6))
    assert drawn.max() < 256
    objective = Run(folder).load()
    generator = per_sample_generators(0, range(8))
    chosen = {"step": confidence} if step == "confidence" else {}
    settings = {"schedule": objective.schedule, "steps": 4, "generator": generator, **chosen}
    own = sample(objective.model, (8, 6), **settings)
    assert (drawn == own.numpy()).all()
    text = (folder / "samples" / "samples.txt").read_bytes().decode()
    assert text == "".join(bytes(row.tolist()).decode("utf-8", "replace") + "\n" for row in own)
    assert main(["sample", str(folder), *options, "--seed", "1", "--out", str(tmp_path)]) == 0
    assert (np.load(tmp_path / "samples.npy") != drawn).any()


def test_tokens_that_are_no_bytes_have_no_text(run):
    folder = run(300)
    assert main(["sample", str(folder), "--count", "2", "--steps", "2", "--quiet"]) == 0
    assert [path.name for path in (folder / "samples").iterdir()] == ["samples.npy"]
    assert np.load(folder / "samples" / "samples.npy").dtype == np.uint16


@pytest.mark.parametrize(("options", "words"), [
    (["--png", "pictures"], "tokens are no picture"),
    (["--gif"], "tokens are no picture"),
    (["--clip"], "tokens have no range"),
    (["--draw"], "tokens are drawn already"),
    (["--grid", "karras"], "those of the run's schedule"),
    (["--spacing", "leading"], "even"),
    (["--step", "heun"], "be one of ancestral, confidence, tau_leaping"),
    (["--label", "3"], "takes no label"),
    (["--eta", "0.5"], "come with --step ddim"),
])  # fmt: skip
def test_options_without_a_meaning_are_refused(run, options, words, capsys):
    folder = run()
    assert main(["sample", str(folder), "--steps", "2", "--quiet", *options]) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "samples").exists()

"""Another number of threads splits sums elsewhere. Every protocol has it, and what resumes with
another number says so."""

import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from points import data_of, points

from vdiff.cli.resume import StateFile
from vdiff.decoder import Gaussian as Decoder
from vdiff.likelihood import evaluate, ode_likelihood
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.protocol import versions, warn_if_versions_differ
from vdiff.oracle import Gaussian
from vdiff.schedule import Linear
from vdiff.training import Config, Run, train
from vdiff.training.checkpoint import checkpoints, checksum, read_meta


@pytest.fixture
def threads() -> Iterator[int]:
    """How many there are, as it is again afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def train_in(folder: Path, config: Config) -> None:
    with Run.open(folder, config) as run:
        train(config.objective(), data_of(config), config, run=run, store_every=2, quiet=True)


def test_a_training_that_goes_on_with_another_number_of_threads_says_so(tmp_path, threads):
    config = points(steps=4)
    train_in(tmp_path, config)
    assert read_meta(checkpoints(tmp_path / "checkpoints")[-1])["facts"]["versions"] == versions()
    train_in(tmp_path, config)  # with the same, nothing is said
    torch.set_num_threads(threads + 1)
    text = (
        rf"the run continues with .*'threads': {threads + 1}.* after .*'threads': {threads}.*: not"
    )
    with pytest.warns(UserWarning, match=text):
        train_in(tmp_path, config)


def test_a_checkpoint_that_says_nothing_of_threads_is_taken_as_it_is(tmp_path):
    config = points(steps=2)
    train_in(tmp_path, config)
    path = checkpoints(tmp_path / "checkpoints")[-1] / "meta.json"
    meta = json.loads(path.read_text())
    del meta["facts"]["versions"]["threads"], meta["sha256"]
    path.write_text(json.dumps(meta | {"sha256": checksum(meta)}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train_in(tmp_path, config)
    assert not [one for one in said if "bit for bit" in str(one.message)]


def test_weights_say_how_they_were_trained_and_a_protocol_says_it_too(tmp_path):
    config = points(steps=2)
    train_in(tmp_path, config)
    assert Run(tmp_path).loaded().record["trained with"] == versions()
    (tmp_path / "ema.safetensors").unlink()
    assert Run(tmp_path).loaded().record["trained with"] == versions()  # of a checkpoint
    x = torch.zeros(4, 1)
    law = Gaussian([0.0], [1.0])
    report = evaluate(law, x, schedule=Linear(), decoder=Decoder(), draws=2)
    flow = ode_likelihood(law, x, schedule=Linear())
    for protocol in (report.protocol, flow.protocol):
        assert protocol["threads"] == torch.get_num_threads()


def test_an_evaluation_that_goes_on_with_another_number_of_threads_says_so(tmp_path, threads):
    kept = StateFile(tmp_path / "state.safetensors")
    kept({"key": torch.tensor(3)})
    kept.write()
    assert kept.read() is not None
    torch.set_num_threads(threads + 1)
    with pytest.warns(UserWarning, match=rf"the evaluation continues .*'threads': {threads}"):
        assert kept.read() is not None


@pytest.mark.parametrize("before", [None, "damaged", {}, {"torch": torch.__version__}])
def test_what_an_older_file_does_not_say_is_passed_over(before):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_if_versions_differ("the run", before)
    assert said == []


def test_evaluations_in_two_threads_leave_tf32_as_it_was():
    """The second enters before the first leaves, and leaves after it."""
    convolution, entered, left = torch.backends.cudnn.conv, threading.Event(), threading.Event()
    before = convolution.fp32_precision

    def second() -> None:
        with evaluating():
            entered.set()
            left.wait(60)

    thread = threading.Thread(target=second)
    with evaluating():
        thread.start()
        assert entered.wait(60)
    assert convolution.fp32_precision == "ieee"
    left.set()
    thread.join()
    assert convolution.fp32_precision == before != "ieee"

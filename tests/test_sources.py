"""Training from a tensor, images in a file, a data set of torch with workers, and a stream: each
batch is a function of seed, step and slot, and a run resumes to the last bit."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points import (
    Noisy,
    Resumable,
    Stream,
    assert_same_to_rounding,
    data_of,
    finish,
    on_ranks,
    outcome,
    points,
    run_until,
    tensors,
)
from torch.utils.data import DataLoader, TensorDataset

from vdiff.data import Images, load
from vdiff.likelihood.digest import data_hash
from vdiff.training import Config, Run, train
from vdiff.training.batches import Batches
from vdiff.training.checkpoint import checkpoints, read_meta
from vdiff.training.ranks import Rank

CONFIG = points()
POINTS = data_of(CONFIG)


def mapped(folder: Path) -> Images:
    """The points in a file."""
    np.save(folder / "points.npy", POINTS.numpy().astype(np.float32))
    train_, *_ = load(folder / "points.npy")
    return train_


def test_every_kind_gives_the_same_batches(tmp_path):
    np.save(tmp_path / "points.npy", POINTS.to(torch.uint8)[:, None].numpy())
    config = points(shape=[1, 64])
    store = Images(POINTS[:, None], torch.zeros(500, dtype=torch.int64))
    from vdiff.data.mapped import Mapped

    at = (tmp_path / "points.npy").stat().st_size - POINTS.numel()
    where = (tmp_path / "points.npy", at, (500, 1, 64), np.dtype(np.uint8), "C", "as it is")
    file = replace(store, store=Mapped(*where, torch.arange(500)))
    expected = Batches(POINTS[:, None], config)(7, 0)
    for data in (store, file, TensorDataset(POINTS[:, None]), list(POINTS[:, None].numpy())):
        for name in ("data", "u", "eps", "images"):
            got = getattr(Batches(data, config)(7, 0), name)
            assert torch.equal(got.to(getattr(expected, name).dtype), getattr(expected, name))


@pytest.mark.parametrize("kind", [Noisy, Resumable])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (3, 2)])
def test_shares_put_together_are_the_batch(kind, world_size, accumulate):
    config, shares = points(accumulate=accumulate), world_size * accumulate
    full = Batches(kind(POINTS), CONFIG)(0, 0)
    for index in range(world_size):
        batches = Batches(kind(POINTS), config, rank=Rank(index, world_size))
        for part in range(accumulate):
            rows = slice(part * world_size + index, None, shares)
            assert torch.equal(batches(0, part).data, full.data[rows])


def test_workers_change_nothing_whatever_is_asked_for():
    """Also out of order, as a report of a step that failed asks."""
    config = points(accumulate=2, steps=6)
    alone, many = Batches(Noisy(POINTS), config), Batches(Noisy(POINTS), config, workers=2)
    for place in [(0, 0), (0, 0), (0, 1), (1, 0), (3, 1), (4, 0), (4, 0), (2, 0), (5, 1)]:
        one, other = alone(*place), many(*place)
        assert torch.equal(one.data, other.data), place
        assert torch.equal(one.images, other.images)


def test_an_item_is_drawn_anew_in_every_step():
    batches = Batches(Noisy(POINTS[:12]), CONFIG)
    first, second = (batches(step, 0) for step in (0, 1))
    again = [first.data[first.images.argsort()], second.data[second.images.argsort()]]
    assert not torch.equal(*again)
    assert torch.equal(batches(0, 0).data, first.data)


class Noise(Noisy):
    def __getitem__(self, i: int) -> Any:
        return torch.rand(64)


def test_every_slot_draws_its_own_numbers():
    batches = Batches(Noise(POINTS), CONFIG)
    drawn = torch.cat([batches(step, 0).data for step in range(5)])
    assert len(drawn.unique(dim=0)) == 5 * CONFIG.batch


@pytest.mark.parametrize(
    "options",
    [{"source": "dataset"}, {"source": "dataset", "workers": 2}, {"source": "resumable"}],
    ids=["dataset", "workers", "stream"],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_is_the_same_to_the_last_bit(options, accumulate, tmp_path):
    config = points(accumulate=accumulate, steps=60, batch=12)  # beyond the end of the stream
    whole = run_until(tmp_path / "whole", config, **options)
    for stop in (5, 47, None):
        stopped = run_until(tmp_path / "stopped", config, stop, **options)
    assert stopped == whole


def test_a_run_of_two_processes_that_is_killed_resumes_to_the_last_bit(tmp_path):
    how = [{"source": "dataset", "workers": 1}, {"source": "resumable"}]
    said = finish(on_ranks(2, tmp_path / "whole", *how))
    assert [code for code, _ in said] == [0, 0], said
    killed = [{"do": "kill", "at": 7, **how[0]}]
    first, second = on_ranks(2, tmp_path / "killed", *killed)
    assert finish([second])[0][0] == -9
    finish([first])
    assert outcome(tmp_path / "killed" / "0")["state"]["step"] == 4
    said = finish(on_ranks(2, tmp_path / "killed", how[0]))
    assert [code for code, _ in said] == [0, 0], said
    assert (
        outcome(tmp_path / "killed" / "0")["files"] == outcome(tmp_path / "whole" / "0")["files"]
    )
    # in a process of its own: a type checker of the tests draws from Python's generator too
    said = finish(on_ranks(1, tmp_path / "alone", how[1]))
    assert [code for code, _ in said] == [0], said
    assert_same_to_rounding(tensors(tmp_path / "alone" / "0"), tensors(tmp_path / "whole" / "1"))


def test_a_stream_without_a_state_says_once_that_it_resumes_inexactly(tmp_path):
    with pytest.warns(UserWarning, match="no state_dict and load_state_dict") as heard:
        run_until(tmp_path, CONFIG, 5, source="stream")
    assert len(heard) == 1
    train(CONFIG.objective(), Stream(POINTS), CONFIG, quiet=True)  # nothing will be resumed


def test_the_state_of_a_stream_must_be_plain(tmp_path):
    class Tensors(Resumable):
        def state_dict(self) -> Any:
            return {"next": torch.zeros(3)}

    with (
        Run.open(tmp_path, CONFIG) as run,
        pytest.raises(ValueError, match=r"'data' must have a state_dict\(\) of plain data"),
    ):
        train(CONFIG.objective(), Tensors(POINTS), CONFIG, run=run, quiet=True)


def test_labels_come_with_the_items():
    network = {"name": "UNet", "channels": 1, "channels_out": 17, "width": 8, "labels": 10}
    config = Config(network, conditional=True, batch=4, steps=2)
    pictures = data_of(config)
    batches = Batches(Noisy(pictures), config)
    batch = batches(0, 0)
    assert torch.equal(batch.condition["label"], batch.images % 10)
    train(config.objective(), Noisy(pictures), config, quiet=True)
    with pytest.raises(ValueError, match=r"'data' must have items \(data, label\)"):
        Batches(TensorDataset(pictures), config)(0, 0)
    with pytest.raises(ValueError, match="'labels' must be left out for a Dataset"):
        train(config.objective(), Noisy(pictures), config, labels=torch.zeros(500))
    images = Images(pictures, torch.arange(500) % 7)
    batch = Batches(images, config)(0, 0)
    assert torch.equal(batch.condition["label"], batch.images % 7)
    given = Batches(images, config, labels=torch.arange(500) % 3)(0, 0)
    assert torch.equal(given.condition["label"], batch.images % 3)


class Failing(Noisy):
    def __getitem__(self, i: int) -> Any:
        raise OSError("a picture that breaks")


class Pillow(Noisy):
    def __getitem__(self, i: int) -> Any:
        from PIL import Image

        return Image.new("L", (8, 8)), 0


REFUSED: dict[str, tuple[Any, str]] = {
    "text": (
        "photos/",
        r"a tensor, Images, a torch.utils.data.Dataset .* got str .vdiff.data.load",
    ),
    "an array": (POINTS.numpy(), r"torch.from_numpy"),
    "all splits": (load("digits"), r"got Splits .vdiff.data.load.path..train"),
    "no items": (Noisy(POINTS[:0]), "'data' must have items; got Noisy of length 0"),
    "no items to iterate over": (iter([]), "yield items each time it is iterated over"),
    "another shape": (Noisy(POINTS[:, :9]), r"the config's shape \[64\]; got \[9\] at item 0"),
    "batches": (
        DataLoader(TensorDataset(POINTS), 4),
        r"items, not batches: DataLoader\(…, batch_",
    ),
    "a picture": (Pillow(POINTS), "a picture needs a transform"),
    "a mapping": ([{"x": POINTS[0]}], r"items that are a tensor or \(tensor, label\)"),
    "an error": (Failing(POINTS), "a picture that breaks"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_data_is_refused(kind):
    data, said = REFUSED[kind]
    with pytest.raises((ValueError, TypeError, OSError), match=said):
        train(CONFIG.objective(), data, CONFIG, quiet=True)


def test_an_item_that_fails_is_named_by_a_worker_too():
    for workers in (0, 1):
        with pytest.raises(OSError, match="a picture that breaks") as error:
            Batches(Failing(POINTS), CONFIG, workers=workers)(3, 0)
        said = str(error.value) + " ".join(getattr(error.value, "__notes__", []))
        assert re.search(r"at item \d+ of the data set, slot 0 of step 3", said)


@pytest.mark.parametrize("data", [POINTS, Resumable(POINTS)], ids=["tensor", "stream"])
def test_workers_are_for_map_style_data_alone(data):
    with pytest.raises(ValueError, match="'workers' must be 0"):
        train(CONFIG.objective(), data, CONFIG, workers=2)


def test_the_hash_and_the_split_are_in_every_file_and_in_the_protocol(tmp_path):
    images = mapped(tmp_path)
    config = points(decoder=None, weighting={"name": "Sigmoid"}, steps=2)
    with Run.open(tmp_path / "run", config) as run:
        train(config.objective(), images, config, run=run, quiet=True)
    loaded = Run(tmp_path / "run").loaded()
    assert loaded.data == [data_hash(images.pixels)]
    assert loaded.record["training data"] == images.record
    assert images.record == (
        "points.npy: 500 rows of float32; split by the hash of their content: "
        "425 train, 25 selection, 50 test"
    )
    facts = read_meta(checkpoints(run.checkpoints)[-1])["facts"]
    assert (facts["data"], facts["split"]) == (loaded.data, images.record)


def test_the_hash_of_a_data_set_is_of_some_items():
    for data, same in ((POINTS, True), (POINTS.flip(0), False)):
        one = Batches(Noisy(POINTS), CONFIG).source.fingerprint(False)
        other = Batches(Noisy(data), CONFIG).source.fingerprint(False)
        assert one.startswith("Noisy of 500 items, of 32 ")
        assert (one == other) == same


MEMORY = """
import sys, torch
from vdiff.data import load_images
from vdiff.training import Config, train
from vdiff.training.sources import OnDisk

def megabytes(word):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if word in line) // 1024

network = {"name": "MLP", "dims": 1024, "width": 16}
config = Config(
    network, shape=[1024], level_head=False, decoder=None, weighting={"name": "Sigmoid"},
    batch=64, steps=150,
)
images = load_images(sys.argv[1])
train(config.objective(), images[:64], config.override(["steps=2"]), quiet=True)
before = megabytes("VmRSS")
train(config.objective(), images, config, quiet=True)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux says what is resident")
@pytest.mark.parametrize("rows", [100_000, pytest.param(1_250_000, marks=pytest.mark.soak)])
def test_a_set_in_a_file_trains_in_bounded_memory(rows, tmp_path):
    """0.4 or 5.1 GB, all of which is read for its hash, and some at random."""
    path = tmp_path / "large.npy"
    whole = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 1024))  # sparse
    del whole
    assert path.stat().st_size > 4000 * rows
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 + 32 * rows / 1e6  # numbers, labels, the order of a pass

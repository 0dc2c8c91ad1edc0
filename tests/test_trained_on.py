"""The hashes of a run's training examples: which of other images are among them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff.data import Images, load_images
from vdiff.training import Config, Run, train, trained_on
from vdiff.training.trained_on import FOLDER, MOST, overlap, remember

DATA = torch.randint(0, 17, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(0, 17, (9, 1, 4, 4), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_the_images_that_were_trained_on_are_counted(dtype, tmp_path):
    remember(tmp_path, DATA, "a hash")
    for count in (0, 1, 12):
        mixed = torch.cat([OTHER, DATA[:count]]).to(dtype)
        found = overlap(tmp_path, ["a hash"], mixed)
        assert found == (count, 9 + count, 9 + count)
    assert str(found) == "12 of the 21 images"
    assert overlap(tmp_path, ["a hash"], DATA.float()).found == 0


def test_images_of_a_file_have_the_hashes_of_those_in_memory(tmp_path):
    np.save(tmp_path / "a.npy", DATA[:5].to(torch.uint8).numpy())
    remember(tmp_path, Images(DATA, torch.zeros(40)), "a hash, labels another")
    mapped = load_images(tmp_path / "a.npy")
    assert overlap(tmp_path, ["a hash, labels another"], mapped).found == 5


def test_of_more_examples_a_sample_is_kept_and_its_size_is_said(tmp_path, monkeypatch):
    """Every image is compared that could be in the sample, and no other."""
    monkeypatch.setattr(trained_on, "MOST", 10)
    many = torch.arange(4000).view(1000, 4)
    remember(tmp_path, many, "a hash")
    (path,) = (tmp_path / FOLDER).iterdir()
    assert len(np.load(path)) == 10
    everything = overlap(tmp_path, ["a hash"], many)
    assert everything == (10, 10, 1000)
    assert str(everything) == "10 of a sample of 10 of the 1,000 images"
    others = overlap(tmp_path, ["a hash"], many + 10**6)
    assert (others.found, others.images) == (0, 1000)
    assert 0 < others.compared < 60


def test_a_file_is_small_and_one_that_is_damaged_says_nothing(tmp_path):
    remember(tmp_path, torch.arange(MOST + 5).view(-1, 1), "a hash")
    (path,) = (tmp_path / FOLDER).iterdir()
    assert path.stat().st_size < 600_000
    for content in (b"", path.read_bytes()[:-1], b"\x93NUMPY" + bytes(800_000)):
        path.write_bytes(content)
        assert overlap(tmp_path, ["a hash"], DATA) is None
    np.save(path, np.array([3, 1], np.uint64))
    assert overlap(tmp_path, ["a hash"], DATA) is None
    assert overlap(tmp_path, ["another"], DATA) is None
    assert overlap(tmp_path, [], DATA) is None


def test_a_run_remembers_what_it_was_trained_on(tmp_path):
    """By `train`, and by weights that were saved with their data; a new run forgets."""
    config = Config({"name": "UNet", "channels": 1, "channels_out": 17, "width": 8}, steps=1)
    data = torch.randint(0, 17, (130, 1, 8, 8))
    with Run.open(tmp_path, config) as run:
        train(config.objective(), data, config, run=run, quiet=True)
    assert overlap(tmp_path, run.loaded().data, data[:7]).found == 7
    with pytest.warns(UserWarning, match="replacing"):
        again = Run.create(tmp_path, config)
    assert not (tmp_path / FOLDER).exists()
    with again:
        again.save(config.objective(), data=data[:50])
    assert overlap(tmp_path, again.loaded().data, data).found == 50


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained_on, "atomic_write", full)
    with pytest.warns(UserWarning, match="will not know which images were trained on.*No space"):
        remember(tmp_path, DATA, "a hash")

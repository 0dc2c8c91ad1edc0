"""Data by name or by path: one function for all kinds."""

import numpy as np
import pytest
import torch
from PIL import Image

from vdiff.data import load, load_images
from vdiff.data.load import is_path


def test_a_name_has_its_published_split():
    parts = load("digits")
    assert tuple(map(len, parts)) == (1300, 200, 297)
    assert {part.record for part in parts} == {"digits: 1,300 train, 200 selection, 297 test"}
    assert (len(load_images("digits")), load_images("digits").levels) == (1797, 17)


def test_a_folder_is_split_and_its_parts_say_how(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 9, 12, 3), np.uint8)
    for i, value in enumerate(values):
        (tmp_path / f"class {i % 2}").mkdir(exist_ok=True)
        Image.fromarray(value).save(tmp_path / f"class {i % 2}" / f"{i}.png")
    parts = load(tmp_path, size=8, resampling="box")
    assert tuple(map(len, parts)) == (34, 2, 4)
    assert {part.names for part in parts} == {("class 0", "class 1")}
    record = (
        f"{tmp_path.name}: 40 pictures, 3×8×8, box to 8, centre, 256 levels, labels 0, 1, … are "
        "class 0, class 1; split by the hash of their content: 34 train, 2 selection, 4 test"
    )
    assert parts.test.record == record
    everything = load_images(tmp_path, size=8, resampling="box")
    assert len(everything) == 40
    rows = {tuple(row.tolist()) for part in parts for row in part.pixels.flatten(1)}
    assert rows == {tuple(row.tolist()) for row in everything.pixels.flatten(1)}


def test_a_file_larger_than_what_is_asked_for_is_not_read(tmp_path):
    whole = np.lib.format.open_memmap(tmp_path / "own.npy", "w+", np.uint8, (10**6, 3, 64, 64))
    del whole  # 12 GB, sparse
    images = load_images(tmp_path / "own.npy")
    assert (len(images), images.shape) == (10**6, (3, 64, 64))
    assert torch.equal(images[10:12].pixels, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "digit",
            r"or a \.npy or \.npz file; got digit, which does not exist .did you mean 'digits'",
        ),
        ("no/such/folder", "got no/such/folder, which does not exist"),
        (__file__, f"got the file {__file__}"),
    ],
)
def test_what_is_not_there_is_named(path, said):
    for read in (load, load_images):
        with pytest.raises(ValueError, match=said):
            read(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 8}, "'size' must be left out for digits"),
        ({"levels": 256}, "'levels' must be left out for digits"),
        ({"resampling": "cubic"}, "did you mean 'bicubic'"),
        ({"channels": 4}, "'channels' must be 1, grey, or 3, RGB; got 4"),
        ({"alpha": "keep"}, "'alpha' must be one of 'refuse', 'drop'"),
        ({"levels": 1}, "'levels' must be at least 2"),
        ({"size": 0}, "'size' must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        load("digits", **options)


def test_levels_of_pictures_are_a_power_of_two(tmp_path):
    with pytest.raises(ValueError, match="'levels' must be a power of two; got 17"):
        load(tmp_path, levels=17)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("digits", False), ("photos", False), ("photos/", True), ("./photos", True), ("a.npz", True)],
)
def test_a_path_in_a_config_has_a_separator_or_a_suffix(name, expected):
    assert is_path(name) == expected

"""Data sets: CIFAR-10 and what becomes it, patches that do not overlap, one function for all."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import NAMES as BATCHES
from cifar_files import file_of, lay_out, pack, pictures, small, write_binary, write_python

from vdiff.data import augment, dataset, splits
from vdiff.data.cifar10 import (
    BATCH,
    CONVERSION,
    PUBLISHED,
    RECORD,
    cifar10,
    decode_binary,
    encode_binary,
)
from vdiff.data.digits import digits
from vdiff.data.file import File
from vdiff.data.patches import NAMES, SELECTION, TEST, TRAIN, _cut, patches
from vdiff.decoder import Categorical


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    patches(folder)
    return folder


def test_a_whole_batch_has_the_published_size_and_is_read_as_it_is_written():
    data, labels = pictures(10_000)
    binary = write_binary(data, labels)
    assert len(binary) == 30_730_000 == PUBLISHED.batches[0].size
    ours = decode_binary(binary)
    assert ours.pixels[9_999, 2, 31, 30] == (7 * 9_999 + (2 * 1024 + 31 * 32 + 30) ** 2) % 256
    assert torch.equal(ours.labels, torch.from_numpy(labels))
    assert encode_binary(ours) == binary


def test_the_python_archive_is_converted_by_the_lines_that_the_error_gives(tmp_path, monkeypatch):
    """The checksum is of what Python 2.7's cPickle wrote, for numpy's own way of being pickled."""
    written = hashlib.sha256(write_python(*pictures(10_000))).hexdigest()
    assert written == "f24d9ec81e64a0b4861617c6acb679a3c3af9e68b9be701d34fa502d3760ae3c"
    form, archive, batches = small()
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", form)
    pickled = {name: write_python(*pictures(4, 4 * i)) for i, name in enumerate(BATCHES)}
    pickled |= {"batches.meta": b"no image", "readme.html": b""}
    unpacked, packed = tmp_path, tmp_path / "packed"
    lay_out(packed, {"cifar-10-python.tar.gz": pack(pickled)})
    lay_out(unpacked / "cifar-10-batches-py", pickled)
    lay_out(unpacked / form.folder, {"data_batch_1.bin": batches["data_batch_1.bin"]})
    for folder in (unpacked, packed):
        there = sorted(folder.rglob("*"))
        with pytest.raises(ValueError, match="must hold the binary form of CIFAR-10") as refused:
            dataset("cifar10", folder)
        first, *rest = str(refused.value).splitlines()
        assert first.startswith("dataset: argument 'folder' must hold the binary form")
        assert f" in {folder}, whose pickles are not read" in first
        assert "\n".join(rest) == CONVERSION
        assert sorted(folder.rglob("*")) == there  # nothing was downloaded
    subprocess.run([sys.executable, "-c", CONVERSION], cwd=unpacked, check=True)
    data, labels = pictures(24)
    train, test = dataset("cifar10", unpacked)
    assert torch.equal(torch.cat([train.pixels, test.pixels]).flatten(1), torch.from_numpy(data))
    assert torch.equal(torch.cat([train.labels, test.labels]), torch.from_numpy(labels))
    lay_out(packed, {form.archive.name: archive})
    assert torch.equal(dataset("cifar10", packed)[1].pixels, test.pixels)


def test_the_page_has_the_same_lines():
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    assert textwrap.indent(CONVERSION, "    ") in page


def test_the_published_files_are_listed_whole():
    assert len(PUBLISHED.batches) == 6
    assert PUBLISHED.batches[-1].name.startswith("test_batch")
    assert len({file.checksum for file in PUBLISHED.batches}) == 6
    for file in (PUBLISHED.archive, *PUBLISHED.batches):
        algorithm, digest = file.checksum.split(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size
        assert set(digest) <= set("0123456789abcdef")
    assert all(file.size == 10_000 * 3_073 for file in PUBLISHED.batches)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_packed_or_not_the_same_images_load(packed, tmp_path, monkeypatch):
    form, archive, batches = small()
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", form)
    if packed:
        (tmp_path / form.archive.name).write_bytes(archive)
    else:
        lay_out(tmp_path / form.folder, batches)
    there = sorted(tmp_path.rglob("*"))
    train, test = dataset("cifar10", tmp_path)
    data, labels = pictures(24)
    assert torch.equal(torch.cat([train.pixels, test.pixels]).flatten(1), torch.from_numpy(data))
    assert torch.equal(torch.cat([train.labels, test.labels]), torch.from_numpy(labels))
    assert (len(train), len(test), train.levels, train.pixels.dtype, train.labels.dtype) == (
        20,
        4,
        256,
        torch.uint8,
        torch.int64,
    )
    assert (
        sorted(tmp_path.rglob("*")) == there
    )  # reading writes nothing, so a read-only folder will do
    assert Categorical(256).encode(train.pixels).abs().max() < 1


def test_patches_of_the_three_splits_share_no_pixel(monkeypatch):
    """Two photographs whose pixels say where they are: all columns that any patch covers, and no
    patch twice."""
    y, x = np.mgrid[:427, :640]
    places = np.stack([x % 256, x // 256 * 2 + y // 256, y % 256], -1).astype(np.uint8)
    photographs = [places, places + np.array([0, 10, 0], np.uint8)]
    monkeypatch.setattr(
        "sklearn.datasets.load_sample_images",
        lambda: type("Photographs", (), {"images": photographs}),
    )
    covered, corners = [], []
    for images in (_cut(*TRAIN, 49_000), _cut(*SELECTION, 1_000), _cut(*TEST, 10_000)):
        low, high, last = (images.pixels[:, channel].long() for channel in range(3))
        assert torch.equal(high // 10, images.labels[:, None, None].expand_as(high))
        column, row = low + high % 10 // 2 * 256, last + high % 2 * 256
        assert (column.diff(dim=2) == 1).all()
        assert (row.diff(dim=1) == 1).all()
        covered.append(column[:, 0].unique())
        corners.append(
            torch.stack([images.labels, column[:, 0, 0], row[:, 0, 0]], 1).unique(dim=0)
        )
    assert torch.equal(
        torch.cat(covered).sort().values, torch.arange(640)
    )  # every column once: in one of the three
    assert [len(c) for c in corners] == [49_000, 1_000, 10_000]


def test_patches_are_of_the_photographs_and_their_classes_are_which(patched):
    from sklearn.datasets import load_sample_images

    photographs = [
        torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images
    ]
    for images in patches(patched):
        for patch, label in zip(images.pixels[:5], images.labels[:5].tolist(), strict=True):
            corners = (
                (photographs[label][:, :-31, :-31] == patch[:, :1, :1]).all(0).nonzero().tolist()
            )
            assert any(
                torch.equal(photographs[label][:, y : y + 32, x : x + 32], patch)
                for y, x in corners
            )
        assert 0.45 < images.labels.double().mean() < 0.55


def test_patches_are_in_the_binary_form_of_cifar10_and_the_same_each_time(patched, tmp_path):
    for name in NAMES:
        assert (
            (patched / "patches" / name).stat().st_size
            == BATCH * RECORD
            == PUBLISHED.batches[0].size
        )
    listed = (patched / "patches" / "SHA256SUMS").read_text()
    assert listed.splitlines()[5].endswith("  test_batch.bin")
    patches(tmp_path)
    assert (tmp_path / "patches" / "SHA256SUMS").read_text() == listed
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [
        "patches"
    ]
    lay_out(
        tmp_path / "cifar-10-batches-bin",
        {name: (patched / "patches" / name).read_bytes() for name in NAMES[:1]},
    )
    raw = (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").read_bytes()
    assert torch.equal(decode_binary(raw).pixels, patches(patched)[0].pixels[:10_000])


def test_the_selection_is_held_out_of_the_training_images(patched):
    train, test = dataset("patches", patched)
    parts = splits("patches", patched)
    assert [len(part) for part in parts] == [49_000, 1_000, 10_000]
    assert torch.equal(torch.cat([parts.train.pixels, parts.selection.pixels]), train.pixels)
    assert torch.equal(torch.cat([parts.train.labels, parts.selection.labels]), train.labels)
    assert torch.equal(parts.test.pixels, test.pixels)
    split, ours = digits(), splits("digits")
    assert torch.equal(ours.selection.pixels.long(), split.selection)
    assert torch.equal(ours.selection.labels, split.selection_labels)
    assert torch.equal(ours.test.pixels.long(), split.test)


def test_augmentation_is_a_function_of_its_numbers():
    """Every one of the eight ways an image can lie, each recognised by its corners; labels of
    change are right."""
    image = torch.arange(18, dtype=torch.uint8).view(2, 3, 3)
    turned = [image.rot90(k, (1, 2)) for k in range(4)]
    cases = [(m, k) for m in (False, True) for k in range(4)]
    u = torch.tensor(
        [[0.49 if m else 0.5, 0.5 if k == 0 else 0.49, max(0, k - 1) / 3 + 0.1] for m, k in cases]
    )
    changed, flags = augment(image.expand(8, 2, 3, 3), "flip-turn", u)
    for (mirrored, k), one in zip(cases, changed, strict=True):
        assert torch.equal(one, image.flip(2).rot90(k, (1, 2)) if mirrored else turned[k])
    assert flags.tolist() == [float(m or k > 0) for m, k in cases]
    assert len(changed.flatten(1).unique(dim=0)) == 8
    flipped, flags = augment(image.expand(8, 2, 3, 3), "flip", u)
    assert torch.equal(flipped, torch.stack([image.flip(2) if m else image for m, _ in cases]))
    assert flags.tolist() == [float(m) for m, _ in cases]
    same, flags = augment(image.expand(8, 2, 3, 3), "none", u)
    assert torch.equal(same, image.expand(8, 2, 3, 3))
    assert flags.tolist() == [0.0] * 8
    edge, _ = augment(
        image[None], "flip-turn", torch.tensor([[0.9, 0.0, 1.0]])
    )  # float32 rounds to 1 now and then
    assert torch.equal(edge[0], turned[3])


@pytest.mark.parametrize("kind", ["none", "flip", "flip-turn"])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int8], ids=str)
def test_levels_of_any_integer_dtype_are_augmented(dtype, kind):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (16, 1, 4, 4), generator=generator)
    u = torch.rand(16, 3, generator=generator)
    (got, flags), (expected, same) = augment(images.to(dtype), kind, u), augment(images, kind, u)
    assert torch.equal(got.long(), expected)
    assert torch.equal(flags, same)


def test_half_of_the_images_are_mirrored_and_half_turned():
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3)
    changed, flags = augment(
        image.expand(40_000, 1, 3, 3),
        "flip-turn",
        torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0)),
    )
    ways = [way.rot90(k, (1, 2)) for way in (image, image.flip(2)) for k in range(4)]
    counts = torch.stack([(changed == way).flatten(1).all(1).sum() for way in ways]) / 40_000
    expected = torch.tensor([1 / 4] + [1 / 12] * 3).repeat(2)
    assert ((counts - expected).abs() < 4 * (expected * (1 - expected) / 40_000).sqrt()).all()
    assert flags.mean().item() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 40_000) ** 0.5)


def test_digits_are_the_demos(tmp_path):
    train, test = dataset("digits", tmp_path)
    split = digits()
    assert torch.equal(train.pixels.long(), split.train)
    assert torch.equal(test.labels, split.test_labels)
    assert test.levels == 17
    assert list(tmp_path.iterdir()) == []


def test_another_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError,
        match=(
            r"dataset: argument 'name' must be one of cifar10, digits, patches; got 'cifar-10' "
            r"\(did you mean 'cifar10'\?\)"
        ),
    ):
        dataset("cifar-10")


def test_a_flipped_label_is_noticed(tmp_path, monkeypatch):
    """It would load: only the checksum knows."""
    form, _, batches = small()
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", form)
    raw = bytearray(batches["data_batch_3.bin"])
    raw[0] ^= 1
    lay_out(tmp_path / form.folder, batches | {"data_batch_3.bin": bytes(raw)})
    with pytest.raises(
        ValueError,
        match=(
            r"must hold data_batch_3\.bin as published, 12,292 bytes with sha256 \w+; got sha256 "
            r"\w+ at .*data_batch_3\.bin"
        ),
    ):
        cifar10(tmp_path)


def test_checksums_of_several_kinds():
    raw = b"some bytes"
    for algorithm in ("md5", "sha1", "sha256"):
        file = File("name", len(raw), f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}")
        file.check(raw)
        with pytest.raises(ValueError, match=rf"got {algorithm} "):
            file.check(b"Some bytes")
    assert str(file_of("a", b"")) == f"a (0 bytes, sha256 {hashlib.sha256(b'').hexdigest()})"

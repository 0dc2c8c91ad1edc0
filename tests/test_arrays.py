"""Arrays in .npy and .npz files: mapped, in every layout, and what is refused with the file's
name."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vdiff.data import load, load_images
from vdiff.data.mapped import Mapped
from vdiff.errors import InvalidValue

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 4), np.uint8)


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


LAYOUTS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "channels first": (PIXELS, PIXELS),
    "channels last": (PIXELS.transpose(0, 2, 3, 1), PIXELS),
    "as Fortran has it": (np.asfortranarray(PIXELS), PIXELS),
    "without channels": (PIXELS[:, 0], PIXELS[:, :1]),
    "one channel": (PIXELS[:, :1], PIXELS[:, :1]),
    "bits": (PIXELS[:, :1] > 100, (PIXELS[:, :1] > 100).astype(np.uint8)),
    "latents": (PIXELS / np.float32(7), PIXELS / np.float32(7)),
    "vectors": (PIXELS[:, :, 0, 0] / 7, PIXELS[:, :, 0, 0] / 7),
    "big-endian": ((PIXELS / 7).astype(">f4"), PIXELS / np.float32(7)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_every_layout_is_read(kind, suffix, tmp_path):
    written, expected = LAYOUTS[kind]
    path = tmp_path / f"own.{suffix}"
    np.save(path, written) if suffix == "npy" else np.savez(path, images=written)
    images = load_images(path)
    assert isinstance(images.store, Mapped)
    np.testing.assert_allclose(images.pixels.numpy(), expected, rtol=1e-6)
    assert images.shape == expected.shape[1:]
    assert images.levels == {"bits": 2}.get(kind, None if expected.dtype.kind == "f" else 256)
    rows = torch.tensor([7, 2, 2])
    np.testing.assert_allclose(images.take(rows).numpy(), expected[rows], rtol=1e-6)
    np.testing.assert_allclose(images[5:9].pixels.numpy(), expected[5:9], rtol=1e-6)


def test_an_archive_has_labels(tmp_path):
    labels = np.arange(30, dtype=np.int16) % 4
    np.savez(tmp_path / "own.npz", labels=labels, images=PIXELS)
    images = load_images(tmp_path / "own.npz")
    assert torch.equal(images.labels, torch.from_numpy(labels).long())
    train, *_ = load(tmp_path / "own.npz")
    chosen = train.pixels[:, None].eq(torch.from_numpy(PIXELS)).flatten(2).all(2).int().argmax(1)
    assert torch.equal(train.labels, images.labels[chosen])


def test_more_bits_need_levels(tmp_path):
    values = PIXELS.astype(np.uint16) * 257
    path = saved(tmp_path / "own.npy", values)
    with pytest.raises(
        ValueError, match="'levels' must be given unless data are bytes; got uint16"
    ):
        load_images(path)
    images = load_images(path, levels=65536)
    assert images.levels == 65536
    assert np.array_equal(images.pixels.numpy(), values)
    assert load_images(saved(tmp_path / "few.npy", PIXELS % 17), levels=17).levels == 17


def test_alpha_is_dropped_by_request(tmp_path):
    last = np.concatenate([PIXELS, PIXELS[:, :1]], 1).transpose(0, 2, 3, 1)
    path = saved(tmp_path / "own.npy", np.ascontiguousarray(last.repeat(2, 1).repeat(2, 2)))
    with pytest.raises(ValueError, match=f"alpha, in {path} .alpha='drop' drops it"):
        load_images(path)
    dropped = load_images(path, alpha="drop").pixels
    assert np.array_equal(dropped.numpy()[:, :, ::2, ::2], PIXELS)


def archive(path: Path, **members: Any) -> None:
    np.savez(path, **members)


def cut_off(path: Path) -> None:
    np.save(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-100])


def objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)


def wrong_labels(path: Path) -> None:
    np.savez(path, images=PIXELS, labels=np.zeros(29, int))


def damaged_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("images.npy", b"no array")


REFUSED = {
    "text.npy": (lambda path: path.write_text("no array"), "that numpy wrote"),
    "empty.npy": (lambda path: path.write_bytes(b""), "that numpy wrote"),
    "text.npz": (lambda path: path.write_text("no archive"), "that numpy wrote"),
    "damaged.npz": (damaged_archive, "that numpy wrote"),
    "cut.npy": (cut_off, "be whole; got"),
    "objects.npy": (objects, "which are not read: they can run code"),
    "none.npy": (lambda path: np.save(path, PIXELS[:0]), "hold rows; got shape (0, 3, 5, 4)"),
    "number.npy": (lambda path: np.save(path, np.uint8(3)), "hold rows; got shape ()"),
    "flat.npy": (lambda path: np.save(path, PIXELS[:, 0, 0, 0]), "got shape (30,)"),
    "words.npy": (lambda path: np.save(path, np.array(["a", "b"])), "whole or floating numbers"),
    "packed.npz": (lambda path: np.savez_compressed(path, images=PIXELS), "not compressed"),
    "two.npz": (lambda path: archive(path, a=PIXELS, b=PIXELS), "got a, b in"),
    "nothing.npz": (lambda path: archive(path), "got nothing in"),
    "labels.npz": (wrong_labels, "hold labels (n,) = (30,)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name, tmp_path):
    make, said = REFUSED[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_images(path)
    assert str(path) in str(error.value)


def test_arrays_take_no_options_of_pictures(tmp_path):
    path = saved(tmp_path / "own.npy", PIXELS)
    for options in ({"size": 8}, {"channels": 3}):
        with pytest.raises(ValueError, match="must be left out for arrays"):
            load_images(path, **options)
    path = saved(tmp_path / "floats.npy", PIXELS / 7)
    with pytest.raises(ValueError, match="'levels' must be left out for float64"):
        load_images(path, levels=256)


def test_headers_of_every_version_are_read(tmp_path):
    for version in ((1, 0), (2, 0), (3, 0)):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, PIXELS, version=version)
        (tmp_path / "own.npy").write_bytes(buffer.getvalue())
        assert np.array_equal(load_images(tmp_path / "own.npy").pixels.numpy(), PIXELS)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32", "int64"])
def test_token_ids_have_no_levels(tmp_path, kind):
    ids = np.arange(600).reshape(200, 3).astype(kind)
    path = saved(tmp_path / "ids.npy", ids)
    texts = load_images(path, tokens=True)
    assert texts.levels is None
    assert np.array_equal(texts.pixels.numpy(), ids)
    saved(path, np.zeros_like(ids) + ids[:40].repeat(5, 0))
    with pytest.warns(UserWarning, match="160 of 200 texts are copies of others, and all copies"):
        assert sum(map(len, load(path, tokens=True))) == 200


def test_token_ids_that_are_no_windows_are_refused(tmp_path):
    path = saved(tmp_path / "ids.npy", np.arange(600))
    with pytest.raises(InvalidValue, match=r"\(n, length\).*reshape\(-1, 128\)"):
        load_images(path, tokens=True)
    with pytest.raises(InvalidValue, match="whole numbers; got float64"):
        load_images(saved(path, np.ones((4, 3))), tokens=True)
    with pytest.raises(InvalidValue, match="left out for tokens"):
        load_images(saved(path, np.ones((4, 3), int)), tokens=True, levels=4)
    with pytest.raises(InvalidValue, match="text_from"):
        load_images(tmp_path, tokens=True)

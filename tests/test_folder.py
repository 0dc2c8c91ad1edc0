"""Pictures of a folder: what is read as what, and what is refused with the name of the file."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdiff.data import load_images

GENERATOR = np.random.default_rng(0)
GREY, COLOR = (GENERATOR.integers(0, 256, shape, np.uint8) for shape in ((8, 8), (8, 8, 3)))
DEEP = GENERATOR.integers(0, 65536, (8, 8), np.uint16)


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def png_of_16_bit_color(path: Path) -> None:
    """Pillow cannot write it."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content)
        )  # fmt: skip

    rows = np.stack([DEEP, DEEP[::-1], DEEP.T], -1).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    body = head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def pixels(folder: Path, **options: object) -> torch.Tensor:
    return load_images(folder, **options).pixels


def test_pictures_are_read_as_they_are(tmp_path):
    save(tmp_path / "b.png", COLOR)
    save(tmp_path / "a.bmp", COLOR[::-1])
    images = load_images(tmp_path)
    expected = np.stack([COLOR[::-1], COLOR]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.pixels.numpy(), expected)  # sorted by path
    assert (images.levels, images.names, images.labels.tolist()) == (256, (), [0, 0])
    name = tmp_path.name
    assert images.record == f"{name}: 2 pictures, 3×8×8, as they are, 256 levels"


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "tif", "pgm"])
def test_every_format_is_grey_where_its_picture_is(suffix, tmp_path):
    save(tmp_path / f"a.{suffix}", np.full((8, 6), 7, np.uint8), **{"lossless": True})
    if suffix == "webp":  # which has only color
        assert pixels(tmp_path).shape == (1, 3, 8, 6)
    assert pixels(tmp_path, channels=1).shape == (1, 1, 8, 6)
    assert (pixels(tmp_path, channels=1).int() - 7).abs().max() <= 1


def test_subfolders_are_classes(tmp_path):
    for name, count in {"dogs": 2, "cats": 1, ".hidden": 3}.items():
        for i in range(count):
            save(tmp_path / name / "deeper" / f"{i}.png", GREY)
    (tmp_path / "cats" / "list.csv").write_text("0")
    (tmp_path / ".DS_Store").write_text("0")
    images = load_images(tmp_path)
    assert (images.names, images.labels.tolist()) == (("cats", "dogs"), [0, 1, 1])
    assert images.record.endswith("1 other files left out")


def test_links_to_folders_are_followed_and_a_loop_ends(tmp_path):
    save(tmp_path / "elsewhere" / "a.png", GREY)
    home = tmp_path / "home"
    home.mkdir()
    (home / "class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(home)
    assert len(load_images(home)) == 1


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (9, 8), (3, 5)])
@pytest.mark.parametrize("resampling", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_a_size_is_the_central_square_of_the_shorter_side(shape, resampling, tmp_path):
    values = GENERATOR.integers(0, 256, (*shape, 3), np.uint8)
    save(tmp_path / "a.png", values)
    got = pixels(tmp_path, size=4, resampling=resampling)[0].permute(1, 2, 0).numpy()
    height, width = (max(4, round(side * 4 / min(shape))) for side in shape)
    how = Image.Resampling[resampling.upper()]
    whole = np.asarray(Image.fromarray(values).resize((width, height), how))
    top, left = (height - 4) // 2, (width - 4) // 2
    assert np.array_equal(got, whole[top : top + 4, left : left + 4])
    assert (
        f"{resampling} to 4, centre" in load_images(tmp_path, size=4, resampling=resampling).record
    )


def test_a_photograph_is_turned_as_a_viewer_shows_it(tmp_path):
    picture = Image.fromarray(COLOR[:4])
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90°
    picture.save(tmp_path / "a.png", exif=exif)
    assert pixels(tmp_path).shape == (1, 3, 8, 4)


def test_16_bits_need_levels(tmp_path):
    path = save(tmp_path / "deep.png", DEEP)
    with pytest.raises(
        ValueError, match="'levels' must be given for pictures of 16 bits"
    ) as error:
        load_images(tmp_path)
    assert str(path) in str(error.value)
    everything = load_images(tmp_path, levels=65536)
    assert everything.levels == 65536
    assert np.array_equal(everything.pixels[0, 0].numpy(), DEEP)
    for levels in (2, 256, 4096):
        kept = pixels(tmp_path, levels=levels)[0, 0].numpy()
        assert np.array_equal(kept, DEEP >> (17 - levels.bit_length()))
    assert pixels(tmp_path, levels=256).dtype == torch.uint8
    assert pixels(tmp_path, levels=65536, size=4).shape == (1, 1, 4, 4)
    assert pixels(tmp_path, levels=65536, channels=3).shape == (1, 3, 8, 8)


def test_16_bits_of_color_are_read_as_their_upper_8(tmp_path):
    png_of_16_bit_color(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="'levels' must be given for pictures of 16 bits"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match=r"'levels' must be at most 256 for color; got 65536 for"):
        load_images(tmp_path, levels=65536)
    assert np.array_equal(pixels(tmp_path, levels=256)[0, 0].numpy(), DEEP >> 8)


def test_fewer_levels_are_the_upper_bits(tmp_path):
    save(tmp_path / "a.png", GREY)
    images = load_images(tmp_path, levels=32)
    assert np.array_equal(images.pixels[0, 0].numpy(), GREY >> 3)
    assert images.levels == 32


def test_alpha_is_dropped_by_request(tmp_path):
    rgba = np.concatenate([COLOR, np.full((8, 8, 1), 9, np.uint8)], -1)
    path = save(tmp_path / "a.png", rgba)
    with pytest.raises(ValueError, match=f"an alpha channel in {path} .alpha='drop' drops it"):
        load_images(tmp_path)
    dropped = load_images(tmp_path, alpha="drop")
    assert np.array_equal(dropped.pixels[0].permute(1, 2, 0).numpy(), COLOR)
    assert "alpha dropped" in dropped.record


@pytest.mark.parametrize("mode", ["P", "1", "LA"])
def test_palettes_bits_and_grey_with_alpha(mode, tmp_path):
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    expected = Image.fromarray(GREY).convert(mode).convert("RGB" if mode == "P" else "L")
    assert np.array_equal(
        pixels(tmp_path, alpha="drop", channels=1)[0, 0].numpy(), np.asarray(expected.convert("L"))
    )


def test_a_color_of_a_palette_that_is_transparent_is_alpha(tmp_path):
    Image.fromarray(GREY).convert("P").save(tmp_path / "a.png", transparency=0)
    with pytest.raises(ValueError, match="an alpha channel in"):
        load_images(tmp_path)


def test_grey_and_color_mix_where_the_channels_are_given(tmp_path):
    save(tmp_path / "a.png", COLOR)
    path = save(tmp_path / "b.png", GREY)
    with pytest.raises(ValueError, match=f"same channels; got 1 in {path} where .*a.png has 3"):
        load_images(tmp_path)
    color, grey = pixels(tmp_path, channels=3), pixels(tmp_path, channels=1)
    assert np.array_equal(color[1].numpy(), np.stack([GREY] * 3))
    expected = Image.fromarray(COLOR).convert("L")
    assert np.array_equal(grey[0, 0].numpy(), np.asarray(expected))


def cut_off(path: Path) -> None:
    raw = save(path, GENERATOR.integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def damaged(path: Path) -> None:
    raw = bytearray(save(path, COLOR).read_bytes())
    raw[60:70] = bytes(10)
    path.write_bytes(raw)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no picture"), "pictures that can be read"),
    "nothing in it": (lambda path: path.write_bytes(b""), "pictures that can be read"),
    "cut off": (cut_off, "pictures that can be read"),
    "damaged": (damaged, "pictures that can be read"),
    "a broken link": (lambda path: path.symlink_to("nowhere"), "pictures that can be read"),
    "another size": (lambda path: save(path, COLOR[:5]), "pictures of one size; got 8×5 in"),
    "frames": (
        lambda path: Image.fromarray(GREY).save(
            path, "GIF", save_all=True, append_images=[Image.fromarray(GREY.T)]
        ),
        "single pictures; got 2 frames",
    ),
    "CMYK": (lambda path: Image.new("CMYK", (8, 8)).save(path, "JPEG"), "grey or RGB; got CMYK"),
    "floats": (
        lambda path: Image.fromarray(np.zeros((8, 8), np.float32)).save(path, "TIFF"),
        "'levels' must be given",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("first", [True, False])
def test_a_file_that_does_not_fit_is_named(kind, first, tmp_path):
    make, said = BROKEN[kind]
    for i in range(3):
        save(tmp_path / f"{i}.png", COLOR)
    path = tmp_path / ("-first.png" if first else "wrong.png")
    make(path)
    named = tmp_path / "0.png" if kind == "another size" and first else path
    with pytest.raises(ValueError, match=re.escape(said.split(";")[0])) as error:
        load_images(tmp_path)
    assert str(named) in str(error.value)
    assert first or said in str(error.value)


def test_an_empty_folder_one_without_pictures_and_a_mixed_one_say_so(tmp_path):
    with pytest.raises(
        ValueError, match=f"'path' must hold pictures; got none in {tmp_path}, and 0 other"
    ):
        load_images(tmp_path)
    (tmp_path / "a.txt").write_text("0")
    with pytest.raises(ValueError, match=r", and 1 other files \(a picture ends with \.png, "):
        load_images(tmp_path)
    inside = save(tmp_path / "a.png", GREY)
    save(tmp_path / "class" / "b.png", GREY)
    with pytest.raises(ValueError, match=f"not both; got {inside} beside subfolders"):
        load_images(tmp_path)

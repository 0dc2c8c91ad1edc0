"""The split by content: it depends on the images alone."""

import pytest
import torch

from vdiff.data import Images, split
from vdiff.data.split import content_hashes, whole


def images(count: int, dtype: torch.dtype = torch.uint8) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 3, 3), generator=generator).to(dtype)
    return Images(pixels, torch.arange(count), record="a set")


def as_rows(part: Images) -> set[tuple[float, ...]]:
    return {tuple(row.tolist()) for row in part.pixels.flatten(1)}


@pytest.mark.parametrize(
    ("count", "sizes"), [(3, (1, 1, 1)), (40, (34, 2, 4)), (1000, (850, 50, 100))]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_parts_are_disjoint_and_have_their_sizes(count, sizes, dtype):
    every = images(count, dtype)
    parts = split(every)
    assert tuple(map(len, parts)) == sizes
    assert sorted(torch.cat([part.labels for part in parts]).tolist()) == list(range(count))
    for part in parts:
        assert part.labels.tolist() == sorted(part.labels.tolist())
        assert torch.equal(part.pixels, every.pixels[part.labels])
        said = f"{sizes[0]:,} train, {sizes[1]:,} selection, {sizes[2]:,} test"
        assert part.record == f"a set; split by the hash of their content: {said}"


def test_another_order_gives_the_same_parts():
    every = images(200)
    for one, other in zip(split(every), split(every[torch.randperm(200)]), strict=True):
        assert as_rows(one) == as_rows(other)


def test_equal_images_are_in_one_part():
    every = images(100)
    with pytest.warns(UserWarning, match="200 of 300 images are copies of others"):
        parts = split(every[torch.arange(100).repeat(3)])
    for part in parts:
        counts = torch.unique(part.labels, return_counts=True)[1]
        assert (counts == 3).all()


def test_a_large_set_holds_out_no_more_than_is_needed():
    hashes = content_hashes(images(1000))
    assert len(set(hashes.tolist())) == 1000
    pixels = torch.arange(300_000, dtype=torch.int32).view(-1, 1)
    train, selection, test = split(Images(pixels, torch.zeros(300_000, dtype=torch.int64)))
    assert (len(train), len(selection), len(test)) == (289_000, 1000, 10_000)


def test_many_copies_of_few_images_are_said_with_the_sizes_of_the_parts():
    """Also where a part was empty, because the copies of one image were more than two parts."""
    three = images(3)
    said = "2,997 of 3,000 images are copies .*: 1,000 train, 1,000 selection, 1,000 test .a set"
    with pytest.warns(UserWarning, match=said):
        parts = split(three[torch.arange(3).repeat(1000)])
    assert tuple(map(len, parts)) == (1000, 1000, 1000)


@pytest.mark.parametrize(("copies", "warns"), [(5, False), (6, True)])
def test_a_few_copies_are_no_reason_for_a_warning(copies, warns, recwarn):
    rows = torch.cat([torch.arange(100 - copies), torch.zeros(copies, dtype=torch.int64)])
    split(images(100)[rows])
    assert len(recwarn) == warns


def test_copies_that_leave_no_part_to_train_on_are_the_reason():
    """The image with the smallest hash is nearly all of the set."""
    two = images(2)
    order = content_hashes(two).argsort()
    rows = torch.from_numpy(order.copy())[torch.tensor([0] * 98 + [1] * 2)]
    with pytest.raises(ValueError, match=r"2 different ones of 100, which give 0 train, 2 sel"):
        split(two[rows])


@pytest.mark.parametrize("rows", [[0, 1], [0, 0, 0, 0], [0, 1, 1, 1]])
def test_too_few_different_images_raise(rows):
    with pytest.raises(ValueError, match="'images' must be at least 3 that differ"):
        split(images(2)[torch.tensor(rows)])


def test_a_test_set_is_all_of_it():
    every = images(40)
    for part in whole(every):
        assert as_rows(part) == as_rows(every)
        assert part.record == "a set; all of them"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_named_before_a_training_skips_its_steps(value):
    values = torch.randn(40, 3)
    values[7, 1] = value
    data = Images(values, torch.zeros(40, dtype=torch.int64), None, record="latents.npy")
    with pytest.raises(ValueError, match=r"NaN or infinite values in row 7 \(latents\.npy"):
        split(data)

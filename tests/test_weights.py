"""Safetensors files with a checksum."""

import pytest
import torch

from vdiff.training.weights import check_tensors, read_weights, save_tensors, to_stored

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "count": torch.tensor(3),
    "pairs": torch.tensor([1 + 2j, 3 - 1j]),
}


def test_what_is_saved_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"step": 3})
    weights = read_weights(path, seal=True)
    assert weights.facts == {"step": 3}
    loaded = check_tensors(path, weights.tensors, TENSORS, exact=True)
    assert all(torch.equal(loaded[name], value) for name, value in TENSORS.items())


def test_every_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"weight": TENSORS["weight"]}, {"step": 3})
    raw = path.read_bytes()
    for i in range(len(raw)):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
        with pytest.raises(ValueError, match=r"^checkpoint '"):
            read_weights(path, seal=True)


def test_tensors_that_share_memory_are_stored_twice():
    weight = torch.ones(4)
    stored = to_stored({"a": weight, "b": weight, "c": weight[2:]})
    assert stored["a"].data_ptr() != stored["b"].data_ptr()
    assert torch.equal(stored["c"], weight[2:])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", torch.ones(3, 2), r"weight is \[3, 2\], here \[2, 3\]"),
        ("weight", torch.full((2, 3), torch.nan), "hold no NaN; got one in weight"),
        ("count", torch.tensor(3.0), "have count in torch.int64; got torch.float32"),
        ("other", torch.ones(1), r"other \[1\] is unknown here"),
    ],
)
def test_tensors_of_another_form_are_invalid(name, value, message, tmp_path):
    loaded = to_stored(TENSORS) | {name: value}
    with pytest.raises(ValueError, match=message):
        check_tensors(tmp_path, loaded, TENSORS)

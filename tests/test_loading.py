"""Trained weights come back only into the config and the objective that they belong to."""

import pytest
import torch
from points import data_of, points

from vdiff.training import Run
from vdiff.training.loading import MAY_CHANGE, config_hash, differences, fingerprint, weights_file


def test_the_hash_of_a_config_leaves_out_how_it_is_computed():
    config = points()
    for name, value in {"accumulate": 2, "compile": True, "folder": "elsewhere"}.items():
        assert name in MAY_CHANGE
        assert config_hash(points(**{name: value})) == config_hash(config)
    assert config_hash(points(seed=1)) != config_hash(config)


def test_differences_name_both_values():
    old, new = points(lr=0.1).asdict(), points(lr=0.2, accumulate=2).asdict()
    assert differences(old, new) == "lr: 0.2, where it was 0.1"
    assert differences(old, old) == ""


def test_a_run_goes_on_with_moved_data_and_with_more_steps_at_a_constant_rate():
    old = points(data="/old/photos", decay="constant", steps=4).asdict()
    for change in ({"data": "/new/photos"}, {"data": "photos.npy", "steps": 9}):
        assert differences(old, old | change) == ""
    for change in ({"steps": 3}, {"data": "digits"}, {"decay": "cosine", "steps": 9}):
        assert differences(old, old | change) != ""
    falling = old | {"decay": "cosine"}
    assert differences(falling, falling | {"steps": 9}) == "steps: 9, where it was 4"


def test_a_fingerprint_depends_on_data_and_labels():
    data, labels = data_of(points()), torch.arange(500)
    marks = {fingerprint(data), fingerprint(data.flip(0)), fingerprint(data, labels)}
    assert len(marks) == 3


def test_weights_are_loaded_bit_for_bit_and_without_them_the_run_says_so(tmp_path):
    config = points()
    with pytest.raises(ValueError, match=r"hold ema\.safetensors or a checkpoint"):
        weights_file(tmp_path, config, "ema")
    objective = config.objective()
    with Run.open(tmp_path, config) as run:
        run.save(objective, data=data_of(config))
    loaded = Run(tmp_path).loaded()
    assert loaded.data == [fingerprint(data_of(config))]
    pairs = zip(objective.parameters(), loaded.objective.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not loaded.objective.training

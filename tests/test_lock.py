"""One training at a time in a run folder."""

import json
import os

import pytest

from vdiff.training.lock import lock_folder


def test_the_second_training_is_told_who_has_the_folder(tmp_path):
    lock = lock_folder(tmp_path)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    with pytest.raises(ValueError, match=rf"got process {os.getpid()} on .*wait for it"):
        lock_folder(tmp_path)
    lock.release()
    lock_folder(tmp_path).release()

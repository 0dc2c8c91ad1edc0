"""What a data set leaves in its folder."""

from pathlib import Path

import pytest

from vdiff.data import dataset, download
from vdiff.data.file import writing


@pytest.mark.parametrize("sub", ["new", "new/er/est"])
def test_a_failed_download_leaves_no_folder(
    sub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object) -> None:
        raise ConnectionRefusedError("no route")

    monkeypatch.setattr(download, "_fetch", unreachable)
    with pytest.raises(ValueError, match="download failed"):
        dataset("cifar10", tmp_path / sub)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_or_was_written_stays(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with writing(there, "x"):
        pass
    assert there.is_dir()
    with writing(tmp_path / "new" / "part", "x"):
        (tmp_path / "new" / "part" / "x.part").touch()
    assert (tmp_path / "new" / "part" / "x.part").exists()

"""Commands do not write over the files of a run, and lose nothing where they cannot write."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from image_runs import EVALUATE, OUTPUTS, VICTIM, call, trained

from vdiff.cli import evaluate as evaluation
from vdiff.cli import main
from vdiff.disk import atomic_write, check_output

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and modes of POSIX")


def test_the_folder_of_checkpoints_may_be_a_link(tmp_path):
    """To another disk, as many have it."""
    (tmp_path / "large").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "large")
    trained(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == [
        "step-00000001",
        "step-00000002",
    ]


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize(
    "name",
    [
        "ema.safetensors",
        "config.json",
        "log.jsonl",
        ".lock",
        "checkpoints/step-00000002/meta.json",
        "../run/ema.safetensors",
    ],
)
def test_the_files_of_a_run_are_no_output(command, name, tmp_path, capsys):
    run = trained(tmp_path / "run").folder
    before = (run / name).read_bytes()
    assert call(command, run, run / name) == 2
    assert "be no file of a run itself" in capsys.readouterr().err
    assert (run / name).read_bytes() == before


def test_the_program_s_own_devices_stay(tmp_path):
    for path in ("/dev/null", "/dev/stdout"):
        with pytest.raises(ValueError, match="must be a new file or one to replace"):
            check_output("out", Path(path))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
        (OSError("cannot write mode F as PNG"), "cannot write mode F as PNG"),
    ],
)
def test_an_error_of_a_disk_names_the_file_that_was_asked_for(error, says, tmp_path):
    with pytest.raises(OSError, match=r"Errno 28|cannot write") as raised:  # noqa: SIM117
        with atomic_write(tmp_path / "numbers.json"):
            raise error
    named = f": '{tmp_path / 'numbers.json'}'" if error.errno else ""
    assert str(raised.value) == says + named


@pytest.mark.parametrize("name", ["samples.npz", "samples.png"])
def test_older_samples_stay_where_new_ones_cannot_be_written(name, tmp_path, capsys, monkeypatch):
    run = trained(tmp_path / "run").folder
    words = ["sample", str(run), "--count", "2", "--steps", "2", "--quiet"]
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}

    def full(place, *_, **__):
        Path(place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    from PIL import Image

    if name == "samples.npz":
        monkeypatch.setattr(np, "savez", full)
    else:
        monkeypatch.setattr(Image.Image, "save", lambda self, place, **_: full(place))
    assert main([*words, "--seed", "0"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    assert after.keys() == before.keys()
    assert after[name] == before[name]


@pytest.mark.parametrize("kind", ["file", "pipe", "broken link"])
def test_a_folder_of_samples_that_cannot_be_is_named_before_sampling(
    kind, tmp_path, capsys, monkeypatch
):
    run, out = trained(tmp_path / "run").folder, tmp_path / "out"
    {
        "file": lambda: out.write_text(VICTIM),
        "pipe": lambda: os.mkfifo(out),
        "broken link": lambda: out.symlink_to("none"),
    }[kind]()
    monkeypatch.setattr("vdiff.cli.sample.trajectory", lambda *_, **__: pytest.fail("sampled"))
    assert (
        main(["sample", str(run), "--count", "2", "--steps", "2", "--quiet", "--out", str(out)])
        == 2
    )
    assert "'out' must be a folder" in capsys.readouterr().err


def test_numbers_are_printed_before_they_are_written(tmp_path, capsys, monkeypatch):
    """A disk that is full leaves them on the screen, and says so."""
    run = trained(tmp_path / "run").folder

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(evaluation, "write_text", full)
    assert main(["evaluate", str(run), *EVALUATE]) == 2
    printed = capsys.readouterr()
    assert "total, 95 %" in printed.out
    assert "No space left on device" in printed.err


@pytest.mark.parametrize("error", ["os", "safetensors"])
def test_an_evaluation_goes_on_where_its_state_cannot_be_kept(
    error, tmp_path, capsys, monkeypatch
):
    from safetensors import SafetensorError

    run = trained(tmp_path / "run").folder

    def full(*_, **__):
        text = "No space left on device"
        raise (
            OSError(errno.ENOSPC, text)
            if error == "os"
            else SafetensorError(f"I/O error: {text} (os error 28)")
        )

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.warns(
        UserWarning,
        match=(
            r"the state of the evaluation is not kept, which continues: .*No space left.*bytes "
            r"needed, .*free"
        ),
    ):
        assert main(["evaluate", str(run), *EVALUATE]) == 0
    assert json.loads((run / "evaluation.json").read_text())["total"]["value"] > 0
    assert "total, 95 %" in capsys.readouterr().out

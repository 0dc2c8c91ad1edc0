"""How far a command is: a bar in a terminal, now and then a line without one."""

import errno
import io
import sys

import pytest
from command_line import code_of
from printing import made

import vdiff.terminal
from vdiff.cli import main
from vdiff.terminal import Bar, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(
        vdiff.terminal, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])})
    )
    return now


def test_fault_76_progress_without_a_terminal_is_a_line_now_and_then(clock, monkeypatch):
    """Six updates a second for a quarter of an hour: a line every half minute, and the last."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Bar(54_000, "eval", "testing") as bar:
        for done in range(1, 5_401):
            clock[0] += 1 / 6
            bar.to(done, 54_000)
    lines = log.getvalue().splitlines()
    assert 29 <= len(lines) <= 31
    assert lines[0] == "testing: 0 %, 6 of 54,000 eval, 1 s, about 2.5 h left"
    assert lines[-1].startswith("testing: 10 %, 5,400 of 54,000 eval, 900 s")
    assert "\r" not in log.getvalue()


def test_a_goal_is_forecast_once_from_what_was_done(clock, monkeypatch):
    """From the first update after a second; and by what this command did, not what was there."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Bar(1_000, "eval", "bound", goal="10,000 images") as bar:
        for done in (0, 5, 10, 500):
            bar.to(done)
            clock[0] += 0.9
    lines = log.getvalue().splitlines()
    assert lines[0] == "bound: about 3.0 min for 10,000 images"
    assert sum("10,000 images" in line for line in lines) == 1
    log.truncate(0)
    with Bar(1_000, "eval", "bound", done=900, goal="the rest") as bar:
        clock[0] += 2.0
        bar.to(910)
    assert "bound: about 20.0 s for the rest" in log.getvalue()
    log.truncate(0)
    with Bar(10, "eval", "bound", quiet=True, goal="10 images") as bar:
        clock[0] += 2.0
        bar.to(5)
    assert log.getvalue() == ""


def test_a_short_progress_is_a_few_lines(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in track(range(100), "chain"):
        clock[0] += 0.2
    assert log.getvalue().splitlines()[-1] == "100 %, 100 of 100 chain, 20 s"
    assert log.getvalue().count("\n") == 11
    with Bar(10):
        pass  # nothing was done
    with Bar(10, quiet=True) as quiet:
        quiet.update(10)
    assert log.getvalue().count("\n") == 11


def test_a_total_that_is_not_known_and_one_that_grows(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Bar(unit="eval") as bar:
        for done, total in ((0, 0), (10, 10), (20, 100)):
            clock[0] += 31
            bar.to(done, total)
    assert [line.split(" eval")[0] for line in log.getvalue().splitlines()] == [
        "0 of 0",
        "100 %, 10 of 10",
        "20 %, 20 of 100",
    ]


def test_in_a_terminal_it_is_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar(4, "image", "testing") as bar:
        bar.update(3, note="1.5 bits/dim")
        bar.to(8, 8)
    assert "\r" in screen.getvalue()
    assert "testing: 100%" in screen.getvalue()
    assert "8/8" in screen.getvalue()


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_that_has_gone_away_stops_nothing(stream, monkeypatch, clock):
    class Gone(stream):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    first = stream()
    monkeypatch.setattr(sys, "stderr", first)
    with Bar(4) as bar:
        if bar._bar is not None:
            bar._bar.fp = Gone()
            bar._bar.sp = lambda text: Gone().write(text)
            bar._bar.mininterval = 0
        monkeypatch.setattr(sys, "stderr", Gone())
        for _ in range(4):
            clock[0] += 31
            bar.update()
    assert bar.done == 4


def test_the_commands_show_no_carriage_return_without_a_terminal(tmp_path, capsys):
    run = str(made(tmp_path / "run"))
    assert main(["evaluate", run, "--draws", "2", "--replicates", "2"]) == 0
    seen = capsys.readouterr().err
    assert "100 %" in seen
    assert main(["sample", run, "--count", "2", "--steps", "1"]) == 0
    seen += capsys.readouterr().err
    assert "100 %, 4 of 4 level" in seen
    assert "\r" not in seen
    assert seen.count("\n") <= 6
    assert code_of(["sample", run, "--count", "2", "--steps", "2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""

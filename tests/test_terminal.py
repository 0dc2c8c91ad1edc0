"""What is printed: by any command and example, in any locale, to a terminal, a file or nobody."""

import ast
import errno
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_cli import code_of

import vdiff.terminal
from vdiff.cli import main
from vdiff.errors import InvalidValue, printable
from vdiff.terminal import Bar, say, track
from vdiff.training import Config, Run
from vdiff.training.logger import Logger

ROOT = Path(__file__).parent.parent
CONFIG = Config(
    network={
        "name": "UNet",
        "channels": 1,
        "channels_out": 17,
        "width": 8,
        "multipliers": [1],
        "heads": 1,
    }
)
SCRIPTS = sorted(
    path
    for place in ("examples", "benchmarks")
    for path in (ROOT / place).glob("*.py")
    if "__main__" in path.read_text("utf-8") and path.stem != "tiny"  # which does without vdiff
)
VDIFF = [sys.executable, "-c", "import sys; from vdiff.cli import main; sys.exit(main())"]
LOCALES: dict[str, dict[str, str]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Windows": {"PYTHONIOENCODING": "cp1252"},
    "Greek": {"PYTHONIOENCODING": "iso8859-7"},
}


def in_locale(
    name: str, command: list[str], **options: object
) -> subprocess.CompletedProcess[str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))
    }
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **LOCALES.get(name, {})}
    return subprocess.run(
        command, env=kept | more, capture_output=True, encoding="latin1", timeout=300, **options
    )  # type: ignore[call-overload,no-any-return]


def made(folder: Path, config: Config = CONFIG) -> Path:
    with Run.create(folder, config) as run:
        run.save(config.objective())
    return run.folder


@pytest.mark.parametrize("locale", LOCALES)
def test_fault_76_a_command_prints_in_every_locale(locale, tmp_path):
    commands = [
        ["--help"],
        ["sample", "--help"],
        ["describe", "edm", "--compare", "vdm"],
        ["verify", "tweedie"],
        ["describe", "λ"],
    ]
    code = (
        "import sys; from vdiff.cli import main\n"
        "for words in eval(sys.argv[1]):\n"
        "    try: code = main(words)\n"
        "    except SystemExit as ended: code = ended.code\n"
        "    print('exit code', code)\n"
    )
    done = in_locale(locale, [sys.executable, "-c", code, ascii(commands)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"exit code (\d)", done.stdout) == list("00002"), done.stderr
    assert done.stderr.count("\n") == 1


def test_fault_76_files_are_written_in_full_in_every_locale(tmp_path):
    run = made(tmp_path / "läuft")
    words = [
        "evaluate",
        str(run),
        "--draws",
        "2",
        "--replicates",
        "2",
        "--out",
        str(tmp_path / "größe.json"),
    ]
    done = in_locale("ascii", [*VDIFF, *words], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "größe.json").read_text(encoding="utf-8"))
    assert known["protocol"]["run"] == str(run)
    assert f"{known['total']['value']:.4f} " in done.stdout.replace("  ", " ")


def test_fault_76_the_help_of_every_script_prints_in_ascii():
    code = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv, sys.path[0] = [path, '--help'], path.rpartition('/')[0]\n"
        "    try: runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit as ended: assert ended.code == 0, path\n"
        "    sys.stdout.reconfigure(errors='strict')\n"
    )
    theirs = {"accelerate_loop", "lightning_module"}  # need more libraries: tests/interop
    scripts = [str(script) for script in SCRIPTS if script.stem not in theirs]
    done = in_locale("ascii", [sys.executable, "-c", code, *scripts], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(scripts)


def test_fault_76_an_example_keeps_its_table_in_every_locale(tmp_path):
    words = [
        sys.executable,
        "examples/two_moons.py",
        "--quick",
        "--steps",
        "2",
        "--chain",
        "4",
        "--out",
        str(tmp_path),
    ]
    done = in_locale("ascii", words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "±" in (tmp_path / "findings.txt").read_text(encoding="utf-8")
    assert "?" in done.stdout


def test_the_demo_keeps_its_table_where_nobody_reads_it(tmp_path):
    """Its reader goes away after the first line, long before the table."""
    words = [
        sys.executable,
        "examples/digits.py",
        "--steps",
        "2",
        "--draws",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert "images to train on" in started.stdout.readline()
    started.stdout.close()
    _, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    assert "BrokenPipe" not in err
    assert "held-out images" in (tmp_path / "run" / "table.txt").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "figures" / "samples.png").is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_print_through_what_cannot_fail(script):
    """`print` ends a program at a character that a locale lacks and at a reader that has gone:
    `say` does not."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    names = [
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "print" not in names
    assert "replace_unencodable" in names


@pytest.mark.parametrize(
    "path",
    sorted(
        p for place in ("vdiff", "examples", "benchmarks") for p in (ROOT / place).rglob("*.py")
    ),
    ids=str,
)
def test_text_files_have_an_encoding(path):
    """Without one it is the locale's, which may have no λ."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        given, words = (
            [ast.unparse(one) for one in node.args],
            {word.arg for word in node.keywords},
        )
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
            assert "encoding" in words or (name == "read_text" and given == ["'utf-8'"]), (
                f"{path}:{node.lineno}"
            )
        if (
            name == "open"
            and "b" not in "".join(given[:2]).partition(",")[2]
            and not (words & {"encoding", "fileobj", "timeout"})
        ):
            modes = [
                one for one in given if one.strip("'") in ("r", "w", "a", "x", "r+", "w+", "a+")
            ]
            assert not modes, f"{path}:{node.lineno}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("words", [["--help"], ["describe", "edm"], ["verify", "tweedie"]])
def test_a_disk_without_room_for_the_output_is_said_in_a_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*VDIFF, *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr.endswith("[Errno 28] No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["describe", "--all", "--figure", "f.png"],
        ["evaluate", "RUN", "--draws", "2", "--replicates", "2"],
    ],
)
def test_a_reader_that_has_gone_away_stops_no_command(words, tmp_path):
    """As `| head` does, from the first line on; files are written, and a state of the evaluation
    is not left behind."""
    run = made(tmp_path / "RUN")
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [*VDIFF, *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "roken" not in done.stderr
    if "--figure" in words:
        assert (tmp_path / "f.png").is_file()
    if "evaluate" in words:
        assert [path.name for path in run.iterdir() if path.name.startswith("evaluation")] == [
            "evaluation.json"
        ]


# --- control characters
# ----------------------------------------------------------------------

ESCAPES = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "back\b\b",
    "over\rwritten",
    "two\nlines",
    "\x9b31m",
    "left\u202eright",
    "\x00",
    "tab\t",
    "\udcff",
    "\x7f",
    "\u2028",
]


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_an_error_is_one_line_without_control_characters(name):
    assert str(InvalidValue(name, name, name, name)).isprintable()
    assert printable(f"λ x̂ ± … é {name}").startswith("λ x̂ ± … é ")
    assert printable(name).encode("ascii").decode("unicode_escape").encode(
        "utf-16", "surrogatepass"
    ) == name.encode("utf-16", "surrogatepass")


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_what_is_said_keeps_its_lines_and_nothing_else(name, capsys):
    say(f"before {name} behind", "next")
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert out.count("\n") == 2 + name.count("\n")


def hostile_run(folder: Path, **changes: object) -> Path:
    run = made(folder)
    known = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").write_text(json.dumps(known | changes), encoding="utf-8")
    return run


@pytest.mark.parametrize("command", ["evaluate", "sample"])
@pytest.mark.parametrize(
    "name", ["\x1b[31mred\x07", "a\r\nvdiff evaluate: all is well", "\u202egnp"], ids=ascii
)
def test_names_from_files_do_not_reach_the_terminal_as_they_are(command, name, tmp_path, capsys):
    from safetensors.torch import save_file

    runs = [
        hostile_run(tmp_path / "field", **{name: 1}),
        hostile_run(tmp_path / "class", network={"name": name}),
        hostile_run(tmp_path / "argument", network={"name": "UNet", "channels": 1, name: 1}),
        hostile_run(tmp_path / "data", data=name),
        made(tmp_path / "tensor"),
        tmp_path / name.replace("/", "-"),
    ]
    save_file({name: torch.zeros(1)}, runs[4] / "ema.safetensors")
    for run in runs:
        assert main([command, str(run), "--quiet"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err[:-1].isprintable(), repr(err)
        assert err.startswith(f"vdiff {command}: ")


def test_the_name_of_a_users_recipe_and_of_a_file_are_shown_escaped(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    text = (
        "from vdiff.weighting import ELBO\nfrom vdiff.schedule import Cosine\nfrom "
        "vdiff.parameterization import V\nfrom vdiff.recipes import Recipe\nrecipe = "
        "Recipe('\\x1b[31mmine', Cosine(), V(), ELBO())\n"
    )
    mine.write_text(text, encoding="utf-8")
    figure = tmp_path / "\x1b[31mfigure\n.png"
    assert main(["describe", f"{mine}:recipe", "--compare", "edm", "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mmine" in out
    assert out.splitlines()[-1].endswith(r"\x1b[31mfigure\n.png")
    assert figure.is_file()


def test_a_warning_of_a_command_is_one_line_too(monkeypatch, capsys):
    def warn(options: object) -> int:
        sys.stderr.write(
            warnings.formatwarning("a \x1b[31mred\nwarning", UserWarning, __file__, 1)
        )  # as Python writes it
        return 0

    monkeypatch.setattr("vdiff.cli.describe.run", warn)
    before = warnings.formatwarning
    assert main(["describe", "edm"]) == 0
    assert warnings.formatwarning is before
    assert capsys.readouterr().err == "vdiff describe: warning: a \\x1b[31mred; warning\n"


# --- progress
# ----------------------------------------------------------------------


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


def test_a_training_goes_on_where_its_output_cannot_be_printed(monkeypatch):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    entries: list[dict[str, object]] = []
    monkeypatch.setattr(sys, "stdout", Full())
    with Logger(2, "loss", listeners=[entries.append]) as logger:
        logger.advance(1.0)
        with pytest.warns(UserWarning, match="a log failed, training continues: OSError"):
            logger.write({"step": 1, "train_loss": 1.0})
    assert entries[0]["step"] == 1


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


# --- the log of a run
# ----------------------------------------------------------------------


def test_fault_55_a_line_cut_off_by_a_full_disk_costs_no_other(tmp_path):
    run = Run(made(tmp_path / "run"))
    run.log({"step": 1, "loss": 0.5})
    for torn in ('{"step": 2, "lo', "{", "3", '"', "\x00\x00\x00"):
        with (run.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(torn)
        run.log({"step": 3, "loss": 0.4})
    assert [entry["step"] for entry in run.history()] == [1, 3, 3, 3, 3, 3]
    assert (run.folder / "log.jsonl").read_text(encoding="utf-8").count("\n") == 11


def test_the_first_line_of_a_log_and_one_behind_an_empty_file(tmp_path):
    run = Run(made(tmp_path / "run"))
    run.log({"step": 1})
    assert (run.folder / "log.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n'
    (run.folder / "log.jsonl").write_text("", encoding="utf-8")
    run.log({"step": 2})
    assert (run.folder / "log.jsonl").read_text(encoding="utf-8") == '{"step": 2}\n'

"""Streams that are closed, full, read by nobody, or of another encoding: exit code and answer are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.exhaustive import exhaustive

from bsfind.cli import streams

ROOT = Path(__file__).resolve().parents[2]
NET = ("bsfind.demo:SmallResNet", "--input-shape", "3,32,32", "--gpu", "rtx-4090")
CHECK = ("check", *NET, "--precision", "fp32", "-b")

# Commands that need no torch, with the exit code that they have where all is well.
QUICK = {
    "help": (("run", "--help"), 0),
    "version": (("--version",), 0),
    "completion": (("--show-completion", "bash"), 0),
    "gpus": (("gpus",), 0),
    "explain": (("explain", "LICENSE"), 1),
    "diff": (("diff", "{folder}/old.json", "{folder}/worse.json", "--json"), 1),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    text = (ROOT / "tests" / "golden" / "report.json").read_text()
    (folder / "old.json").write_text(text)
    worse = json.loads(text)
    for result in worse["results"]:
        result["max_batch_size"] = 1
    (folder / "worse.json").write_text(json.dumps(worse))
    return folder


def shell(
    script: str, *arguments: str, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's script in which `"$@"` is bsfind with the arguments."""
    return subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-m", "bsfind", *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


@pytest.mark.parametrize("command", QUICK)
def test_the_exit_code_of_a_stream_that_takes_nothing(command: str, reports: Path) -> None:
    arguments, code = QUICK[command]
    arguments = tuple(argument.format(folder=reports) for argument in arguments)
    done = shell(
        'export PYTHONWARNINGS=error; "$@" >/dev/full; echo full $?; "$@" >&- 2>&- <&-; echo closed $?;'
        '"$@" 2>/dev/full >/dev/null; echo stderr $?; "$@" | true; echo pipe ${PIPESTATUS[0]}',
        *arguments,
    )
    assert done.stdout.decode().split("\n") == [
        *("full 2", f"closed {code}", f"stderr {code}", f"pipe {code}", ""),
    ]
    told = done.stderr.decode()
    assert told.count("error: cannot write the answer: No space left on device") == 1
    assert "Traceback" not in told


@pytest.mark.parametrize("command", ["help", "gpus", "explain"])
def test_every_encoding_takes_the_answer(command: str) -> None:
    arguments, code = QUICK[command]
    environments = (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    for environment in environments:
        done = shell('"$@" 2>&1', *arguments, COLUMNS="0", LINES="²", **environment)
        assert done.returncode == code
        shown = done.stdout.decode("ascii")
        assert len(shown.splitlines()) > 1
        assert "Error" not in shown


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        *(("0", None), ("-5", None), ("abc", None), ("²", None), ("", None), ("9" * 5000, None)),
        *(("1", "1"), ("80", "80"), ("1000000", "400"), ("9" * 20, "400")),
    ],
)
def test_sizes_of_a_terminal(
    told: str, believed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", told)
    monkeypatch.setenv("LINES", told)
    streams.prepare()
    assert os.environ.get("COLUMNS") == os.environ.get("LINES") == believed


@pytest.mark.parametrize("flag", [os.O_NONBLOCK, 0])
def test_a_slow_reader_gets_all_of_it(flag: int) -> None:
    """Where another process has set O_NONBLOCK, as node does, a full pipe is no error."""
    reading, writing = os.pipe()
    os.set_blocking(writing, not flag)
    with subprocess.Popen(
        [sys.executable, "-m", "bsfind", "schema"], cwd=ROOT, stdout=writing
    ) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            assert json.loads(stream.read())["title"].startswith("bsfind report")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "code"), [exhaustive("8", 0), ("100000", 1)])
def test_a_check(batch_size: str, code: int) -> None:
    done = shell(
        '"$@" >/dev/full 2>/dev/null; echo $?; "$@" >&- 2>&- <&-; echo $?', *CHECK, batch_size
    )
    assert done.stdout.decode().split() == ["2", str(code)]
    done = shell('"$@" -v 2>/dev/full', *CHECK, batch_size, COLUMNS="0", PYTHONIOENCODING="ascii")
    assert done.returncode == code
    assert f"batch size {batch_size}" in done.stdout.decode("ascii")


@pytest.mark.slow
def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    source = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(8, 8)\n"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py")).write_text(source)
    exports = [f"--export=out{ending}" for ending in (".json", ".md", ".csv", ".svg")]
    options = ("--input-shape", "8", "--gpu", "rtx-4090", "--precision", "fp32", "-b", "8")
    done = shell("\"$@\" check $'\\xff.py:Net' " + " ".join((*options, *exports)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"\udcff.py:Net")
    document = json.loads((tmp_path / "out.json").read_text(encoding="ascii"))
    assert document["status"] == "complete"
    assert document["workload"]["target"] == r"\udcff.py:Net"
    assert r"\\udcff.py:Net" in (tmp_path / "out.md").read_text()
    assert r"\udcff.py:Net" in (tmp_path / "out.svg").read_text()
    assert (tmp_path / "out.csv").read_text().count("\n") == 2


@pytest.mark.slow
def test_a_folder_that_was_deleted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    check = " ".join((*CHECK, "8"))
    commands = ("env", "gpus --json", check, check.replace("bsfind.demo", "net.py"))
    script = f"rmdir {gone}; " + "".join(f'"$@" {command}; echo $?; ' for command in commands)
    done = shell(script, folder=gone)
    codes = [line for line in done.stdout.decode().splitlines() if line.isdigit()]
    assert codes == ["0", "0", "0", "4"]
    assert b"there is no file `net.py`" in done.stderr
    assert b"Traceback" not in done.stderr

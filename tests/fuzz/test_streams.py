"""Whatever the streams and the environment of a command are: its exit code is the one it has elsewhere.

Only where stdout takes nothing, and says so, is it 2. What reaches stdout is the answer.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.fuzz import examples

pytestmark = pytest.mark.fuzz

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

# Commands that need no torch.
COMMANDS = {
    "version": ("--version",),
    "help": ("--help",),
    "help of run": ("run", "--help"),
    "none": (),
    "gpus": ("gpus",),
    "gpus as JSON": ("gpus", "--json"),
    "schema": ("schema",),
    "found": ("explain", "{folder}/ö\udcff.log"),
    "found, as JSON": ("explain", "{folder}/ö\udcff.log", "--json"),
    "not found": ("explain", f"{ROOT}/LICENSE"),
    "same": ("diff", f"{GOLDEN}/report.json", f"{GOLDEN}/report.json"),
    "worse": ("diff", f"{GOLDEN}/report.json", "{folder}/worse.json", "--json"),
    "other": ("diff", f"{GOLDEN}/report.json", f"{GOLDEN}/predicted.json"),
    "no report": ("diff", f"{ROOT}/LICENSE", "{folder}/nowhere\x1b[2J.json"),
    "usage": ("run", "models.Net", "--input-shape", "3"),
    "option": ("check", "a:b", "--größe", "5"),
    "number": ("run", "a:b", "--steps", "9" * 1000),
}
ENVIRONMENTS = {
    "COLUMNS": ("", "80", "0", "1", "-5", "x", "99999999999999999999", "1000000"),
    "LC_ALL": ("C", "C.UTF-8", "nowhere.utf-8"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "cp1252", "utf-16", "ascii:strict", "utf-8:ignore"),
    "PYTHONUTF8": ("0", "1"),
    "PYTHONCOERCECLOCALE": ("0",),
    "TERM": ("", "dumb", "xterm-256color"),
    "NO_COLOR": ("1",),
    "HOME": ("/proc", "/nowhere"),
    "PYTHONUNBUFFERED": ("1",),
    "PYTHONWARNINGS": ("error",),
}
# What stands behind `<`, `>` and `2>` in the shell; `broken` is a pipe that nobody reads, `slow` one that is
# read late and in small parts.
STDIN = {"nothing": "/dev/null", "closed": "&-", "pipe": "&{slow}", "a device": "/dev/full"}
STDOUT = {
    "file": "{folder}/stdout",
    "slow": "&{slow}",
    "closed": "&-",
    "nowhere": "/dev/null",
    "broken": "&{broken}",
    "full": "/dev/full",
}
STDERR = {**STDOUT, "file": "{folder}/stderr", "both": "&1"}


def run(
    command: str, stdin: str, stdout: str, stderr: str, gone: bool, folder: Path, **environment: str
) -> tuple[int, bytes]:
    """Run a command; return its exit code, and what was written to stdout, if that was a file or `slow`."""
    (folder / "stdout").write_bytes(b"")
    current = folder / "current"
    current.mkdir(exist_ok=True)
    unread, broken = os.pipe()
    os.close(unread)
    reader, slow = os.pipe()
    pipes = {"folder": folder, "broken": broken, "slow": slow}
    if (stdout, stderr) == ("closed", "both"):  # the shell copies no closed stream
        stderr = "closed"
    streams = (STDIN[stdin], STDOUT[stdout], STDERR[stderr])
    redirected = "<{} >{} 2>{}".format(*(stream.format(**pipes) for stream in streams))
    removed = f"rmdir {current};" if gone else ""
    script = f'{removed} exec "$@" {redirected} {broken}>&- {slow}>&-'
    arguments = [argument.format(folder=folder) for argument in COMMANDS[command]]
    received: list[bytes] = []

    def receive() -> None:
        time.sleep(0.2)
        while part := os.read(reader, 5000):
            received.append(part)

    thread = threading.Thread(target=receive)
    thread.start()
    with subprocess.Popen(
        ["bash", "-c", script, "bash", sys.executable, "-m", "bsfind", *arguments],
        cwd=current,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        pass_fds=(broken, slow),
    ) as process:
        os.close(broken)
        os.close(slow)
        code = process.wait(timeout=60)
    thread.join()
    os.close(reader)
    return code, b"".join(received) + (folder / "stdout").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("streams")
    log = "step 1\r\x1b[2Jgröße 梯度: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8.00 GiB total)"
    (found / os.fsdecode(b"\xc3\xb6\xff.log")).write_text(log)
    worse = json.loads((GOLDEN / "report.json").read_text())
    for result in worse["results"]:
        result["max_batch_size"] = 1
    (found / "worse.json").write_text(json.dumps(worse))
    return found


@functools.cache
def healthy(command: str, folder: Path) -> tuple[int, bytes]:
    return run(command, "nothing", "file", "file", False, folder)


@given(
    command=st.sampled_from(sorted(COMMANDS)),
    stdin=st.sampled_from(sorted(STDIN)),
    stdout=st.sampled_from(sorted(STDOUT)),
    stderr=st.sampled_from(sorted(STDERR)),
    gone=st.booleans(),
    environment=st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in ENVIRONMENTS.items()}
    ),
)
@examples(200)
def test_streams(
    command: str,
    stdin: str,
    stdout: str,
    stderr: str,
    gone: bool,
    environment: dict[str, str],
    folder: Path,
) -> None:
    assume((stdout, stderr) != ("closed", "both"))  # the shell: Bad file descriptor
    expected, answer = healthy(command, folder)
    code, written = run(command, stdin, stdout, stderr, gone, folder, **environment)
    # A full stdout is an error where something is written to it.
    fails = stdout == "full" and (answer or stderr == "both")
    assert code in ((2,) if fails and expected < 2 else (expected,)), "the exit code"
    if stdout in ("file", "slow") and answer and "PYTHONIOENCODING" not in environment:
        assert written, "the answer"
        assert b"Traceback" not in written
    if stdout in ("file", "slow") and "JSON" in command:
        assert json.loads(
            written.decode(environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0])
        )

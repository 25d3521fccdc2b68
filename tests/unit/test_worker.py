"""The parent's end of a worker, with processes without torch: what they write, start and leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bsfind.errors import InternalError, TargetError, TimeLimitError, WorkerError
from bsfind.records import ReportWarning
from bsfind.settings import DeviceChoice
from bsfind.worker import connection, processes
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

IDENTIFIED = '{"is": "identified", "uuid": "GPU-1", "id": request["id"]}'
START = f"""
import json, os, signal, subprocess, sys, time
from bsfind.worker.processes import supervise
supervise()
def daemon(run):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            run()
        os._exit(0)
def answers():
    for line in sys.stdin:
        request = json.loads(line)
        yield request, {IDENTIFIED}
def say(answer):
    os.write(1, json.dumps(answer).encode() + b"\\n")
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Start a process in place of a worker; `code` follows `START`."""
    workers: list[Worker] = []

    def start(code: str, **options: object) -> Worker:
        monkeypatch.setattr(connection, "_START", START + code)
        workers.append(Worker(**options))  # type: ignore[arg-type]
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def identify(worker: Worker, timeout_s: float = 20.0) -> str:
    return worker.identify(DeviceChoice(), timeout_s)


def worker_below(worker: Worker) -> int:
    supervisor = worker._process._process.pid
    (pid,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(pid)


SERVE = "for request, answer in answers(): say(answer)\n"


def test_questions_and_answers(started: Callable[..., Worker]) -> None:
    worker = started(SERVE)
    assert [identify(worker), identify(worker)] == ["GPU-1", "GPU-1"]
    assert worker.is_alive
    pids = [worker._process._process.pid, worker_below(worker)]
    assert all(map(processes.Process.of, pids))
    worker.kill()
    assert not worker.is_alive
    assert not any(map(processes.Process.of, pids))  # no zombie either
    worker.kill()


@pytest.mark.parametrize(
    "written",
    [
        "os.write(1, b'no JSON\\n'); say(answer)",
        "os.write(1, b'half a line'); say(answer)",
        "say([answer])",
        "say({'is': 'identified', 'uuid': 'forged'}); say(answer)",
        "say({**answer, 'id': 1}); say(answer)",
        "say({**answer, 'uuid': 7})",
        "say({**answer, 'uuid': None})",
        "say({'is': 'identified', 'id': request['id']})",
        "say({'id': request['id']})",
        "say({**answer, 'uuid': float('nan')})",
        "say({'is': 'failed', 'error': 'ExitCode', 'id': request['id']})",
        "say({'is': 'failed', 'error': 'UsageError', 'message': 1, 'id': request['id']})",
        "say({**answer, 'warnings': [{'code': 1}]})",
        "say({**answer, 'assumptions': 'none', 'output': None})",
        "os.write(1, b'[' * 100_000 + b'\\n')",
        "[say(answer) for _ in range(100)]; time.sleep(100)",
    ],
)
def test_what_is_no_answer_ends_the_worker(started: Callable[..., Worker], written: str) -> None:
    worker = started(f"for request, answer in answers(): {written}\n")

    def ask_twice() -> None:
        identify(worker)
        identify(worker)

    with pytest.raises(WorkerError, match="not its answer"):
        ask_twice()
    assert not worker.is_alive


def test_an_answer_that_comes_twice_is_not_taken_for_the_next(
    started: Callable[..., Worker],
) -> None:
    worker = started("for request, answer in answers(): say(answer); say(answer)\n")
    assert identify(worker) == "GPU-1"
    with pytest.raises(WorkerError, match="not its answer"):
        identify(worker)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os._exit(7)", "exited with status 7"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(100)", "killed by SIGKILL"),
        ("daemon(lambda: time.sleep(100)); os._exit(7)", "exited with status 7"),
        ("os.close(0); os.close(1); os._exit(7)", "exited with status 7"),
        ("print('a' * 70_000, end='', flush=True); os._exit(7)", "not its answer"),
    ],
)
def test_a_death_is_told_at_once_whoever_has_the_pipes(
    started: Callable[..., Worker], end: str, said: str
) -> None:
    worker = started(f"sys.stderr.write('last words\\n')\nfor _ in answers(): {end}\n")
    before = time.monotonic()
    with pytest.raises(WorkerError, match=said) as caught:
        identify(worker, 60.0)
    assert time.monotonic() - before < 10
    assert "last words" in caught.value.detail
    assert not worker.is_alive


HELPERS = {
    "session": "subprocess.Popen(['sleep', '100'], start_new_session=True)",
    "daemon": "daemon(lambda: time.sleep(100))",
    "stopped": "daemon(lambda: os.kill(os.getpid(), signal.SIGSTOP))",
    "deaf": "daemon(lambda: (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(100)))",
    "no environment": "daemon(lambda: os.execve('/bin/sleep', ['sleep', '100'], {}))",
    "of a daemon": "daemon(lambda: (daemon(lambda: time.sleep(100)), time.sleep(100)))",
    "without a supervisor": "daemon(lambda: os.execv('/bin/sleep', ['sleep', '100'])); time.sleep(0.3); "
    "os.kill(os.getppid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("helper", HELPERS)
def test_whatever_the_worker_started_is_ended(
    started: Callable[..., Worker], tmp_path: Path, helper: str
) -> None:
    code = (
        f"os.chdir({str(tmp_path)!r})\n"
        f"for request, answer in answers():\n    {HELPERS[helper]}\n    time.sleep(0.2)\n    say(answer)\n"
    )
    worker = started(code)
    if helper == "without a supervisor":
        with pytest.raises(WorkerError):
            identify(worker)
    else:
        identify(worker)
        assert running_in(tmp_path)
    before = time.monotonic()
    worker.kill()
    assert time.monotonic() - before < 4
    assert running_in(tmp_path) == []


def running_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (process / "cwd").readlink() == folder and processes.Process.of(int(process.name)):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_the_supervisor_ends_all_when_bsfind_is_gone(tmp_path: Path) -> None:
    code = START + f"os.chdir({str(tmp_path)!r})\n{HELPERS['deaf']}\nsay({{}})\ntime.sleep(100)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 10.0  # until the daemon has forked for the second time
    while len(running_in(tmp_path)) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.stdin.close()
    process.wait(timeout=20)
    process.stdout.close()
    assert running_in(tmp_path) == []


def test_what_cannot_be_ended_is_told(
    started: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[ReportWarning] = []
    worker = started(f"{HELPERS['session']}\n{SERVE}", on_warning=warnings.append)
    identify(worker)
    end = processes.end_all
    with monkeypatch.context() as patched:
        patched.setattr(processes, "_PATIENCE_S", 0.1)
        patched.setattr(connection, "KILL_GRACE_S", 0.1)
        patched.setattr(processes.os, "kill", lambda *_: None)
        worker.kill()
    assert [warning.code for warning in warnings] == ["processes_left"]
    assert "sleep (PID" in warnings[0].message
    assert (
        end(worker._process._process.pid, worker._process._mark) == []
    )  # the helper still has its mark


def test_what_is_killed_and_waits_for_a_cpu_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = subprocess.Popen(["sh", "-c", "while :; do :; done"], env={processes.MARK: "busy"})
    try:
        with monkeypatch.context() as patched:
            patched.setattr(processes, "_PATIENCE_S", 0.1)
            patched.setattr(processes.os, "kill", lambda *_: None)  # not yet acted on
            assert processes.end_all(os.getpid(), "busy") == []
        assert busy.poll() is None
    finally:
        busy.kill()
        busy.wait()


def test_other_processes_of_the_caller_stay(started: Callable[..., Worker]) -> None:
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    worker = started(SERVE)
    identify(worker)
    worker.kill()
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_worker_that_reads_nothing_costs_no_more_than_its_time(
    started: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = started("os.kill(os.getpid(), signal.SIGSTOP)\n")
    monkeypatch.setattr(DeviceChoice, "to_json", lambda _: "x" * 300_000)
    with pytest.raises(TimeLimitError, match="no answer after"):
        identify(worker, 0.5)


@pytest.mark.parametrize(
    ("error", "kind"), [("TargetError", TargetError), ("InternalError", InternalError)]
)
def test_errors_of_the_worker(
    started: Callable[..., Worker], error: str, kind: type[Exception]
) -> None:
    failed = f"{{'is': 'failed', 'error': '{error}', 'message': 'm', 'detail': 'd', 'hint': 'h'}}"
    worker = started(
        f"for request, answer in answers(): say({{**{failed}, 'id': request['id']}})\n"
    )
    with pytest.raises(kind, match="m"):
        identify(worker)


def test_much_output_costs_neither_time_nor_memory(started: Callable[..., Worker]) -> None:
    lines: list[str] = []
    code = (
        "for request, answer in answers():\n"
        "    for number in range(300_000): sys.stderr.write(f'line {number}\\n')\n"
        "    for _ in range(1000): sys.stderr.write('x' * 100_000)\n"
        "    say(answer)\n"
    )
    worker = started(code, on_output=lines.append)
    before = time.monotonic()
    assert identify(worker) == "GPU-1"
    assert time.monotonic() - before < 15
    worker.kill()
    assert lines[:2] == ["line 0", "line 1"]
    assert len(lines) < 10_000
    assert max(map(len, lines)) < 5000
    assert any("are left out here" in line for line in lines)


def test_a_spare_worker_that_has_died_is_replaced(
    started: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_START", START + SERVE)
    with WorkerPool(expected=3) as pool:
        identify(pool.take())
        pool.prepare()
        spare = pool._spare
        assert spare is not None
        identify(spare)
        os.kill(worker_below(spare), signal.SIGKILL)
        end = time.monotonic() + 10
        while spare.is_alive:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert identify(pool.take()) == "GPU-1"


def test_the_pipes_of_a_process_that_is_left_are_closed_when_it_ends(
    started: Callable[..., Worker], tmp_path: Path
) -> None:
    """It cannot be found: its supervisor is gone, and its environment is empty."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = open_files()
    worker = started(
        f"daemon(lambda: os.execve('/bin/cat', ['cat', {str(pipe)!r}], {{}}))\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(WorkerError):
        identify(worker)
    assert open_files() == before + 2
    with pipe.open("w"):
        pass
    end = time.monotonic() + 15
    while open_files() > before:
        assert time.monotonic() < end
        time.sleep(0.05)

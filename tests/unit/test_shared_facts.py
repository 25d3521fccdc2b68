"""The block of `bsfind env --share`, and the process that measures for it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from bsfind.cli import shared_facts
from bsfind.cli.shared_facts import block, measured

CARD = {
    "torch": "2.13.0+cu130",
    "driver": "580.1",
    "gpu": "NVIDIA X",
    "total_bytes": 8 << 30,
    "compute_capability": "8.6",
    "sm_count": 20,
    "modelled_bytes": 300 << 20,
    "module_loading": "lazy",
}


def ends(monkeypatch: pytest.MonkeyPatch, out: bytes, err: bytes = b"", code: int = 0) -> None:
    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(subprocess, "run", run)


def test_lines_of_libraries_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, b'NCCL INFO {}\n{"torch": "2.13.0"}\n{broken\n{"context_bytes": 5}\n')
    assert measured() == {"torch": "2.13.0", "context_bytes": 5}


def test_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, b"", b"Traceback\nModuleNotFoundError: No module named 'torch'\n", 1)
    assert measured() == {
        "missing": "the measurement ended with status 1: ModuleNotFoundError: No module named 'torch'"
    }


def test_it_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[bytes]:
        raise subprocess.TimeoutExpired(command, 180.0, output=b'{"torch": "2.13.0"}\n{"gp')

    monkeypatch.setattr(subprocess, "run", run)
    assert measured() == {
        "torch": "2.13.0",
        "missing": "the measurement took longer than 180 s",
    }


def test_no_process_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_facts.sys, "executable", "/nonexistent/python")
    assert measured()["missing"].startswith("the measurement did not start")


def test_what_is_missing_is_said() -> None:
    lines = list(block({"missing": "no usable GPU was found"}, "Linux"))
    assert lines[0] == "```text"
    assert lines[-1] == "```"
    assert "driver: not found, Linux" in lines
    assert "missing: no usable GPU was found" in lines


def test_nccl_is_what_comes_on_top() -> None:
    facts = {**CARD, "context_bytes": 100, "libraries_bytes": 150, "nccl_bytes": 650}
    lines = list(block(facts, "Linux"))
    assert "NCCL, a group of one rank: 500 B (500 bytes)" in lines
    facts = {**CARD, "context_bytes": 100, "libraries_bytes": 150, "nccl_error": "no NCCL"}
    assert "NCCL, a group of one rank: not measured: no NCCL" in list(block(facts, "Linux"))

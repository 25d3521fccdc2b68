"""A plugin of pytest that appends a JSON line for each test to the file that REAL_GPU_TESTS names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def _write(row: dict[str, Any]) -> None:
    # xdist's workers have the plugin too; its controller reports for all of them.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(os.environ["REAL_GPU_TESTS"]).open("a") as file:
            file.write(json.dumps(row) + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write how a test ended: its call, or what failed or was skipped before or after it."""
    if report.when == "call" or report.outcome != "passed":
        row: dict[str, Any] = {
            "test": report.nodeid,
            "outcome": report.outcome if report.when == "call" or report.skipped else "error",
            "seconds": round(report.duration, 1),
        }
        if report.failed:
            row["message"] = str(report.longreprtext)[-1200:]
        elif report.skipped:
            row["message"] = str(report.longrepr[-1])[:200] if report.longrepr else ""  # type: ignore[index]
        _write(row)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write which modules could not be collected."""
    if report.failed:
        _write(
            {"test": report.nodeid, "outcome": "error", "message": str(report.longreprtext)[-600:]}
        )

"""`make fuzz`: random logs, reports, settings and streams; FUZZ_SEED selects them, FUZZ_TIMES multiplies."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re

from hypothesis import HealthCheck, settings

import bsfind
from bsfind.errors import ExitCode

# Hypothesis draws constants of the modules that are loaded: always the same ones, those that need no torch.
for _part in ("cli", "explain", "report", "search"):
    _folder = f"{bsfind.__path__[0]}/{_part}"
    for _module in pkgutil.walk_packages([_folder], f"bsfind.{_part}."):
        importlib.import_module(_module.name)

_TIMES = float(os.environ.get("FUZZ_TIMES", "1"))

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def examples(count: int) -> settings:
    """Return the settings of a test that takes so many examples, each time the same for one seed."""
    return settings(
        deadline=None,
        database=None,
        print_blob=True,
        max_examples=max(1, round(count * _TIMES)),
        suppress_health_check=list(HealthCheck),
    )


def check_outcome(code: int, stdout: str, stderr: str, *, allowed: tuple[int, ...]) -> None:
    """Make sure that a command ended as documented, and showed nothing of what a terminal obeys."""
    assert ExitCode(code) in allowed, (code, stderr[-2000:])
    assert "Traceback" not in stderr
    assert _CONTROL.search(stdout + stderr) is None
    if code == ExitCode.USAGE:
        assert stdout == ""
        assert stderr.startswith("error: ") or "\nerror: " in stderr
        assert len(stderr) < 5000

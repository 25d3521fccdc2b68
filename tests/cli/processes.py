"""bsfind as a process of its own, on a machine without a GPU: its streams are pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jsonschema

from bsfind.report.json import schema

__all__ = ["MODELS", "ROOT", "bsfind", "document", "screen_and_report"]

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"


def bsfind(
    *arguments: object, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run bsfind in a folder, with environment variables beside those of this process."""
    return subprocess.run(
        [sys.executable, "-m", "bsfind", *map(str, arguments)],
        cwd=folder,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def document(*arguments: object, code: int = 0, **environment: str) -> dict[str, Any]:
    """Run bsfind with `--json`; returns the report, which the schema allows."""
    done = bsfind(*arguments, "--json", **environment)
    assert done.returncode == code, done.stderr
    return _report(done.stdout)


def screen_and_report(
    *arguments: object, code: int = 0, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run bsfind once; returns what it shows, and the report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        done = bsfind(*arguments, "--export", file, **environment)
        assert done.returncode == code, done.stderr
        return done, _report(file.read_text())


def _report(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(schema()).validate(found)
    return found

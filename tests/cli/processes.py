"""bsfind as a process of its own, on a machine without a GPU: its streams are pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["MODELS", "ROOT", "bsfind"]

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

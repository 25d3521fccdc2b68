"""A bsfind that stops at a chosen moment of its search until it may go on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.gpu.gpu import LIMIT, MODELS, Gpu, Result
from tests.gpu.processes import left_behind, wait_for

__all__ = ["UNPREDICTED", "VECTORS", "StagedSearch"]

UNPREDICTED = {"FAKE_GPU_NAME": "NVIDIA Unheard Of"}
"""A GPU that no prediction is made for: the search begins at a small batch size."""

VECTORS = ("--input-shape", "64", "--precision", "fp32")


class StagedSearch:
    """Runs `bsfind run` (or `check`) on a model of tests/models/staged.py.

    Args:
        gpu: where.
        moment: at which it stops: `loading`, `first trial`, `second trial` or `confirmation`.
        arguments: options beside the model and its input.
        command: `run`, or `check` with a batch size among the arguments.
        limit: of memory; None: none.
        fake: options of the fake GPU.
    """

    def __init__(
        self,
        gpu: Gpu,
        moment: str,
        *arguments: str,
        command: str = "run",
        limit: str | None = LIMIT,
        **fake: Any,
    ) -> None:
        self._announcement = Path(gpu.folder, "announcement")
        self._go = Path(gpu.folder, "go")
        self._locks = gpu.locks
        memory = () if limit is None else ("--memory-limit", limit)
        stage = {"ANNOUNCE": str(self._announcement), "GO": str(self._go), "STOP_AT": moment}
        self.process: subprocess.Popen[str] = gpu.start(
            [
                *("-m", "bsfind", command, f"{MODELS}/staged.py:Staged", *VECTORS, "--json"),
                *(*memory, *arguments),
            ],
            {**stage, **UNPREDICTED},
            **fake,
        )

    def __enter__(self) -> StagedSearch:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def reach(self) -> int:
        """Wait for the moment; return the PID of the worker."""
        wait_for(lambda: self._announcement.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()
        wait_for(lambda: self._announcement.read_text() != "")
        return int(self._announcement.read_text())

    def go_on(self) -> None:
        """Let it go on."""
        self._go.touch()

    def end(self) -> Result:
        """Wait for its end, and see that it leaves no process behind."""
        out, err = self.process.communicate(timeout=120)
        wait_for(lambda: not left_behind(f"BSFIND_LOCK_DIR={self._locks}"), seconds=10)
        return Result(self.process.returncode, out, err)

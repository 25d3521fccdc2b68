"""Runs `bsfind launch` on the scripts of `commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.gpu.gpu import Gpu, Result

COMMANDS = Path(__file__).parent / "commands"
SCRIPT = str(COMMANDS / "train.py")
MEMORY = {"memory": "1GiB"}
FEW = ("--max-batch-size", "6")
ONE = ("--max-batch-size", "1")
SIX = ("--min-batch-size", "6", "--max-batch-size", "6")
"""One size: a trial and its confirmation, each of which is a start of the command."""


class Launcher:
    """Runs `bsfind launch` on the script."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def command(self, kind: str, *more: str) -> list[str]:
        return [self.gpu.python, SCRIPT, "--kind", kind, "--batch-size", "{batch_size}", *more]

    def __call__(self, kind: str, *more: str, options: tuple[str, ...] = (), **fake: Any) -> Result:
        command = self.command(kind, *more)
        fake = {**MEMORY, **fake} if self.gpu.is_fake else fake
        return self.gpu.bsfind(
            *("launch", "--json", "--memory-limit", "600MiB", *options, "--"), *command, **fake
        )

    def trains(self, batch_size: int, limit_bytes: int) -> bool:
        """Whether the script makes its steps with a batch size, without bsfind."""
        code = (
            "import sys, runpy, torch\n"
            f"sys.argv = ['train.py', '--batch-size', '{batch_size}', '--epochs', '1']\n"
            "total = torch.cuda.get_device_properties(0).total_memory\n"
            f"torch.cuda.set_per_process_memory_fraction({limit_bytes} / total)\n"
            f"runpy.run_path({SCRIPT!r})\n"
        )
        done = self.gpu.python_code(code, **(MEMORY if self.gpu.is_fake else {}))
        assert done.code == 0 or "OutOfMemoryError" in done.err, done.err
        return done.code == 0


class Ranks:
    """Runs `bsfind launch` on the script of several ranks: two, each on a GPU of its own."""

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    script = (str(COMMANDS / "train_ranks.py"), "--batch-size", "{batch_size}")

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    @property
    def mark(self) -> str:
        """The variable that all processes of a test have, and no others."""
        return f"BSFIND_LOCK_DIR={self.gpu.locks}"

    def command(self, kind: str, *, spawn: bool = False) -> list[str]:
        script = (*self.script, "--kind", kind, *(("--spawn", "2") if spawn else ()))
        return [self.gpu.python, *(() if spawn else self.torchrun), *script]

    def on_two_machines(self, kind: str, *options: str) -> Result:
        """Run a launcher that starts one rank on each of two machines."""
        start = (self.gpu.python, str(COMMANDS / "two_machines.py"))
        command = (*start, *self.script, "--kind", kind)
        return self.gpu.bsfind("launch", "--json", *options, "--", *command, **self.fake())

    def fake(self, memory: str = "1GiB") -> dict[str, Any]:
        return {"gpu": "rtx3090,rtx3090", "memory": memory, "nccl_memory": "64MiB"}

    def __call__(
        self, kind: str, *options: str, spawn: bool = False, memory: str = "1GiB", **fake: Any
    ) -> Result:
        """Run it to its end."""
        command = self.command(kind, spawn=spawn)
        return self.gpu.bsfind(
            "launch", "--json", *options, "--", *command, **self.fake(memory), **fake
        )

"""`bsfind gpus`: the GPUs of this machine, as the driver sees them."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from bsfind.cli.console import Terminal
from bsfind.devices import nvml
from bsfind.errors import NoDeviceError
from bsfind.exit_codes import ExitCode
from bsfind.units import format_bytes

__all__ = ["gpus"]


def gpus(
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> int:
    """List the GPUs of this machine, and who uses them."""
    found = nvml.list_gpus()
    if json:
        sys.stdout.write(json_format.dumps([asdict(gpu) for gpu in found], indent=2) + "\n")
        return ExitCode.OK
    if not found:
        raise NoDeviceError(
            "the NVIDIA driver shows no GPU",
            hint="`nvidia-smi` should list it; in a container, start it with GPU access",
        )
    terminal = Terminal()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("index", "name", "compute capability", "memory", "free", "used by"):
        right = header in ("index", "memory", "free")
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    for gpu in found:
        users = [
            f"{process.name or 'a process'} ({process.pid}): {format_bytes(process.used_bytes)}"
            for process in gpu.processes
        ]
        table.add_row(
            str(gpu.index),
            gpu.name,
            gpu.compute_capability or "-",
            format_bytes(gpu.total_bytes),
            format_bytes(gpu.free_bytes),
            "\n".join(users) or "-",
        )
    terminal.out.print(table)
    return ExitCode.OK

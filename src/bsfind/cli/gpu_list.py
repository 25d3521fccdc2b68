"""The list that `bsfind gpus` prints."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from rich import box
from rich.table import Table

from bsfind.cli.console import Terminal
from bsfind.devices import nvml
from bsfind.errors import NoDeviceError
from bsfind.exit_codes import ExitCode
from bsfind.report.width import fits
from bsfind.units import format_bytes

__all__ = ["print_gpus"]


def print_gpus(*, as_json: bool) -> int:
    """Print the GPUs of this machine; returns the exit code.

    Raises:
        NoDeviceError: the driver shows none (not for JSON, where the list is empty).
    """
    found = nvml.list_gpus()
    if as_json:
        sys.stdout.write(json.dumps([asdict(gpu) for gpu in found], indent=2) + "\n")
        return ExitCode.OK
    if not found:
        raise NoDeviceError(
            "the NVIDIA driver shows no GPU",
            hint="`nvidia-smi` should list it; in a container, start it with GPU access",
        )
    console = Terminal().out
    table = _table(found)
    if fits(table, console):
        console.print(table)
    else:
        for gpu in found:
            console.print(_lines(gpu), soft_wrap=True)
    return ExitCode.OK


def _users(gpu: nvml.Gpu) -> list[str]:
    return [
        f"{process.name or 'a process'} ({process.pid}): {format_bytes(process.used_bytes)}"
        for process in gpu.processes
        if process.pid != os.getpid()
    ]


def _lines(gpu: nvml.Gpu) -> str:
    memory = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
    users = "".join(f"\n   {user}" for user in _users(gpu))
    return f"{gpu.index}  {gpu.name}\n   {memory}{users}"


def _table(gpus: list[nvml.Gpu]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("index", "name", "compute\ncapability", "memory", "free", "used by"):
        right = header in ("index", "memory", "free")
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    for gpu in gpus:
        table.add_row(
            str(gpu.index),
            gpu.name,
            gpu.compute_capability or "-",
            format_bytes(gpu.total_bytes),
            format_bytes(gpu.free_bytes),
            "\n".join(_users(gpu)) or "-",
        )
    return table

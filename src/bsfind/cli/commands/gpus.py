"""`bsfind gpus`: the GPUs of this machine, as the driver sees them, and those that bsfind knows."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bsfind.errors import ExitCode
from bsfind.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bsfind.devices import nvml
    from bsfind.records import GpuProcess
    from bsfind.simulation.gpus.catalogue import CatalogueGpu


def gpus(
    json: Annotated[bool, typer.Option("--json", help="Print the lists as JSON.")] = False,
) -> int:
    """List this machine's GPUs, and the known ones.

    It also lists the processes that use the GPUs of this machine. For the known ones, `bsfind run`
    and `bsfind check` can predict: pass their name with `--gpu`.

    The memory is what PyTorch sees on Linux; ~ marks an estimate.
    """
    from bsfind.cli.console import Terminal
    from bsfind.devices import nvml
    from bsfind.report.json import dumps
    from bsfind.simulation.gpus.catalogue import known_gpus

    real, known = nvml.list_gpus(), known_gpus()
    if json:
        document = {
            "gpus": [asdict(gpu) for gpu in real],
            "known": [_known_facts(gpu) for gpu in known],
        }
        sys.stdout.write(dumps(document))
        return ExitCode.OK
    terminal = Terminal()
    if real:
        _print(terminal.out, [_table(real)], [_lines(gpu) for gpu in real])
        terminal.out.print()
    else:
        terminal.note("The NVIDIA driver shows no GPU on this machine; these are the known ones.")
        terminal.hint(
            "if it has one, `nvidia-smi` lists it; in a container, start it with GPU access"
        )
    tables = [_known_table(known, with_keys=True), _known_table(known, with_keys=False)]
    _print(terminal.out, tables, [_known_lines(gpu) for gpu in known])
    terminal.hint("`bsfind run … --gpu rtx-4090` predicts for one of the known GPUs")
    return ExitCode.OK


def _print(console: Console, tables: list[Table], otherwise: list[str]) -> None:
    """Print the first table that fits, or the lines."""
    from bsfind.report.width import fits

    for table in tables:
        if fits(table, console):
            console.print(table)
            return
    for lines in otherwise:
        console.print(lines, soft_wrap=True)


def _new_table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _users(gpu: nvml.Gpu) -> list[str]:
    return [_user(process) for process in gpu.processes if process.pid != os.getpid()]


def _user(process: GpuProcess) -> str:
    from bsfind.report.visible import visible

    name = visible(process.name or "a process")
    return f"{name} ({process.pid}): {format_bytes(process.used_bytes)}"


def _lines(gpu: nvml.Gpu) -> str:
    memory = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
    users = "".join(f"\n   {user}" for user in _users(gpu))
    return f"{gpu.index}  {gpu.name}\n   {memory}{users}"


def _table(gpus: list[nvml.Gpu]) -> Table:
    table = _new_table()
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


def _known_facts(gpu: CatalogueGpu) -> dict[str, object]:
    facts = asdict(gpu)
    del facts["generic"]  # none of the known ones is
    return facts


def _known_memory(gpu: CatalogueGpu) -> str:
    estimated = "~" if "total_bytes" in gpu.estimated else ""
    return f"{estimated}{format_bytes(gpu.total_bytes)}"


def _known_lines(gpu: CatalogueGpu) -> str:
    return f"{gpu.name}\n   {gpu.key}, {_known_memory(gpu)}, capability {gpu.compute_capability}"


def _known_table(gpus: tuple[CatalogueGpu, ...], *, with_keys: bool) -> Table:
    table = _new_table()
    table.add_column("known GPU", no_wrap=True)
    table.add_column("compute\ncapability", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    if with_keys:
        table.add_column("short name", no_wrap=True)
    for gpu in gpus:
        cells = [gpu.name, gpu.compute_capability, _known_memory(gpu)]
        table.add_row(*cells, *([gpu.key] if with_keys else []))
    return table

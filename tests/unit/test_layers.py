"""Who may import whom, as one table; read from the source, nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "src"

# Parts of bsfind that say what was asked for and what was found: everything may import them.
LEAVES = (
    "errors units inputs settings parallel option_fields records results trial import_path "
    "simulation.gpus.catalogue"
)

# Each part of bsfind (a package, or a module that differs from its package), and what it may import besides
# itself: parts of bsfind, and packages of others. What is not in the table may be imported by all.
LAYERS = {
    "": "",  # bsfind/__init__.py: the version
    "errors": "",
    "units": "",
    "inputs": "errors import_path units",
    "demo": "torch",
    "batches": "errors torch",
    "import_path": "errors units",
    "simulation.gpus.catalogue": "errors units",
    "option_types": "import_path inputs simulation.gpus.catalogue units",
    "parallel": "import_path option_types units",
    "settings": "inputs option_types parallel units",
    "option_fields": "inputs option_types parallel settings",
    "trial": "",
    "records": "errors units",
    "results": "records trial",
    "failures": LEAVES,
    # In the worker's process: torch is imported here, and only here.
    "workload": f"{LEAVES} failures torch numpy",
    "simulation": LEAVES,
    "simulation.kernels": f"{LEAVES} workload simulation simulation.trace torch",
    "simulation.trace": f"{LEAVES} failures workload simulation simulation.kernels torch",
    "devices": f"{LEAVES} failures workload devices.nvml simulation simulation.kernels "
    "simulation.trace torch",
    "devices.nvml": f"{LEAVES} pynvml",
    "inspect.inspection": "records",
    "inspect.attribution": f"{LEAVES} devices inspect.inspection inspect.compose simulation.trace "
    "workload torch",
    "inspect.compose": f"{LEAVES} inspect.inspection simulation",
    "worker.loop": f"{LEAVES} worker workload devices inspect.attribution simulation.trace",
    # In the process of the command: no torch, not even lazily.
    "worker": f"{LEAVES} failures inspect.inspection simulation",
    "search": f"{LEAVES} failures worker launch simulation",
    "launch": f"{LEAVES} failures worker simulation",
    # In the processes of a launched command, where there may be no bsfind.
    "launch.probe": "torch devices",
    "report": f"{LEAVES} search simulation inspect.inspection matplotlib rich",
    "inspect": f"{LEAVES} inspect.inspection search worker report rich",
    "explain": f"{LEAVES} failures report rich",
    "cli": f"{LEAVES} option_types search report inspect inspect.inspection explain worker "
    "devices.nvml rich typer",
    # The library works without the command line, and without what only that needs.
    "python": "errors import_path results report",
    "api": f"{LEAVES} option_types python search worker",
    "__main__": "cli",
}
OTHERS = {"torch", "numpy", "pynvml", "matplotlib", "lightning", "pytorch_lightning"}
OTHERS |= {"typer", "rich", "click"}
NOT_AT_START = {"torch", "numpy", "pynvml", "matplotlib", "rich"}


class Import(NamedTuple):
    """One import: who, what, where, and whether it happens when the importing module is loaded."""

    importer: str
    imported: str
    line: int
    at_load: bool


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted((SOURCE / "bsfind").rglob("*.py"))}


def part_of(module: str) -> str:
    """Return the row of the table that a module belongs to, or the package of others that it is of."""
    name, _, rest = module.partition(".")
    if name != "bsfind":
        return name
    while rest and rest not in LAYERS:
        if "." not in rest:
            raise KeyError(f"{module} is in no row of the table")
        rest = rest.rpartition(".")[0]
    return rest


def imports_in(module: str, node: ast.AST, *, at_load: bool = True) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, at_load)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}:{child.lineno}: a relative import"
            assert child.module is not None
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                target = name if name in MODULES else child.module
                yield Import(module, target, child.lineno, at_load)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_in(module, child, at_load=at_load and not lazy)


IMPORTS = [
    found
    for module, file in MODULES.items()
    for found in imports_in(module, ast.parse(file.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("part", LAYERS)
def test_layers(part: str) -> None:
    mine = [found for found in IMPORTS if part_of(found.importer) == part]
    allowed = {*LAYERS[part].split(), part, ""}
    wrong = [
        f"{found.importer}:{found.line} imports {found.imported}"
        for found in mine
        if part_of(found.imported) not in allowed
        and (found.imported.startswith("bsfind") or part_of(found.imported) in OTHERS)
    ]
    assert wrong == []


def loaded_with(*modules: str, lazily: bool = False) -> set[str]:
    """Return the modules of bsfind and of others that loading some of them loads."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        # A package is loaded before what is in it.
        parts = waiting.pop().split(".")
        names = {".".join(parts[: i + 1]) for i in range(len(parts))} - seen
        seen |= names
        waiting += [
            found.imported
            for found in IMPORTS
            if found.importer in names and (found.at_load or lazily)
        ]
    return seen


def parts_loaded_with(*modules: str, lazily: bool = False) -> set[str]:
    return {part_of(module) for module in loaded_with(*modules, lazily=lazily)}


def test_help_loads_nothing_of_a_search() -> None:
    loaded = loaded_with("bsfind.cli.main")
    assert "bsfind.cli.options" in loaded
    parts = {part_of(module) for module in loaded}
    assert not parts & {"search", "worker", "devices", "workload", "simulation"}
    assert not parts & NOT_AT_START


def test_the_process_of_the_command_never_loads_torch() -> None:
    """Not even lazily: what the commands import inside functions counts as well."""
    commands = [module for module in MODULES if part_of(module) in ("__main__", "api", "cli")]
    parts = parts_loaded_with(*commands, lazily=True)
    assert {"search", "worker"} <= parts
    assert not parts & {"torch", "worker.loop", "simulation.trace", "simulation.kernels"}


def test_a_worker_loads_torch_with_the_device_only() -> None:
    assert "torch" not in parts_loaded_with("bsfind.worker.loop")
    assert "torch" in parts_loaded_with("bsfind.devices.cuda")

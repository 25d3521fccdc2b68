"""Who may import whom: read from the source, nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = SOURCE / "bsfind"

HEAVY = {"torch", "numpy", "pynvml", "matplotlib", "lightning", "pytorch_lightning"}

# Each package of bsfind, and the packages that it may import (itself is understood).
# LEAVES say what was asked for and what was found; everything may know them.
LEAVES = {"errors", "units", "inputs", "settings", "records", "import_path", "time_budget"}
LAYERS = {
    "errors": set(),
    "units": set(),
    "inputs": set(),
    "import_path": {"errors"},
    "settings": {"errors", "inputs", "units"},
    "records": {"errors", "units"},
    "time_budget": {"errors", "units"},
    "failures": LEAVES,
    "workload": {*LEAVES, "failures"},
    "simulation": {*LEAVES, "failures", "workload"},
    "devices": {*LEAVES, "failures", "simulation", "workload"},
    # `inspect` has a record, a part in the worker (attribution), and a part in the parent.
    "inspect.records": {"records"},
    "inspect.attribution": {*LEAVES, "devices", "inspect.records", "simulation"},
    "worker": {
        *LEAVES,
        "devices",
        "failures",
        "inspect.records",
        "inspect.attribution",
        "simulation",
    },
    "search": {*LEAVES, "failures", "simulation", "worker"},
    "report": {*LEAVES, "search", "simulation", "inspect.records"},
    "inspect": {*LEAVES, "inspect.records", "report", "search", "worker"},
    "explain": {*LEAVES, "failures", "report"},
    "cli": {
        *(*LEAVES, "devices", "explain", "inspect", "inspect.records", "report", "search"),
        *("simulation", "worker"),
    },
    "api": {*LEAVES, "cli", "report", "search"},
    "demo": set(),
    "__main__": {"cli"},
}


# The part of `inspect` that runs in the worker, which loads it when it is asked to inspect.
INSPECTING = {f"bsfind.inspect.{name}" for name in ("attribution", "compose")}


@dataclass(frozen=True)
class Import:
    """One import: who, what, and whether it happens when the importing module is loaded."""

    importer: str
    imported: str
    line: int
    at_load: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    """Return the part of bsfind that a module belongs to: a package, or a module of its own."""
    if module == "bsfind.inspect.records":
        return "inspect.records"
    if module in INSPECTING:
        return "inspect.attribution"
    return module.split(".")[1] if "." in module else ""


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


# The parts of the simulation that need torch, in the worker alone; the rest is pure.
TRACED = ("bsfind.simulation.trace", "bsfind.simulation.kernels")


def is_traced(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in TRACED)


def named(imports: list[Import]) -> list[str]:
    return [str(found) for found in imports]


def test_there_is_something_to_look_at() -> None:
    assert "bsfind.cli.main" in MODULES
    assert len(IMPORTS) > 100
    assert {part_of(module) for module in MODULES} - {""} <= set(LAYERS)


@pytest.mark.parametrize("part", LAYERS)
def test_layers(part: str) -> None:
    allowed = LAYERS[part] | {part, ""}  # "": the version in bsfind/__init__.py
    wrong = [
        found
        for found in IMPORTS
        if part_of(found.importer) == part
        and found.imported.split(".")[0] == "bsfind"
        and part_of(found.imported) not in allowed
    ]
    assert named(wrong) == []


def test_the_layers_have_no_cycle() -> None:
    done: set[str] = set()
    while rest := [part for part in LAYERS if part not in done]:
        ready = [part for part in rest if LAYERS[part] <= done]
        assert ready, f"a cycle among {rest}"
        done.update(ready)


def test_heavy_packages_belong_to_the_workers_side() -> None:
    wrong = [
        found
        for found in IMPORTS
        if found.imported.split(".")[0] in HEAVY
        and part_of(found.importer) not in ("workload", "devices", "demo", "inspect.attribution")
        and found.importer != "bsfind.report.plot"  # lazily, see below
        and not is_traced(found.importer)
    ]
    assert named(wrong) == []


def test_the_pure_part_of_the_simulation_knows_nothing_of_the_tracer() -> None:
    wrong = [
        found
        for found in IMPORTS
        if part_of(found.importer) == "simulation"
        and not is_traced(found.importer)
        and (is_traced(found.imported) or part_of(found.imported) == "workload")
    ]
    assert named(wrong) == []
    assert "bsfind.simulation.kernels.call" in MODULES


def test_the_tracer_belongs_to_the_simulated_device_and_the_workers_loop() -> None:
    wrong = [
        found
        for found in IMPORTS
        if is_traced(found.imported)
        and not is_traced(found.importer)
        and found.importer
        not in (
            *("bsfind.devices.simulated", "bsfind.devices.prediction_limits"),
            "bsfind.worker.loop",
        )
        and part_of(found.importer) != "inspect.attribution"
    ]
    assert named(wrong) == []


def test_pynvml_waits_until_it_is_asked_for() -> None:
    users = [found for found in IMPORTS if found.imported.split(".")[0] == "pynvml"]
    assert users
    assert named([found for found in users if found.at_load]) == []


def test_the_terminal_belongs_to_the_command_line_and_the_table() -> None:
    wrong = [
        found
        for found in IMPORTS
        if found.imported.split(".")[0] in ("typer", "rich", "click")
        and part_of(found.importer) != "cli"
        and found.importer
        not in (
            *("bsfind.report.table", "bsfind.report.width"),
            "bsfind.inspect.render",
            "bsfind.explain.render",
            *("bsfind.report.terminal_plot", "bsfind.report.diff"),
        )
    ]
    assert named(wrong) == []
    assert not [
        found
        for found in IMPORTS
        if found.imported.split(".")[0] == "typer" and part_of(found.importer) == "report"
    ]


def test_of_the_devices_the_command_line_knows_the_driver_alone() -> None:
    wrong = [
        found
        for found in IMPORTS
        if part_of(found.importer) == "cli"
        and part_of(found.imported) == "devices"
        and found.imported != "bsfind.devices.nvml"
    ]
    assert named(wrong) == []


def test_of_the_simulation_the_command_line_knows_the_catalogue_alone() -> None:
    wrong = [
        found
        for found in IMPORTS
        if part_of(found.importer) == "cli"
        and part_of(found.imported) == "simulation"
        and found.imported != "bsfind.simulation.gpus.catalogue"
    ]
    assert named(wrong) == []


def loaded_with(*modules: str) -> set[str]:
    """Return the modules of bsfind and the packages that loading some of them loads."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        # A package is loaded before what is in it.
        parts = module.split(".")
        names = {".".join(parts[: i + 1]) for i in range(len(parts))} - seen
        seen |= names
        waiting += [
            found.imported for found in IMPORTS if found.importer in names and found.at_load
        ]
    return seen


def test_help_loads_nothing_of_a_search() -> None:
    loaded = loaded_with("bsfind.cli.main")
    assert "bsfind.cli.options" in loaded
    loaded -= {"bsfind.search", "bsfind.search.variants"}  # the names that `--compare` takes
    assert not {part_of(m) for m in loaded if m.startswith("bsfind")} & {
        *("worker", "workload", "devices", "simulation", "search"),
    }
    assert not {m.split(".")[0] for m in loaded} & (HEAVY | {"rich"})


def test_the_parent_never_loads_torch() -> None:
    """Not even lazily: what the commands import inside functions counts as well."""
    lazily = [found.imported for found in IMPORTS if part_of(found.importer) == "cli"]
    loaded = loaded_with("bsfind.cli.main", *lazily)
    assert "bsfind.search.finder" in loaded
    assert "bsfind.worker.client" in loaded
    assert not {m.split(".")[0] for m in loaded} & HEAVY
    assert not loaded & {"bsfind.devices.cuda", "bsfind.devices.simulated"}
    assert not [module for module in loaded if is_traced(module)]
    assert "bsfind.worker.loop" not in loaded


def test_a_worker_loads_torch_with_the_device_only() -> None:
    assert not {m.split(".")[0] for m in loaded_with("bsfind.worker.loop")} & HEAVY
    assert "torch" in loaded_with("bsfind.devices.cuda")

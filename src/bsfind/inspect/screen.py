"""Prints the report of `bsfind inspect`: memory by category, moment and module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsfind.inspect.inspection import (
    CATEGORIES,
    Composition,
    InspectionReport,
    ModuleShare,
    PrecisionInspection,
)
from bsfind.report.visible import visible
from bsfind.report.width import excess, fits, print_sentence
from bsfind.report.wording import assumed, model_name, percentage, precision, trained_loss
from bsfind.units import format_bytes, format_parameters

_TITLES = {
    "parameters": "parameters, buffers",
    "sharded_parameters": "sharded parameters",
    "unsharded_parameters": "unsharded parameters",
    "gradients": "gradients",
    "unsharded_gradients": "unsharded gradients",
    "gradient_buckets": "gradient buckets",
    "optimizer_state": "optimizer state",
    "activations": "activations",
    "outputs": "outputs",
    "weight_casts": "autocast's weights",
    "inputs": "inputs, targets",
    "temporaries": "temporaries",
    "all_gather_buffers": "all-gather buffers",
    "reduce_scatter_buffers": "reduce-scatter buffers",
    "workspace": "workspace",
    "kept": "kept otherwise",
}
_MOMENTS = {
    "forward_end": "forward end",
    "peak": "peak",
    "failure": "failure",
    "step_end": "step end",
}
_PHASES = {
    "load": "while the model is loaded",
    "setup": "between steps",
    "inputs": "making the batch",
    "forward": "forward",
    "recompute": "recomputing activations",
    "backward": "backward",
    "optimizer": "optimizer step",
}
_NOTHING = "–"
_STATE = {
    "parameters": ("parameters", "sharded_parameters", "unsharded_parameters"),
    "gradients": ("gradients", "unsharded_gradients"),
    "optimizer": ("optimizer_state",),
}
"""The categories in a column of the table of modules."""

_LAYOUTS = (
    ("total", "parameters", "gradients", "optimizer", "activations", "other", "class"),
    ("total", "parameters", "gradients", "optimizer", "activations", "other"),
    ("total", "state", "activations", "other"),
    ("total", "state", "activations"),
    ("total",),
)
"""Columns of the table of modules, from wide to narrow: columns are left out, numbers are never cut."""

_COLUMN_TITLES = {"optimizer": "opt. state", "state": "par., grad.,\nopt. state"}
_SHORTEST_PATH = 18


def print_inspection(report: InspectionReport, console: Console, *, top: int) -> None:
    """Print the report in the width of the console.

    Args:
        report: the report.
        console: the console to print to.
        top: number of modules that are listed; 0: all.
    """
    print_sentence(console, _subject(report), style="bold")
    for text in _conditions(report):
        print_sentence(console, text, style="dim")
    for result in report.results:
        console.print()
        print_sentence(console, f"{precision(result)}: {_verdict(result, report)}", _style(result))
        if result.composition is None:
            continue
        console.print()
        _print_first_that_fits(_categories(result.composition, report), console)
        console.print()
        _print_first_that_fits(_modules(result.composition, top, console), console)


def _style(result: PrecisionInspection) -> str:
    return {"fits": "green", "unsupported": "yellow"}.get(result.status, "red")


def _subject(report: InspectionReport) -> str:
    known = next((result for result in report.results if result.parameters is not None), None)
    parts = [model_name(report.workload, report.class_name)]
    if known is not None and known.parameters is not None:
        parts.append(f"{format_parameters(known.parameters)} parameters")
        if known.optimizer is not None:
            parts.append(known.optimizer)
    loss = trained_loss(report.workload, report.assumptions)
    if loss is not None:
        parts.append(loss)
    parts.append("training" if report.workload["mode"] == "train" else "inference")
    device = report.device
    memory = f"{format_bytes(device.total_bytes)}"
    if device.capacity_bytes != device.free_bytes:
        memory += f" (limited to {format_bytes(device.capacity_bytes)})"
    parts.append(f"simulated {device.name}, {memory}")
    return " · ".join(parts)


def _conditions(report: InspectionReport) -> Iterator[str]:
    if report.stands_for is not None:
        yield f"Simulated, not measured: it stands for the {report.stands_for} of this machine."
    version = (report.device.torch_version or "").partition("+")[0]
    steps = f"{report.steps} step{'s' if report.steps > 1 else ''}"
    device = report.device
    parts = [f"{steps}, traced", f"torch {version}"]
    parts.append(f"context {format_bytes(device.context_bytes)} ({device.context_source})")
    if device.nccl_bytes is not None:
        parts.append(f"NCCL {format_bytes(device.nccl_bytes)} ({device.nccl_source})")
    yield " · ".join(parts)
    text = assumed(report.assumptions)
    if text is not None:
        yield text


def _verdict(result: PrecisionInspection, report: InspectionReport) -> str:
    size = f"batch size {report.batch_size:,}"
    found = result.composition
    if found is None:
        return f"{size} was not tried: {result.message}"
    where = f"in {_place(found)}" if found.step else _PHASES["load"]
    if found.failed is None:
        return f"{size} fits. The peak of {format_bytes(found.allocated_bytes)} is {where}."
    what = _TITLES[found.failed.category]
    return (
        f"{size} does not fit. There was no room for {format_bytes(found.failed.tried_bytes)} "
        f"({what}) {where}."
    )


def _place(found: Composition) -> str:
    parts = [f"step {found.step}", _PHASES.get(found.phase, found.phase)]
    if found.module is not None:
        parts.append(f"`{found.module}`" if found.module else "the model's own code")
    operator = found.operator.removeprefix("aten::")
    return ", ".join(parts) + (f" ({operator})" if operator else "")


# ------------------------------------------------------------------------------- the categories


def _categories(found: Composition, report: InspectionReport) -> Iterator[Table]:
    """Yield tables of the categories, from wide to narrow."""
    moments = found.timeline
    main = "peak" if found.failed is None else "failure"
    others = [moment for moment in moments if moment.at != main]
    for count in range(len(others), -1, -1):
        table = _new_table()
        table.add_column("", no_wrap=True)
        table.add_column(f"at the {main}", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        for moment in others[:count]:
            table.add_column(_MOMENTS[moment.at], justify="right", no_wrap=True)
        for category in CATEGORIES:
            if not any(moment.categories.get(category) for moment in moments):
                continue
            nbytes = found.categories.get(category, 0)
            share = nbytes / found.allocated_bytes if found.allocated_bytes else 0.0
            table.add_row(
                _TITLES[category],
                _size(nbytes),
                percentage(share) if nbytes else _NOTHING,
                *(_size(moment.categories.get(category, 0)) for moment in others[:count]),
            )
        table.add_row(
            "allocated",
            format_bytes(found.allocated_bytes),
            "100%",
            *(format_bytes(moment.allocated_bytes) for moment in others[:count]),
            style="bold",
        )
        outside = {
            "CUDA context": report.device.context_bytes,
            "NCCL": report.device.nccl_bytes,
        }
        left = report.device.capacity_bytes - found.reserved_bytes
        table.add_row("cache, fragments", format_bytes(found.cache_bytes), style="dim")
        for what, nbytes_outside in outside.items():
            if nbytes_outside is not None:
                table.add_row(what, format_bytes(nbytes_outside), style="dim")
        table.add_row("left", format_bytes(max(0, left)), style="dim")
        yield table


def _size(nbytes: int) -> str:
    return format_bytes(nbytes) if nbytes else _NOTHING


# ---------------------------------------------------------------------------------- the modules


def _modules(found: Composition, top: int, console: Console) -> Iterator[Table]:
    """Yield tables of the modules, from wide to narrow: first paths are shortened, then columns left out."""
    modules = [share for share in found.modules if share.path is not None]
    outside = [share for share in found.modules if share.path is None]
    listed, rest = modules[: top or None], modules[top:] if top else []
    shares = (listed, rest, outside)
    names = [_name(share) for share in listed]
    longest = max(map(len, names), default=0)
    for columns in _LAYOUTS:
        table = _module_table(names, *shares, columns)
        yield table
        width = longest - excess(table, console)
        if width >= _SHORTEST_PATH:
            shortened = [_shortened(name, width) for name in names]
            yield _module_table(shortened, *shares, columns)


def _module_table(
    names: Sequence[str],
    listed: Sequence[ModuleShare],
    rest: Sequence[ModuleShare],
    outside: Sequence[ModuleShare],
    columns: Sequence[str],
) -> Table:
    table = _new_table()
    table.add_column("module", no_wrap=True)
    for column in columns:
        justify = "left" if column == "class" else "right"
        table.add_column(_COLUMN_TITLES.get(column, column), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, share in zip(names, listed, strict=True):
        table.add_row(name, *_cells(share.categories, visible(share.class_name or ""), columns))
    if rest:
        title = f"{len(rest)} other{'s' if len(rest) > 1 else ''}"
        table.add_row(title, *_cells(_sum(rest), "", columns), style="dim")
    if outside:
        table.add_row("outside the model", *_cells(_sum(outside), "", columns), style="dim")
    everything = _sum((*listed, *rest, *outside))
    table.add_row("allocated", *_cells(everything, "", columns), style="bold")
    return table


def _cells(categories: Mapping[str, int], class_name: str, columns: Sequence[str]) -> Iterator[str]:
    sizes = {
        column: sum(categories.get(name, 0) for name in names) for column, names in _STATE.items()
    }
    sizes["state"] = sum(sizes.values())
    sizes["activations"] = sum(categories.get(name, 0) for name in ("activations", "outputs"))
    sizes["total"] = sum(categories.values())
    sizes["other"] = sizes["total"] - sizes["state"] - sizes["activations"]
    for column in columns:
        yield class_name if column == "class" else _size(sizes[column])


def _sum(shares: Sequence[ModuleShare]) -> Mapping[str, int]:
    sums: Counter[str] = Counter()
    for share in shares:
        sums.update(share.categories)
    return sums


def _name(share: ModuleShare) -> str:
    return visible(share.path or "the model itself")


def _shortened(name: str, width: int) -> str:
    """Cut the beginning of a path, whose end is the more specific part."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


# --------------------------------------------------------------------------------------- tables


def _new_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))


def _print_first_that_fits(tables: Iterator[Table], console: Console) -> None:
    last = None
    for table in tables:
        if fits(table, console):
            console.print(table)
            return
        last = table
    if last is not None:  # narrower than any table: wrapped, not cut
        for row in zip(*(column.cells for column in last.columns), strict=True):
            console.print(Text("  ".join(str(cell) for cell in row if cell)), soft_wrap=True)

"""The screen of `bsfind explain`: what holds the GPU's memory, the cause, what to do."""

from __future__ import annotations

from itertools import accumulate

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsfind.explain.breakdown import Breakdown
from bsfind.explain.cause import CauseKind
from bsfind.explain.explanation import Error, Explanation
from bsfind.explain.texts import Kind
from bsfind.report.visible import visible
from bsfind.report.width import fits, is_utf8, print_sentence
from bsfind.units import format_bytes

_TITLES = {
    Kind.CUDA_OOM: "CUDA out of memory",
    Kind.HIP_OOM: "HIP out of memory",
    Kind.XPU_OOM: "XPU out of memory",
    Kind.MPS_OOM: "MPS out of memory",
    Kind.CPU_OOM: "The host's memory ran out",
    Kind.CUDNN_ALLOC: "cuDNN could not allocate memory",
    Kind.CUBLAS_ALLOC: "cuBLAS could not allocate memory",
    Kind.HOST_OOM_KILL: "Killed for lack of host memory",
    Kind.OTHER_FRAMEWORK_OOM: "Out of memory, in another framework than PyTorch",
    Kind.NOT_OOM: "No out-of-memory error",
}
_CAUSES = {
    CauseKind.BATCH_TOO_LARGE: "the batch is too large",
    CauseKind.MODEL_TOO_LARGE: "model and optimizer are too large",
    CauseKind.FRAGMENTATION: "fragmentation",
    CauseKind.OTHER_PROCESS: "another process",
    CauseKind.LEAK: "memory grows from step to step",
    CauseKind.EVAL_WITHOUT_NO_GRAD: "evaluation without no_grad",
    CauseKind.MEMORY_LIMIT: "a limit on this process's memory",
    CauseKind.OVERFLOWED_SHAPE: "a shape that overflowed",
    CauseKind.HOST_MEMORY: "the host's memory",
    CauseKind.NOT_MEMORY: "not memory",
    CauseKind.UNKNOWN: "not known",
}
_PARTS = (
    ("allocated_bytes", "allocated in tensors", "█", "#", "red"),
    ("cached_bytes", "cached by PyTorch", "▓", "=", "yellow"),
    ("outside_bytes", "outside PyTorch", "▒", "+", "magenta"),
    ("others_bytes", "other processes", "╳", "x", "blue"),
    ("unattributed_bytes", "others, context", "╱", "/", "blue"),
    ("free_bytes", "free", "·", ".", "green"),
)
_BAR_WIDTH = 72


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print an explanation in the width of the console."""
    if not explanation.errors:
        part = " in what was read" if explanation.notes else ""
        print_sentence(console, _TITLES[Kind.NOT_OOM] + part, style="bold")
        print_sentence(console, explanation.cause.reason)
        _remedies(console, explanation)
        _notes(console, explanation)
        return
    error = explanation.errors[0]
    print_sentence(console, _title(error), style="bold")
    breakdown = error.breakdown
    if breakdown.drawable:
        console.print()
        _draw(breakdown, console)
    if breakdown.total_bytes is not None and breakdown.overflow_bytes:
        console.print()
        print_sentence(console, _no_breakdown(breakdown, breakdown.total_bytes))
    console.print()
    label = "Likely cause" if error.cause.likely else "Possible cause"
    if error.cause.kind is CauseKind.UNKNOWN:
        label = "Cause"
    print_sentence(console, f"{label}: {_CAUSES[error.cause.kind]}", style="bold")
    print_sentence(console, error.cause.reason)
    _remedies(console, explanation)
    if len(explanation.errors) > 1:
        console.print()
        _others(explanation.errors, console)
    _notes(console, explanation)


def _notes(console: Console, explanation: Explanation) -> None:
    for note in explanation.notes:
        console.print()
        print_sentence(console, note)


def _title(error: Error) -> str:
    parts = [_TITLES[error.kind]]
    if error.kind is Kind.HOST_OOM_KILL and not error.proven:
        parts = ["Killed, most likely for lack of host memory"]
    if error.source.rank is not None:
        parts.append(f"rank {error.source.rank}")
    elif error.source.name is not None:
        parts.append(error.source.name)
    if error.figures.gpu_index is not None:
        parts.append(f"GPU {error.figures.gpu_index}")
    if error.breakdown.total_bytes is not None:
        parts.append(f"{format_bytes(error.breakdown.total_bytes)} in all")
    if error.figures.tried_bytes is not None:
        parts.append(f"{format_bytes(error.figures.tried_bytes)} asked for")
    parts.append(f"line {error.line:,}")
    return " · ".join(parts)


def _draw(breakdown: Breakdown, console: Console) -> None:
    total = breakdown.total_bytes or 1
    plain = not is_utf8(console)
    parts = [
        (getattr(breakdown, name), label, ascii_mark if plain else mark, style)
        for name, label, mark, ascii_mark, style in _PARTS
        if getattr(breakdown, name) is not None
    ]
    width = min(_BAR_WIDTH, console.width)
    console.print(_bar([(size, mark, style) for size, _, mark, style in parts], total, width))
    rows = [*parts, (breakdown.tried_bytes, "asked for", " ", "bold")]
    longest = max(len(label) for _, label, _, _ in rows)
    percents = [
        *_percents([size for size, *_ in parts], total),
        _percent(breakdown.tried_bytes, total),
    ]
    for (size, label, mark, style), percent in zip(rows, percents, strict=True):
        if size is None:
            continue
        console.print(
            Text.assemble(
                (mark, style), f" {label:<{longest}}  {format_bytes(size):>11}  {percent:>5}"
            ),
            soft_wrap=True,
        )


def _percents(parts: list[int], total: int) -> list[str]:
    """Return the shares of parts in percent, rounded so that they never add up to more than 100."""
    shares, before = [], 0
    for size, end in zip(parts, accumulate(parts), strict=True):
        percent = round(end / total * 100) - before
        before += percent
        shares.append("<1%" if size and not percent else f"{percent}%")
    return shares


def _percent(size: int | None, total: int) -> str:
    if size is not None and size > total:
        return ">100%"
    return _percents([size or 0], total)[0]


def _no_breakdown(breakdown: Breakdown, total: int) -> str:
    return (
        f"The figures add up to {format_bytes(total + breakdown.overflow_bytes)}, more than "
        f"{format_bytes(total)}: part of it is in the host's memory (Windows, integrated GPUs, MPS), or they "
        "are of different moments. They give no breakdown."
    )


def _bar(parts: list[tuple[int, str, str]], total: int, width: int) -> Text:
    """Draw the parts to scale; one that is not zero has a cell if there is room for it."""
    scale = max(total, sum(size for size, _, _ in parts)) or 1
    cells = [max(1, round(size / scale * width)) if size else 0 for size, _, _ in parts]
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    text = Text()
    for (_, mark, style), count in zip(parts, cells, strict=True):
        text.append(mark * count, style=style)
    text.append(" " * (width - sum(cells)))
    text.rstrip()
    return text


def _remedies(console: Console, explanation: Explanation) -> None:
    if not explanation.advice:
        return
    console.print()
    console.print(Text("What to do", style="bold"))
    for number, remedy in enumerate(explanation.advice, start=1):
        print_sentence(console, remedy.text, indent="   ", first=f"{number}. ")
        if remedy.command is not None:  # in one line, to be copied
            console.print(Text(f"   {visible(remedy.command)}", style="cyan"), soft_wrap=True)


def _others(errors: tuple[Error, ...], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("rank", "line", "asked for", "allocated", "free", "cause"):
        table.add_column(header, justify="left" if header == "cause" else "right", no_wrap=True)
    rows = [
        (
            _who(error),
            f"{error.line:,}",
            format_bytes(error.figures.tried_bytes),
            format_bytes(error.figures.allocated_bytes),
            format_bytes(error.figures.free_bytes),
            _CAUSES[error.cause.kind],
        )
        for error in errors
    ]
    for row in rows:
        table.add_row(*row)
    if fits(table, console):
        console.print(table)
        return
    for who, line, tried, allocated, free, cause in rows:
        print_sentence(
            console,
            f"rank {who}, line {line}: {tried} asked for, {allocated} allocated, {free} free; {cause}",
            indent="  ",
            first=" ",
        )


def _who(error: Error) -> str:
    if error.source.rank is not None:
        return str(error.source.rank)
    return visible(error.source.name or "-")

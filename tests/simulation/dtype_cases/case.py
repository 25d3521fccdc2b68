"""One operator with its operands, and every combination of their dtypes and devices."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "DTYPES",
    "REAL",
    "Operand",
    "Question",
    "answer",
    "constant",
    "data",
    "few",
    "index",
    "mask",
    "questions",
    "table",
]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        *(torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8),
    )
}
REAL = tuple(name for name, dtype in DTYPES.items() if not dtype.is_complex)
_AUTOCAST = ("off", "bfloat16")
_OTHERS = ("float16", "float64", "int64", "bool")
_OTHER_INDICES = ("float32", "int32", "uint8", "bool")
_FEW = ("float32", "float16", "int64")
_CAST_FROM = {"float32", "float16", "float64", "int64"}
"""What autocast is tried with: it casts or leaves alone all floating dtypes in the same way."""


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator is called with.

    Attributes:
        shape: sizes.
        own: the dtype that it usually has; None: that of the data.
        differentiable: it gets a gradient.
    """

    shape: tuple[int, ...]
    own: str | None = None
    differentiable: bool = False


def data(*shape: int) -> Operand:
    """Return an operand that has the dtype of the others."""
    return Operand(shape, differentiable=True)


def constant(*shape: int) -> Operand:
    """Return an operand that has the dtype of the others, and no gradient: a target, a mask."""
    return Operand(shape)


def index(*shape: int) -> Operand:
    """Return an operand of indices."""
    return Operand(shape, "int64")


def mask(*shape: int) -> Operand:
    """Return an operand of bools."""
    return Operand(shape, "bool")


@dataclass(frozen=True)
class Entry:
    """An operator of the table: `call` gets a tensor for each operand.

    Attributes:
        name: unique.
        call: what is called.
        operands: of the call.
        others: the dtypes that all operands take in turn.
        autocast: what it is asked under.
    """

    name: str
    call: Callable[..., Any]
    operands: tuple[Operand, ...]
    others: tuple[str, ...]
    autocast: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """An entry with the dtypes and devices of its operands.

    Attributes:
        name: unique.
        entry: what is called.
        dtypes: of the operands.
        autocast: `off`, a dtype, or `disabled in` a dtype: a region inside where it is off.
        on_host: the operand that was left in the host's memory; None: all are on the GPU.
    """

    name: str
    entry: Entry
    dtypes: tuple[str, ...]
    autocast: str
    on_host: int | None = None


_ENTRIES: list[Entry] = []


def table(
    name: str,
    call: Callable[..., Any],
    *operands: Operand,
    others: Sequence[str] = tuple(DTYPES),
    regions: bool = False,
) -> None:
    """Add an operator to the table.

    Args:
        name: unique.
        call: gets a tensor for each operand.
        operands: of the call.
        others: the dtypes that all operands take in turn.
        regions: ask it under autocast to float16, and in a region without autocast inside, too.
    """
    autocast = (*_AUTOCAST, "float16", "disabled in bfloat16") if regions else _AUTOCAST
    _ENTRIES.append(Entry(name, call, operands, tuple(others), autocast))


def few(name: str, call: Callable[..., Any], *operands: Operand) -> None:
    """Add a variant of an operator that is in the table: for a few dtypes only."""
    table(name, call, *operands, others=_FEW)


def questions() -> Iterator[Question]:
    """Yield all combinations."""
    for entry in _ENTRIES:
        seen = set()
        for dtypes in _combinations(entry):
            if dtypes in seen:
                continue
            seen.add(dtypes)
            is_cast = set(dtypes) - {operand.own for operand in entry.operands} <= _CAST_FROM
            for autocast in entry.autocast if is_cast else entry.autocast[:1]:
                name = f"{entry.name}({', '.join(dtypes)}), autocast {autocast}"
                yield Question(name, entry, dtypes, autocast)
        usual = tuple(operand.own or "float32" for operand in entry.operands)
        if len(usual) > 1:
            for position in range(len(usual)):
                name = f"{entry.name}({', '.join(usual)}), operand {position} on the host"
                yield Question(name, entry, usual, "off", position)


def _combinations(entry: Entry) -> Iterator[tuple[str, ...]]:
    """Yield one dtype for all, and one operand alone of another dtype."""
    for dtype in entry.others:
        yield tuple(operand.own or dtype for operand in entry.operands)
    if len(entry.operands) == 1 and entry.operands[0].own is None:
        return
    for base, others in (("float32", _OTHERS), ("float16", ("float32",))):
        usual = [operand.own or base for operand in entry.operands]
        for position, operand in enumerate(entry.operands):
            tried = others
            if operand.own is not None:
                tried = _OTHER_INDICES if base == "float32" else ()
            elif entry.others == _FEW:
                tried = tuple(other for other in others if other != "bool")
            for other in tried:
                yield (*usual[:position], other, *usual[position + 1 :])


def answer(
    question: Question, reworded: Callable[[BaseException], None] = lambda _error: None
) -> str:
    """Return `accepted`, or the type and the message of what was raised, forward or backward.

    Args:
        question: what to run.
        reworded: called with what was raised, before its message is read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run(question)
    except Exception as error:
        reworded(error)
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _run(question: Question) -> None:
    operands = [
        _tensor(operand, DTYPES[dtype], "cpu" if position == question.on_host else "cuda")
        for position, (operand, dtype) in enumerate(
            zip(question.entry.operands, question.dtypes, strict=True)
        )
    ]
    with contextlib.ExitStack() as regions:
        cast_to = question.autocast.rpartition(" ")[2]
        if cast_to != "off":
            regions.enter_context(torch.autocast("cuda", DTYPES[cast_to]))
        if question.autocast.startswith("disabled"):
            regions.enter_context(torch.autocast("cuda", enabled=False))
        out = question.entry.call(*operands)
    while isinstance(out, (tuple, list)):
        out = out[0]
    if isinstance(out, torch.Tensor) and out.requires_grad:
        out.backward(torch.ones_like(out))


def _tensor(operand: Operand, dtype: torch.dtype, device: str) -> torch.Tensor:
    # Garbage may be no index and no variance; values that are known cost the tracer time.
    has_values = device == "cpu" or not operand.differentiable
    make = torch.zeros if has_values else torch.empty
    tensor = make(operand.shape, dtype=dtype, device=device)
    has_gradient = operand.differentiable and (dtype.is_floating_point or dtype.is_complex)
    return tensor.requires_grad_() if has_gradient else tensor

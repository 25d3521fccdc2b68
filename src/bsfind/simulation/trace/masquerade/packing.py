"""Packing of padded sequences: steps that are equally wide are copied together, then joined.

`_pack_padded_sequence` of aten/src/ATen/native/PackedSequence.cpp (torch 2.6-2.13). The copies
depend on the lengths, which are in the host's memory and hence known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts


def packing_handlers() -> dict[str, Handler]:
    """Return the handler of packing."""
    return {"aten::_pack_padded_sequence": _pack}


def _pack(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Make the packed tensor by the operators that the CUDA kernel calls, which are recorded."""
    padded, lengths, batch_first = args
    if not padded.is_meta or lengths.is_meta:
        return dispatcher.run(facts, args, kwargs)
    if batch_first:
        padded = padded.transpose(0, 1)
    widths = _widths(lengths.tolist())
    parts, start = [], 0
    for step, width in enumerate(widths, start=1):
        if step == len(widths) or widths[step] != width:
            part = padded[start:step, :width].contiguous()
            parts.append(part.view((step - start) * width, *padded.shape[2:]))
            start = step
    joined = torch.cat(parts)
    del part
    while parts:  # a C++ vector goes from its first element on
        parts.pop(0)
    return joined, torch.tensor(widths, dtype=torch.int64)


def _widths(lengths: list[int]) -> list[int]:
    """Return how many sequences have each step; the lengths descend."""
    return [sum(length > step for length in lengths) for step in range(lengths[0])]

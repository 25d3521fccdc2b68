"""Which operator a C++ stack belongs to: names for the events of PyTorch's own history."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["operator_of"]

# The dispatcher's entry of an operator: `at::_ops::native_layer_norm::call(...)`.
_ENTRY = re.compile(r"at::_ops::(\w+)::(?:call|redispatch)\(")
# A wrapper of a CUDA kernel: `at::(anonymous namespace)::wrapper_CUDA__native_layer_norm(...)`.
_KERNEL = re.compile(r"wrapper_CUDA_+(\w+?)\(")
_NODE = re.compile(r"torch::autograd::(?:generated::)?(\w+)::apply\(")
# Operators that only make room: the one that calls them tells more.
_ALLOCATING = re.compile(r"(memory_format_)?empty(_|$)|resize_|empty_strided|clone$")


def operator_of(frames: Iterable[dict[str, Any]]) -> str:
    """Return the innermost operator of a stack, and the autograd node or file around it."""
    operator = allocating = node = place = ""
    for frame in frames:
        name, file = frame["name"], frame["filename"]
        if not operator and (found := _KERNEL.search(name) or _ENTRY.search(name)):
            if _ALLOCATING.match(found[1]):
                allocating = allocating or found[1]
            else:
                operator = found[1]
        if not node and (found := _NODE.search(name)):
            node = found[1]
        if not place and file.endswith(".py"):
            place = f"{'/'.join(file.split('/')[-2:])}:{frame['line']}"
    return " ".join(part for part in (operator or allocating, node, place) if part)

"""Python kernels in place of torch's own, for as long as a library object lives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["override"]

_KNOWS_OVERRIDING = "allow_override" in inspect.signature(torch.library.Library.impl).parameters


def override(
    library: torch.library.Library, name: str, kernel: Callable[..., Any], key: str
) -> None:
    """Register a kernel of an operator for a dispatch key, whatever is there already.

    Args:
        library: that the registration goes with.
        name: of the operator and its overload, without `aten::`.
        kernel: called like the operator.
        key: name of the dispatch key.
    """
    if _KNOWS_OVERRIDING:
        library.impl(name, kernel, key, allow_override=True)  # type: ignore[no-untyped-call]
        return
    # `Library.impl` refuses where Python registered a kernel before, which it looks up in a set
    # (torch/library.py, 2.6-2.7); the dispatcher itself stacks kernels, and goes back to the last.
    known: set[str] = torch.library._impls
    registered = f"{library.ns}/{name}/{key}"
    was_known = registered in known
    known.discard(registered)
    library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
    if was_known:
        library._op_impls.discard(registered)  # the first kernel stays when the library goes

"""Python kernels in place of torch's own, for as long as a library object lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bsfind.simulation.trace.torch_private import known_implementations, own_implementations


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
    if known_implementations is None:
        library.impl(name, kernel, key, allow_override=True)  # type: ignore[no-untyped-call]
        return
    # `Library.impl` refuses where Python registered a kernel before, which it looks up in a set
    # (torch/library.py, 2.6-2.7); the dispatcher itself stacks kernels, and goes back to the last.
    registered = f"{library.ns}/{name}/{key}"
    was_known = registered in known_implementations
    known_implementations.discard(registered)
    library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
    if was_known:
        # The first kernel stays when the library goes.
        own_implementations(library).discard(registered)


def operator_named(name: str) -> Any:
    """Return the operator of `name` or `name.overload`; None: this torch does not have it."""
    packet, _, overload = name.partition(".")
    try:
        return getattr(getattr(torch.ops.aten, packet), overload or "default")
    except AttributeError:
        return None

"""Memory that CUDA moves between host and GPU page by page, as paged optimizers of bitsandbytes have it.

It is not the caching allocator's, and gives way to memory that is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch


@contextlib.contextmanager
def paged_memory(note: Callable[[str, str], None]) -> Iterator[None]:
    """Let bitsandbytes, if it is imported, make paged tensors in the host's memory while inside.

    `get_paged`, `fill` and `prefetch_tensor` of bitsandbytes/functional.py (0.43-0.50).

    Args:
        note: called with the code and the text of a note, where there is such a tensor.
    """
    functional = sys.modules.get("bitsandbytes.functional")
    if functional is None or not hasattr(functional, "get_paged"):
        yield
        return

    def get_paged(*shape: int, dtype: torch.dtype = torch.float32, **_: Any) -> torch.Tensor:
        note(
            "paged_memory",
            "the optimizer's state is paged: it is not counted, gives way to what the allocator "
            "reserves, and needs as much memory of the host",
        )
        # What code makes on the device `meta` itself lies on the host (see `CudaMasquerade`).
        made: Any = torch.empty(shape, dtype=dtype, device="meta")
        made.is_paged, made.page_deviceid = True, 0
        return made  # type: ignore[no-any-return]

    with mock.patch.multiple(
        functional, get_paged=get_paged, fill=_nothing, prefetch_tensor=_nothing
    ):
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """Values are not known."""

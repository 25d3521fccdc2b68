"""What the user's code keeps on the simulated GPU from one trial to the next.

Masks and positions are often cached: by `functools.lru_cache`, in a dict of a module, on a class. In
a process of its own, each trial would fill such a cache by itself. Caches of functions are cleared
between trials; what lies elsewhere counts as allocated when a trial uses it for the first time.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from bsfind.simulation.trace.torch_private import TorchFunctionOff, address_of

_CachedFunction: Any = type(functools.lru_cache(lambda: None))


class KeptStorages:
    """Storages with the values that are known of them; lets go of the dead; false while empty."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[weakref.ref[Any], torch.Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self._storages)

    def add(self, storage: Any, values: torch.Tensor | None) -> None:
        """Add a storage, with its twin of `Values`."""
        key = address_of(storage)
        kept = self._storages
        kept[key] = (weakref.ref(storage, lambda _: kept.pop(key, None)), values)

    def has(self, storage: Any) -> bool:
        """Tell whether a storage is one of these."""
        return address_of(storage) in self._storages

    def take(self, storage: Any) -> torch.Tensor | None:
        """Remove a storage, if it is there, and return its twin."""
        known = self._storages.pop(address_of(storage), None)
        return None if known is None else known[1]


KEPT = KeptStorages()
"""Those of this process, whichever tracer saw them made."""


def clear_function_caches() -> bool:
    """Clear the caches of functions that hold simulated tensors; returns whether there were any.

    Caches of `functools.lru_cache` and `functools.cache`. Objects that `gc.freeze` put aside are
    not looked at.
    """
    found = False
    for function in gc.get_objects():
        if type(function) is _CachedFunction and any(map(_is_simulated, _cached(function))):
            function.cache_clear()
            found = True
    return found


def _cached(function: Any) -> Iterator[Any]:
    """Yield what a function's cache holds, and what is in the tuples, lists and dicts of it."""
    own = (id(function.__dict__), id(function.__wrapped__))
    waiting = [part for part in gc.get_referents(function) if id(part) not in own]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield value
            if isinstance(value, (tuple, list, dict)):
                waiting += gc.get_referents(value)


def _is_simulated(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    with TorchFunctionOff():
        return value.is_meta

"""Random numbers that a batch function draws on the host: many of them repeat some, and share memory.

A data loader's images take seconds to draw, and to write, in every step. Nothing of a step depends on their
values: later draws of as many numbers are copies on write of those that were written first.
"""

from __future__ import annotations

import torch

from bsfind.simulation.trace.torch_private import copy_on_write

_SPARE = 8
"""One part in so many that is written beyond what is asked for: sizes of a search are near each other."""

_MOST_SHARED = 4
"""How many times as many numbers may be written as are asked for: a write to them copies all."""


class HostDraws:
    """What was written of random numbers, by the operator that drew them and the dtype."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._draws = 0

    def like(self, some: torch.Tensor, name: str, count: int) -> torch.Tensor:
        """Return numbers that repeat others, beginning with another one at each draw.

        Args:
            some: the numbers.
            name: name of the operator that drew them.
            count: how many numbers are returned.
        """
        key = (name, some.dtype)
        written = self._written.get(key)
        needed = count + some.numel()
        if written is None or not needed <= written.numel() <= _MOST_SHARED * needed:
            self._written.pop(key, None)
            written = torch.empty(needed + count // _SPARE, dtype=some.dtype)
            for part in written.split(some.numel()):  # type: ignore[no-untyped-call]
                part.copy_(some[: part.numel()])
            self._written[key] = written
        self._draws += 1
        first = int(some.numel() * (0.618 * self._draws % 1))
        copied: torch.Tensor = copy_on_write(written)
        return copied[first : first + count]

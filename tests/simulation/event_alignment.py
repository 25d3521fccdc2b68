"""Two lists of allocator events, side by side: where do they part, and where do they meet again?

Events are integers as in `Recording.events`: `n >= 0` allocates n bytes, `n < 0` frees block
`-n - 1`, blocks numbered by their allocation.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Difference", "align", "normalised", "positions"]

_ROUNDING = 512
"""The allocator's smallest unit (kMinBlockSize of c10/cuda/CUDACachingAllocator.h, torch 2.13)."""

_WINDOW = 1500
"""Events that are aligned at a time: difflib is quadratic."""

_SAME_AGAIN = 12
"""So many equal events in a row after a difference: the lists have met again."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A stretch in which the lists differ; either side may be empty.

    Attributes:
        expected: indices [start, end) in the first list.
        found: indices [start, end) in the second list.
        is_lifetime: sizes agree, but a release is of another block of the same size.
    """

    expected: tuple[int, int]
    found: tuple[int, int]
    is_lifetime: bool = False


def _rounded(nbytes: int) -> int:
    return max(_ROUNDING, -(-nbytes // _ROUNDING) * _ROUNDING)


def normalised(events: Sequence[int]) -> list[int]:
    """Return the events with all left out that the allocator does not notice.

    Sizes are rounded to blocks, requests of no bytes are gone, and releases in a row are in the order
    of their blocks: neighbours are joined in whichever order they come, and some orders are those of
    a hash table of addresses (autocast's cache of weights, say).
    """
    return [event for event, _ in _normalised(events)]


def positions(events: Sequence[int]) -> list[int]:
    """Return where each event of `normalised` was in the list."""
    return [position for _, position in _normalised(events)]


def _normalised(events: Sequence[int]) -> list[tuple[int, int]]:
    numbers: list[int | None] = []
    kept = 0
    result: list[tuple[int, int]] = []
    released: list[tuple[int, int]] = []
    for position, event in enumerate(events):
        if event > 0:
            result += sorted(released, reverse=True)
            released.clear()
            numbers.append(kept)
            kept += 1
            result.append((_rounded(event), position))
        elif event == 0:
            numbers.append(None)
        else:
            number = numbers[-event - 1]
            if number is not None:
                released.append((-number - 1, position))
    return result + sorted(released, reverse=True)


def _tokens(events: Sequence[int]) -> list[int]:
    """Return what can be compared without numbers: +size for an allocation, -size for a release."""
    sizes = [event for event in events if event >= 0]
    return [event if event >= 0 else -sizes[-event - 1] for event in events]


def align(expected: Sequence[int], found: Sequence[int], limit: int = 20) -> list[Difference]:
    """Return the first differences between two normalised lists.

    Args:
        expected: what PyTorch did.
        found: what the simulator says.
        limit: how many differences to look for.
    """
    left, right = _tokens(expected), _tokens(found)
    left_numbers, right_numbers = _allocation_numbers(expected), _allocation_numbers(found)
    partner: dict[int, int] = {}
    differences: list[Difference] = []
    i = j = 0
    while i < len(left) or j < len(right):
        if len(differences) >= limit:
            break
        if i < len(left) and j < len(right) and left[i] == right[j]:
            if expected[i] >= 0:
                partner[left_numbers[i]] = right_numbers[j]
            elif partner.get(-expected[i] - 1) != -found[j] - 1:
                differences.append(
                    Difference(expected=(i, i + 1), found=(j, j + 1), is_lifetime=True)
                )
            i, j = i + 1, j + 1
            continue
        next_i, next_j = _meet(left[i : i + _WINDOW], right[j : j + _WINDOW])
        differences.append(Difference(expected=(i, i + next_i), found=(j, j + next_j)))
        i, j = i + next_i, j + next_j
    return differences


def _allocation_numbers(events: Sequence[int]) -> list[int]:
    numbers, count = [], 0
    for event in events:
        numbers.append(count)
        count += event >= 0
    return numbers


def _meet(left: Sequence[int], right: Sequence[int]) -> tuple[int, int]:
    """Return how many events of each side to skip until they agree again."""
    blocks = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    for block in blocks:
        if block.size >= min(_SAME_AGAIN, len(left) - block.a, len(right) - block.b) > 0:
            return block.a, block.b
    return len(left), len(right)

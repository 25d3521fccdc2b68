"""Which of many inputs `make test` tries, and which ones only `make test-exhaustive`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def exhaustive(*values: Any) -> Any:
    """Return a parameter that is left to `make test-exhaustive`."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def one_in(count: int, values: Iterable[Any]) -> list[Any]:
    """Return parameters all of which but one in so many, beginning with the first, are left to it.

    Args:
        count: how many there are for each that `make test` tries. The number of precisions or GPUs of
            each case should not be a multiple of it.
        values: each is one parameter, and its text the name of the test.
    """
    return [
        pytest.param(value, id=str(value), marks=[pytest.mark.exhaustive] if place % count else [])
        for place, value in enumerate(values)
    ]

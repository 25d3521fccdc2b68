"""Sequences that are short enough for a search, where a step of the asked ones takes too long to trace."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from bsfind.errors import BsfindError
from bsfind.inputs import InputSpec, sequence_length
from bsfind.settings import Workload

if TYPE_CHECKING:
    from bsfind.simulation.trace.tracer import Tracer

_SAMPLED = 32
"""How many times shorter the sequences are whose step is traced to count its entries."""

_SEARCHED_ENTRIES = 80_000
"""Entries of a step whose search takes about half a minute."""


def searched_length(
    workload: Workload,
    inputs: Sequence[InputSpec],
    tracing: Callable[[Workload], AbstractContextManager[Tracer]],
) -> int | None:
    """Return a length of sequences at which a search takes about half a minute; None: none is known.

    The entries of a step are taken to grow in proportion to the length.

    Args:
        workload: what takes too long.
        inputs: the inputs that follow from the model.
        tracing: opens a tracer; no other may be open.
    """
    length = workload.seq_len or sequence_length(inputs)
    sampled = length // _SAMPLED
    if not sampled:
        return None
    shorter = dataclasses.replace(workload, seq_len=sampled)
    entries = 0
    with contextlib.suppress(BsfindError), tracing(shorter) as tracer:
        tracer.program(1, 1, most_entries=2 * _SEARCHED_ENTRIES)
        entries = tracer.steps.first_entries
    most = min(length // 2, _SEARCHED_ENTRIES * sampled // entries) if entries else 0
    return 1 << (most.bit_length() - 1) if most else None

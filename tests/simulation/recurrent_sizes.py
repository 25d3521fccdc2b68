"""Sizes that cuDNN asks for in recurrent layers, as tests on the fake GPU give them to both sides.

What cuDNN asks for is not documented, and bsfind's formulas have not been compared with it on a GPU.
In tests the fake cuDNN answers with these sizes, and they replace the simulator's formulas. Equal events
prove the order of allocations, the outputs and how long each block lives, and nothing about the formulas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from bsfind.simulation.kernels import recurrent as rules
from bsfind.simulation.kernels.recurrent import RecurrentShape
from bsfind.simulation.trace.cuda_paths import recurrent_choice as recurrent

WORKSPACE, RESERVE, DROPOUT_STATES = 3_000_320, 1_234_432, 700_416
"""Bytes: whole blocks of the allocator, and all different, so that none can be taken for another."""

RECURRENT_BYTES = (WORKSPACE, RESERVE, DROPOUT_STATES)


def _temporary_bytes(shape: RecurrentShape) -> tuple[int, int]:
    return WORKSPACE, RESERVE if shape.is_training else 0


@contextlib.contextmanager
def with_given_sizes() -> Iterator[None]:
    """Let the simulator take these sizes."""
    with (
        mock.patch.object(rules, "temporary_bytes", _temporary_bytes),
        mock.patch.object(recurrent, "temporary_bytes", _temporary_bytes),
        mock.patch.object(recurrent, "cudnn_dropout_state_bytes", return_value=DROPOUT_STATES),
    ):
        yield

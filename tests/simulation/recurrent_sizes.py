"""Sizes that cuDNN asks for in recurrent layers, as tests on the fake GPU give them to both sides.

What cuDNN asks for is not documented, and there is no GPU here to ask: bsfind's formulas have not been compared
with it. In tests the fake cuDNN answers with these sizes, and so do the simulator's formulas. Equal events then prove
the order of allocations, the outputs and how long each block lives, and nothing about the formulas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from bsfind.simulation.kernels.recurrent import set_temporary_bytes
from bsfind.simulation.trace.cuda_paths import recurrent_outputs

WORKSPACE, RESERVE, DROPOUT_STATES = 3_000_320, 1_234_432, 700_416
"""Bytes: whole blocks of the allocator, and all different, so that none can be taken for another."""

RECURRENT_BYTES = (WORKSPACE, RESERVE, DROPOUT_STATES)


@contextlib.contextmanager
def with_given_sizes() -> Iterator[None]:
    """Let the simulator take these sizes."""
    former = set_temporary_bytes(lambda shape: (WORKSPACE, RESERVE if shape.is_training else 0))
    try:
        with mock.patch.object(
            recurrent_outputs, "cudnn_dropout_state_bytes", lambda _: DROPOUT_STATES
        ):
            yield
    finally:
        set_temporary_bytes(former)

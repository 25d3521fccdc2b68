"""What NCCL takes of a GPU, outside PyTorch's allocator: a guess, which grows with the ranks.

Figures that others have measured, for each communicator: 544 MB with two and 688 MB with three or four ranks
on A100 GPUs (NVIDIA/nccl issue 964), 1.06 GB with eight H100 (issue 1685), 1.6 GB in all, more with
all-to-all (issue 864). The buffers are those of channels, whose number depends on the links and not on the
ranks beyond one machine (issue 285).
"""

from __future__ import annotations

from collections.abc import Sequence

_MEASURED = ((1, 0), (2, 544_000_000), (4, 688_000_000))
"""Up to so many ranks, a communicator takes so many bytes."""

_MOST = 1_060_000_000
"""What it takes with more."""


def nccl_bytes(communicators: Sequence[int]) -> int:
    """Return what NCCL takes of each GPU, bytes.

    Args:
        communicators: the ranks in each of its communicators.
    """
    return sum(
        next((nbytes for most, nbytes in _MEASURED if ranks <= most), _MOST)
        for ranks in communicators
    )

"""A global batch as micro-batch x accumulation steps x GPUs. Pure."""

from __future__ import annotations

from bsfind.records import GlobalBatch
from bsfind.search.accepted_sizes import EVERY_SIZE, Form

_WORTH = 0.5
"""What of the largest micro-batch an exact split may be smaller by, rather than be off by a few
samples: a prime number of samples is met exactly only one sample at a time."""


def split(
    asked: int, largest: int, *, world_size: int = 1, sizes: Form = EVERY_SIZE
) -> GlobalBatch | None:
    """Return the three factors that reach a global batch.

    As few accumulation steps as the memory allows, each of them full: an exact split where there is
    one with micro-batches of a reasonable size, else the nearest product.

    Args:
        asked: samples for each optimizer step, over all GPUs.
        largest: the largest micro-batch that fits.
        world_size: GPUs.
        sizes: which a micro-batch may have.

    Returns:
        None if no micro-batch of these is small enough.
    """
    most = sizes.at_most(min(largest, -(-asked // world_size)))
    if most < 1:
        return None
    fewest = -(-asked // (most * world_size))
    candidates: list[tuple[int, int]] = []
    for steps in range(max(1, fewest - 1), 2 * fewest + 1):
        share = asked // (world_size * steps)
        near = {sizes.at_most(share), min(sizes.above(share), most)}
        candidates.extend((micro, steps) for micro in near if 1 <= micro <= most)
    worthy = [(m, s) for m, s in candidates if m >= _WORTH * most]
    micro, steps = min(
        worthy or candidates,
        key=lambda pair: (abs(pair[0] * pair[1] * world_size - asked), pair[1]),
    )
    return GlobalBatch(
        asked=asked,
        reached=micro * steps * world_size,
        micro_batch_size=micro,
        accumulation_steps=steps,
        world_size=world_size,
    )

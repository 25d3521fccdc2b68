"""Which rank of a launched training limits its batch size: the one with the least memory left."""

from __future__ import annotations

from collections.abc import Sequence

from bsfind.launch.records import RankRecord
from bsfind.records import Assumption, ReportWarning
from bsfind.trial import RankMemory, Trial
from bsfind.units import format_bytes

_UNEQUAL = 0.05
"""Ranks whose peaks differ by a larger share are told: the others wait for the limiting one."""


def peak_reserved(record: RankRecord) -> int:
    """Return what the allocator of a rank reserved at most, bytes; 0 if it has made no step on a GPU."""
    return max((step.peak_reserved_bytes for step in record.steps), default=0)


def left_bytes(record: RankRecord, limit_bytes: int) -> int:
    """Return what a rank could have reserved besides.

    Args:
        record: what it told.
        limit_bytes: what the allocator was allowed to reserve, where the rank has set no smaller limit.
    """
    limits = [limit_bytes if record.limit_bytes is None else record.limit_bytes]
    if record.device is not None and record.world_size > 1:
        limits.append(record.device.capacity_bytes)
    return min(limits) - peak_reserved(record)


def limiting(records: Sequence[RankRecord], limit_bytes: int) -> RankRecord:
    """Return the record of the rank that has the least memory left; the first of several.

    Args:
        records: one of each rank.
        limit_bytes: see `left_bytes`.
    """
    return min(records, key=lambda record: (left_bytes(record, limit_bytes), record.rank))


def memory_of_ranks(records: Sequence[RankRecord]) -> tuple[RankMemory, ...]:
    """Return what each rank took, in their order; nothing of a training in one process."""
    if len(records) == 1:
        return ()
    return tuple(
        RankMemory(
            rank=record.rank,
            device_index=record.device.index,
            device_name=record.device.name,
            device_uuid=record.device.uuid,
            total_bytes=record.device.total_bytes,
            capacity_bytes=record.device.capacity_bytes,
            peak_allocated_bytes=max(
                (step.peak_allocated_bytes for step in record.steps), default=0
            ),
            peak_reserved_bytes=peak_reserved(record),
            num_alloc_retries=record.steps[-1].retries if record.steps else 0,
        )
        for record in sorted(records, key=lambda record: record.rank)
        if record.device is not None
    )


def ranks_assumption(trial: Trial) -> Assumption:
    """Return whose figures those of a trial of several ranks are."""
    of_limiting = (each for each in trial.ranks if each.rank == trial.limiting_rank)
    gpus = (f" on cuda:{each.device_index} ({each.device_name})" for each in of_limiting)
    return Assumption(
        what="ranks",
        value=f"{len(trial.ranks)}, all measured; figures are those of rank {trial.limiting_rank}"
        f"{next(gpus, '')}",
        why="it has the least memory left, which limits the batch size of all",
    )


def unequal_ranks(trial: Trial) -> ReportWarning | None:
    """Return a warning that the ranks of a trial need different amounts of memory; None if they do not."""
    order = sorted(trial.ranks, key=lambda each: each.peak_reserved_bytes)
    least, most = order[0], order[-1]
    if most.peak_reserved_bytes - least.peak_reserved_bytes <= _UNEQUAL * most.peak_reserved_bytes:
        return None
    return ReportWarning(
        code="ranks_differ",
        message=f"ranks need different amounts of memory: rank {most.rank} reserves "
        f"{format_bytes(most.peak_reserved_bytes)} and rank {least.rank} "
        f"{format_bytes(least.peak_reserved_bytes)}, at batch size {trial.batch_size:,}; rank "
        f"{trial.limiting_rank} limits the batch size",
    )

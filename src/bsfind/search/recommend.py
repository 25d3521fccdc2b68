"""From trials to one batch size and its reason; a global batch as a product. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bsfind.results import GlobalBatch, PrecisionResult, Recommendation
from bsfind.search.accepted_sizes import EVERY_SIZE, Form
from bsfind.settings import Axis
from bsfind.trial import Trial

BASELINE_PRECISIONS = ("fp32", "tf32")
"""What speed-ups are relative to: the first of these that was measured."""

_STEP_DOWN = 0.005
_LARGEST_STEP_DOWN = 0.32

_FRAGMENTED = 0.08
"""Share of reserved memory that may be unallocated before another setting is worth a try."""

_WORTHY_SHARE = 0.5
"""Smallest micro-batch of an exact split, as a share of the largest. Below it, being off by a few samples is
better: a prime number of samples is met exactly only with micro-batches of one sample."""


def step_down(batch_size: int, attempt: int) -> int:
    """Return what to try after the `attempt`-th recommended size (1, 2, …) failed; 0: nothing is left.

    The distance doubles with every attempt: half a percent, one, two … up to a third.
    """
    share = min(_LARGEST_STEP_DOWN, _STEP_DOWN * 2 ** (attempt - 1))
    return max(0, batch_size - max(1, int(batch_size * share)))


def best_that_leaves(trials: Sequence[Trial], budget_bytes: int, sizes: Form) -> Trial | None:
    """Return the trial of the largest of some sizes whose peak reserved is within the budget."""
    within = [
        trial
        for trial in trials
        if trial.status == "ok"
        and trial.peak_reserved_bytes is not None
        and trial.peak_reserved_bytes <= budget_bytes
        and trial.batch_size in sizes
    ]
    return max(within, key=lambda trial: trial.batch_size, default=None)


def is_fragmented(allocated_bytes: int | None, reserved_bytes: int | None) -> bool:
    """Tell whether so much is reserved and not allocated that expandable segments may pay."""
    if allocated_bytes is None or reserved_bytes is None:
        return False
    return reserved_bytes - allocated_bytes > _FRAGMENTED * reserved_bytes


def baseline(results: Sequence[PrecisionResult], seq_len: int | None) -> PrecisionResult | None:
    """Return the result that speed-ups at a length are relative to; None without one that was timed."""
    for name in BASELINE_PRECISIONS:
        for result in results:
            is_plain = result.remedy is None and result.seq_len == seq_len
            if result.precision == name and is_plain and result.samples_per_s:
                return result
    return None


def speed_up(result: PrecisionResult, results: Sequence[PrecisionResult]) -> float | None:
    """Return how many times the baseline's samples/s a result reaches; None for the baseline.

    Nor is there a speed-up where an axis was searched: samples of other sizes were timed.
    """
    reference = baseline(results, result.seq_len)
    if reference is None or reference is result or result.max_axis_size is not None:
        return None
    if not result.samples_per_s or not reference.samples_per_s:
        return None
    return result.samples_per_s / reference.samples_per_s


def recommend(
    results: Sequence[PrecisionResult],
    objective: str,
    seq_len: int | None,
    axis: Axis | None = None,
) -> Recommendation | None:
    """Return the batch size and the precision to train with at a length; None if nothing fits.

    Rows of `--compare` are left out: what they change is for the user to decide.

    The precision with the most samples per second at its recommended batch size; without times,
    the one with the largest batch, and of equals one that is not plain fp32 or TF32.

    Args:
        results: all results.
        objective: of `SearchLimits`.
        seq_len: one of several lengths; None where there are not several.
        axis: what was searched instead of the batch size; None: the batch size was.
    """
    plain = [r for r in results if r.remedy is None and r.seq_len == seq_len]
    usable = [r for r in plain if r.recommended_batch_size]
    if not usable:
        return None
    # Samples per second of one batch size at two sizes of an axis say nothing of the precisions.
    timed = axis is None and all(result.samples_per_s is not None for result in usable)
    best = max(
        usable,
        key=lambda r: (
            (r.samples_per_s or 0.0) if timed else float(r.recommended_batch_size or 0),
            r.precision not in BASELINE_PRECISIONS,
        ),
    )
    assert best.recommended_batch_size is not None
    return Recommendation(
        batch_size=best.recommended_batch_size,
        precision=best.precision,
        seq_len=seq_len,
        reason=_reason(best, usable, objective, timed=timed, axis=axis),
        global_batch=best.global_batch,
    )


def _reason(
    best: PrecisionResult,
    usable: Sequence[PrecisionResult],
    objective: str,
    *,
    timed: bool,
    axis: Axis | None,
) -> str:
    size = (
        "the smallest batch within 2 % of the best samples per second"
        if objective == "fastest" and timed
        else f"the largest {'batch' if axis is None else axis.name} that leaves the headroom free"
    )
    if len(usable) == 1:
        return size
    ratio = speed_up(best, usable) if axis is None else None
    reference = baseline(usable, best.seq_len)
    if ratio is not None and reference is not None:
        return f"{size}; {ratio:.1f} x the samples per second of {reference.precision}"
    if timed:
        return f"{size}; the most samples per second of {len(usable)} precisions"
    largest = [r for r in usable if r.recommended_batch_size == best.recommended_batch_size]
    if len(largest) > 1:
        return f"{size}; as large as any of {len(usable)} precisions"
    return f"{size}; the largest of {len(usable)} precisions"


def _splits(share: int, most: int, sizes: Form) -> Iterator[tuple[int, int]]:
    """Yield the micro-batch sizes and accumulation steps that may come nearest to a GPU's share.

    Each number of steps with the sizes next to it, or each size with the steps next to it, whichever are
    fewer: of the square root of the share, at most.
    """
    least = most * _WORTHY_SHARE
    fewest = max(1, share // most)
    if fewest <= most:
        for steps in range(fewest, 2 * fewest + 3):
            size = share // steps
            for micro in (sizes.at_most(size), min(sizes.above(size), most)):
                if least <= micro <= most:
                    yield micro, steps
    micro = most
    while fewest > most and micro >= max(1, least):
        yield from ((micro, max(1, share // micro)), (micro, share // micro + 1))
        micro = sizes.at_most(micro - 1)


def split_global_batch(
    asked: int, largest: int, *, world_size: int = 1, sizes: Form = EVERY_SIZE
) -> GlobalBatch | None:
    """Return the three factors that reach a global batch.

    As few accumulation steps as the memory allows, each of them full: an exact split where there is
    one with micro-batches of a reasonable size, else the nearest product.

    Args:
        asked: samples for each optimizer step, over all GPUs.
        largest: the largest micro-batch that fits.
        world_size: number of GPUs.
        sizes: the sizes that a micro-batch may have.

    Returns:
        None if no micro-batch of these is small enough.
    """
    most = sizes.at_most(min(largest, -(-asked // world_size)))
    if most < 1:
        return None
    micro, steps = min(
        _splits(asked // world_size, most, sizes),
        key=lambda pair: (abs(pair[0] * pair[1] * world_size - asked), pair[1], pair[0]),
    )
    return GlobalBatch(
        asked=asked,
        reached=micro * steps * world_size,
        micro_batch_size=micro,
        accumulation_steps=steps,
        world_size=world_size,
    )

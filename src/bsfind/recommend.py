"""From trials to one number and its reason. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bsfind.records import PrecisionResult, Recommendation, Trial

__all__ = [
    "BASELINE_PRECISIONS",
    "SATURATION",
    "baseline",
    "best_that_leaves",
    "next_throughput_probe",
    "recommend",
    "round_down",
    "saturation",
    "speed_up",
    "step_down",
]

SATURATION = 0.98
"""Throughput counts as saturated from this part of the best samples/s on."""

BASELINE_PRECISIONS = ("fp32", "tf32")
"""What speed-ups are relative to: the first of these that was measured."""

_STEP_DOWN = 0.005


def round_down(batch_size: int, multiple_of: int) -> int:
    """Return the largest multiple that is not above `batch_size`; 0 if there is none."""
    return batch_size - batch_size % multiple_of


def step_down(batch_size: int, multiple_of: int, attempt: int) -> int:
    """Return what to try after a recommended size failed to run for the `attempt`-th time (1, 2, …).

    The distance doubles with every attempt: half a percent, one, two …; 0 when nothing is left.
    """
    distance = max(1, int(batch_size * _STEP_DOWN * 2 ** (attempt - 1)))
    return round_down(max(0, batch_size - distance), multiple_of)


def best_that_leaves(
    trials: Sequence[Trial], budget_bytes: int, multiple_of: int = 1
) -> Trial | None:
    """Return the trial of the largest batch size whose peak reserved is within the budget."""
    within = [
        trial
        for trial in trials
        if trial.status == "ok"
        and trial.peak_reserved_bytes is not None
        and trial.peak_reserved_bytes <= budget_bytes
        and trial.batch_size % multiple_of == 0
    ]
    return max(within, key=lambda trial: trial.batch_size, default=None)


def saturation(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the smallest batch size whose samples/s is within 2 % of the best."""
    timed = [trial for trial in trials if trial.samples_per_s is not None]
    best = max((trial.samples_per_s or 0.0 for trial in timed), default=0.0)
    enough = [trial for trial in timed if (trial.samples_per_s or 0.0) >= SATURATION * best]
    return min(enough, key=lambda trial: trial.batch_size, default=None)


def next_throughput_probe(
    trials: Sequence[Trial], largest: int, *, smallest: int, multiple_of: int
) -> int | None:
    """Return the next batch size to time for `--objective fastest`; None when it is known.

    Halves the batch size while throughput stays within 2 % of the best, so that the answer is the
    smallest of `largest`, `largest / 2`, `largest / 4` … that is still as fast.
    """
    best = saturation([trial for trial in trials if trial.batch_size <= largest])
    if best is None:
        return None
    floor = max(smallest, multiple_of)
    half = max(round_down(min(best.batch_size, largest) // 2, multiple_of), floor)
    if half >= best.batch_size or any(trial.batch_size == half for trial in trials):
        return None
    return half


def baseline(results: Sequence[PrecisionResult]) -> PrecisionResult | None:
    """Return the result that speed-ups are relative to; None without one that was timed."""
    for name in BASELINE_PRECISIONS:
        for result in results:
            if result.precision == name and result.samples_per_s:
                return result
    return None


def speed_up(result: PrecisionResult, results: Sequence[PrecisionResult]) -> float | None:
    """Return how many times the baseline's samples/s a result reaches; None for the baseline."""
    reference = baseline(results)
    if reference is None or reference.precision == result.precision:
        return None
    if not result.samples_per_s or not reference.samples_per_s:
        return None
    return result.samples_per_s / reference.samples_per_s


def recommend(results: Sequence[PrecisionResult], objective: str) -> Recommendation | None:
    """Return the batch size and the precision to train with; None if nothing fits.

    The precision with the most samples per second at its recommended batch size; without times,
    the one with the largest batch, and of equals one that is not plain fp32 or TF32.
    """
    usable = [result for result in results if result.recommended_batch_size]
    if not usable:
        return None
    timed = all(result.samples_per_s is not None for result in usable)
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
        reason=_reason(best, usable, objective, timed=timed),
    )


def _reason(
    best: PrecisionResult, usable: Sequence[PrecisionResult], objective: str, *, timed: bool
) -> str:
    size = (
        "the smallest batch within 2 % of the best samples per second"
        if objective == "fastest" and timed
        else "the largest batch that leaves the headroom free"
    )
    if len(usable) == 1:
        return size
    ratio = speed_up(best, usable)
    reference = baseline(usable)
    if ratio is not None and reference is not None:
        return f"{size}; {ratio:.1f} x the samples per second of {reference.precision}"
    if timed:
        return f"{size}; the most samples per second of {len(usable)} precisions"
    largest = [r for r in usable if r.recommended_batch_size == best.recommended_batch_size]
    if len(largest) > 1:
        return f"{size}; as large as any of {len(usable)} precisions"
    return f"{size}; the largest of {len(usable)} precisions"

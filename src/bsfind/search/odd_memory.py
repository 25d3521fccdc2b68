"""Memory that does not grow with the batch size: a step that ignores it, or one whose memory falls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsfind.records import ReportWarning

if TYPE_CHECKING:
    from bsfind.search.precision import PrecisionSearch

_FAR_APART = 4
"""Factor between batch sizes that do not need the same memory, if a step uses its batch."""


def odd_memory(search: PrecisionSearch) -> list[ReportWarning]:
    """Return warnings where the memory of a search's trials does not grow with the batch size."""
    trials = search.bracket.trials
    ran = {t.batch_size: t for t in trials if t.status == "ok"}
    if not ran:
        return []
    warnings = []
    least, most = min(ran), max(ran)
    peaks = {(t.peak_allocated_bytes, t.activation_bytes) for t in ran.values()}
    if most >= _FAR_APART * least and len(peaks) == 1 and (None, None) not in peaks:
        used = "batch" if search.axis is None else search.searched
        what = f"{search.searched}{'s' * (search.axis is None)} {least:,} to {most:,}"
        warnings.append(
            ReportWarning(
                code="batch_ignored",
                message=f"{search.name}: {what} need exactly the same memory: "
                f"the step does not use its {used}",
                hint=f"`--batch-fn` and `--step` have to make use of the {search.searched} that they get",
            )
        )
    smaller = [t for t in trials if t.status == "oom" and t.batch_size < most]
    if smaller:
        sizes = ", ".join(f"{size:,}" for size in sorted(t.batch_size for t in smaller))
        warnings.append(
            ReportWarning(
                code="memory_falls",
                message=f"{search.name}: memory does not only grow with the {search.searched}: {sizes} "
                f"ran out of memory although {most:,} did not",
                hint="`bsfind check` tries any other size",
            )
        )
    return warnings

"""A row of `--compare` beside the row without the change: what fits there is tried here too.

Near the limit some sizes fit and smaller ones do not. The search of a lighter variant may end below such a
size, and that of a heavier one above it: the sizes of the latter tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsfind.records import ReportWarning
from bsfind.results import PrecisionResult
from bsfind.units import format_batch_sizes

if TYPE_CHECKING:
    from bsfind.search.precision import PrecisionSearch

_CODE = "compared_less"


def try_maximum(search: PrecisionSearch, plain: PrecisionResult) -> None:
    """Try the maximum without the change, if the search ended below it; go on from there if it fits."""
    best, larger = search.bracket.best, plain.max_batch_size
    if best is None or larger is None or not best.batch_size < larger <= search.limits.most:
        return
    if larger not in search.sizes or any(trial.leak for trial in search.bracket.trials):
        return
    trial = search.try_size(larger, exact=True)
    search.tell(trial)
    if trial.status == "timeout":
        return
    search.bracket.record(trial)
    if trial.status != "ok":
        _warn(search, larger, f"not with it: {trial.message}")
    elif not search.bracket.is_ended:
        search.policy.find_maximum(search)


def largest_within_budget(
    search: PrecisionSearch, plain: PrecisionResult, found: int, largest: int
) -> int:
    """Return the largest size within the budget, no smaller than without the change if that fits.

    Args:
        search: the search.
        plain: the row without the change.
        found: the size that the search found within the budget.
        largest: the largest that runs.
    """
    larger = plain.recommended_batch_size
    if larger is None or not found < larger <= largest or larger not in search.sizes:
        return found
    trial = search.try_beside(larger, search.steps)
    if trial.status == "ok":
        return search.policy.largest_within_budget(search, largest, at_least=larger)
    if trial.status != "timeout":
        _warn(search, larger, f"not with it within the budget: {trial.message}")
    return found


def confirm_no_less(search: PrecisionSearch, plain: PrecisionResult) -> None:
    """Have the size without the change confirmed too, if less was; say why where less stays.

    The search gives way to a smaller size where the allocator keeps flushing its cache: it may have done so
    here and not there.
    """
    larger, confirmed = plain.recommended_batch_size, search.confirmation.trial
    if larger is None or confirmed is None or confirmed.batch_size >= larger:
        return
    if _is_told(search) or larger not in search.sizes or search.limits.global_batch is not None:
        return
    trial = search.try_beside(larger, search.limits.confirm_steps)
    if trial.leak is not None or trial.status == "timeout":
        return
    if trial.status != "ok":
        _warn(search, larger, f"not with it within the budget: {trial.message}")
    elif trial.steady_alloc_retries > confirmed.steady_alloc_retries:
        _warn(
            search,
            larger,
            f"with it too, but the allocator flushes its cache {trial.steady_alloc_retries} times in the "
            f"last {trial.steps - trial.steps // 2} of {trial.steps} steps there, and "
            f"{confirmed.steady_alloc_retries} times at {confirmed.batch_size:,}",
        )
    else:
        search.confirmation.trial = trial


def warn_of_less(search: PrecisionSearch, plain: PrecisionResult) -> None:
    """Say why less is recommended than without the change, if nothing has said so yet."""
    larger, confirmed = plain.recommended_batch_size, search.confirmation.trial
    if larger is None or confirmed is None or confirmed.batch_size >= larger or _is_told(search):
        return
    found = search.neighbours.found
    why = f"{confirmed.batch_size:,} is the largest that was found with it"
    if found is not None and found.moved_from is not None:
        failed = format_batch_sizes(found.failed)
        why = f"with it {failed}, just below {found.moved_from:,}, did not fit the budget"
    _warn(search, larger, why)


def _is_told(search: PrecisionSearch) -> bool:
    return any(warning.code == _CODE for warning in search.warnings)


def _warn(search: PrecisionSearch, larger: int, why: str) -> None:
    search.warnings.append(
        ReportWarning(
            code=_CODE,
            message=f"{search.name} with {search.remedy}: {search.searched} {larger:,} runs without it, "
            f"and {why}",
        )
    )

"""What a search does differently on a GPU and on a simulated one.

A measured trial costs seconds: the search stops within the tolerance, estimates save trials, and a fresh
process confirms the recommended size. A replay costs milliseconds: both sizes are found exactly, and there is
nothing to time.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING

from bsfind.records import DeviceInfo, ReportWarning
from bsfind.search.accepted_sizes import Multiples
from bsfind.search.bracket import Bracket
from bsfind.search.neighbours import FEWEST, near_below
from bsfind.settings import LARGEST_BATCH_SIZE
from bsfind.trial import Trial
from bsfind.units import format_duration

if TYPE_CHECKING:
    from bsfind.search.precision import PrecisionSearch

_COARSE = 0.005
"""Tolerance of the first round of a search that ends exactly. An estimate is probed from this far: from
nearer, one that is slightly wrong is no help."""

_REPLAYED_STEPS = 6
"""Steps of a replay within the budget: by then most allocators have reached a steady state, or never will."""

_SLOW_S = 30.0
"""Processor time of an exact search in which every size has to be traced, above which it leaves the rest to
the tolerance; seconds. The maximum may take half of it."""

_SLOW_TRACE_S = 2.5
"""Processor time of a trace above which a search that has to trace every size is coarser; seconds."""

_COARSER = 0.02
"""Its tolerance."""

_LONG_S = 25.0
"""Processor time after which such a search ends with what it knows, seconds; so does that of the recommended
size, which begins after it, when it has taken half as long again."""

_NEIGHBOURS_S = 10.0
"""Processor time for the sizes just below the recommended one, seconds."""

_FEW_TRACES = 4
"""Traces that may be needed until other sizes follow from them."""

_FACTORS = (2, 3, 4, 5, 8, 16, 32, 64)
"""Factors that a batch size may have to have to need less memory."""


class Measured:
    """Trials run on a GPU, or each takes as long as if it did.

    Args:
        is_measured: see the attribute.
        tries_smaller: whether smaller sizes are tried too, for their speed and as neighbours of the
            recommended one: where each is a start of the user's command, they are not.

    Attributes:
        is_measured: whether trials run: their times are known, and a process can confirm the answer.
        has_own_processes: whether a trial can have a process with an environment of its own.
        longest_s: processor time of trials after which no further size is tried, where one fits; seconds.
        reductions: shares of a size that are tried where the allocator keeps flushing its cache at it.
    """

    has_own_processes = True
    longest_s = math.inf
    reductions: tuple[float, ...] = (0.98, 0.94, 0.88, 0.82, 0.76)  # one process for each

    def __init__(self, *, is_measured: bool = True, tries_smaller: bool = True) -> None:
        self.is_measured = is_measured
        self._tries_smaller = tries_smaller

    def tolerance(self, asked: float) -> float:
        """Return the tolerance of the search, given the one that was asked for."""
        return asked

    def find_maximum(self, search: PrecisionSearch) -> None:
        """Try sizes until the maximum is known, to within the tolerance."""
        search.try_all(search.bracket)

    def is_proven(self, search: PrecisionSearch) -> bool:
        """Tell whether the answer is what ran: it is."""
        return True

    def is_settled(self, search: PrecisionSearch) -> bool:
        """Try one of the two sizes below the recommended one, and replay the other; tell whether it stays.

        What trials have recorded is replayed at both. The one that runs is the nearest, or the one that does
        not fit according to that.
        """
        if not self._tries_smaller:
            return True

        def below(size: int) -> list[int]:
            near = near_below(size, search.sizes, search.limits.least)[:FEWEST]
            ran = [t.batch_size for t in _within_budget(search) if t.batch_size in near]
            unknown = [n for n in near if n not in ran]
            fitting = search.estimate.that_fit(unknown, search.budget)
            doubted = [n for n in unknown if fitting is not None and n not in fitting]
            asked = (doubted or unknown)[:1]
            search.neighbours.take_in(ran, [n for n in fitting or () if n not in asked])
            return asked

        def run(size: int) -> Trial:
            return search.try_beside(size, search.steps, is_told=True)

        return search.neighbours.settle(below, run)

    def largest_within_budget(
        self, search: PrecisionSearch, largest: int, *, at_least: int = 1
    ) -> int:
        """Return what may be the largest batch size up to `largest` that leaves the headroom.

        Args:
            search: the search.
            largest: the largest that runs.
            at_least: a size that is known to leave it.
        """
        budget = search.budget - search.estimate.shortfall_bytes(search.bracket.trials)
        if search.confirmation.accumulates_from(largest) and search.runner.model is not None:
            budget -= search.runner.model.model_bytes  # the gradients of the micro-batches before
        estimate = search.estimate.within_budget(budget, search.bracket)
        return largest if estimate is None else min(largest, max(at_least, estimate))

    def size_to_confirm(self, search: PrecisionSearch, largest: int) -> int:
        """Find out where throughput saturates; return the size to confirm."""
        if search.axis is not None:
            return largest  # samples per second fall with its size
        if search.limits.objective == "fastest":
            return search.timing.fastest_up_to(largest, search.bracket.trials)
        if self._tries_smaller:
            search.timing.down_from(largest, search.bracket.trials)
        return largest


class Simulated:
    """Trials are replays of traced allocations.

    Attributes: see `Measured`.
    """

    is_measured = has_own_processes = False
    longest_s = 600.0
    reductions: tuple[float, ...] = tuple(1 - percent / 100 for percent in range(1, 25))

    def tolerance(self, asked: float) -> float:
        """Return the tolerance of the first round; a second one is exact."""
        return max(_COARSE, asked)

    def find_maximum(self, search: PrecisionSearch) -> None:
        """Find the maximum, to within the tolerance and then exactly, and have both ends traced.

        Most trials follow from the traces of others, which do not tell whether the model accepts their
        size, nor whether it does there what it does at others. Where a trace says something else than
        what followed, the search goes on with what was traced.
        """
        bracket = search.bracket
        if search.is_check:
            search.try_all(bracket, max(search.steps, search.limits.confirm_steps), exact=True)
            return
        search.try_all(bracket, after_each=lambda: _pace(search))
        _warn_of_end(search)
        if bracket.is_ended or _is_slow(search):
            return
        bracket.be_exact()
        follows = False
        while not any(t.leak or t.status == "timeout" for t in bracket.trials):
            search.try_all(bracket)
            follows = follows or any(trial.traced_steps == 0 for trial in bracket.trials)
            ends = (bracket.best and bracket.best.batch_size, bracket.smallest_failed)
            at_ends = (trial for trial in bracket.trials if trial.batch_size in ends)
            found = next((trial for trial in at_ends if trial.traced_steps == 0), None)
            if found is not None and _is_over(search, found.batch_size):
                return  # the report says that it follows from other sizes
            if found is None:
                if follows or len(bracket.trials) <= _FEW_TRACES or not _goes_on_above(search):
                    return
                continue
            traced = search.try_size(found.batch_size, exact=True)
            if not traced.is_refused and not _are_same(traced, found):
                bracket.forget(lambda trial: trial.traced_steps == 0)
                follows = False
            bracket.record(traced)

    def is_proven(self, search: PrecisionSearch) -> bool:
        """Trace the recommended size; tell whether its steps are as they were replayed."""
        found = search.confirmation.trial
        if found is None or found.traced_steps in (None, found.steps):
            return True
        is_long = (
            _is_slow(search, search.bracket)
            if found.traced_steps
            else _is_over(search, found.batch_size)
        )
        if is_long:
            return True  # the report says how many steps were traced
        traced = search.confirmation.trace(found)
        if traced.status == "timeout" or traced.error_kind == "untraceable":
            return True  # the report says how many steps were traced
        if not _are_same(traced, found):
            return False
        search.confirmation.trial = traced
        return True

    def is_settled(self, search: PrecisionSearch) -> bool:
        """Replay the sizes below the recommended one (see `near_below`); tell whether it stays.

        Where each has to be traced, as many as there is time for.
        """
        steps = _steps_within_budget(search)
        return search.neighbours.settle(
            lambda size: near_below(size, search.sizes, search.limits.least),
            lambda size: search.try_beside(size, steps),
            most_s=_NEIGHBOURS_S,
            each_s=0.0 if _sizes_follow(search) else search.runner.slowest_s,
        )

    def largest_within_budget(
        self, search: PrecisionSearch, largest: int, *, at_least: int = 1
    ) -> int:
        """Return the largest batch size up to `largest` that replays within the budget (see `Measured`)."""
        least = min(max(search.limits.least, at_least), largest)
        found = self._largest_that_replays(search, least, largest, accumulates=False)
        if search.confirmation.accumulates_from(found):
            least = min(search.limits.least, found)
            found = self._largest_that_replays(search, least, found, accumulates=True)
        return found

    def _largest_that_replays(
        self, search: PrecisionSearch, smallest: int, largest: int, *, accumulates: bool
    ) -> int:
        limits, budget = search.limits, search.budget
        bracket = Bracket(
            smallest=smallest,
            largest=largest,
            tolerance=self.tolerance(limits.tolerance),
            estimate=lambda trials: search.estimate.through_peaks(trials, budget),
            first=search.estimate.through_peaks(search.bracket.trials, budget) or largest,
            sizes=search.sizes,
        )
        steps = _steps_within_budget(search)
        if _is_slow(search) and not accumulates:  # replays of what was traced take no time
            for trial in sorted(search.bracket.trials, key=lambda trial: -trial.batch_size):
                if trial.status == "ok" and smallest <= trial.batch_size <= largest:
                    bracket.record(search.confirmation.run(trial.batch_size, steps))
                    if bracket.best is not None:
                        break
        for is_exact in (False, True):
            if is_exact:
                if _is_slow(search, bracket):
                    break
                bracket.be_exact()
            while (batch_size := bracket.next()) is not None:
                search.report_progress("trying", batch_size)
                trial = search.confirmation.run(batch_size, steps, accumulates=accumulates)
                bracket.record(trial)
                if not is_exact:
                    _coarsen(search, bracket)
                if bracket.best is not None and _is_over(search, times=1.5):
                    break
        return smallest if bracket.best is None else bracket.best.batch_size

    def size_to_confirm(self, search: PrecisionSearch, largest: int) -> int:
        """Return the size to confirm: the largest, since nothing runs that could be timed."""
        if search.limits.objective == "fastest":
            search.warnings.append(_SPEED_UNKNOWN)
        return largest


def _steps_within_budget(search: PrecisionSearch) -> int:
    """Return the steps of a replay within the budget."""
    return max(search.steps, min(search.limits.confirm_steps, _REPLAYED_STEPS))


def _within_budget(search: PrecisionSearch) -> list[Trial]:
    """Return the trials that ran, on the whole device, and stayed within the budget."""
    return [
        trial
        for trial in (*search.bracket.trials, *search.timing.trials)
        if trial.status == "ok"
        and (trial.peak_reserved_bytes or search.budget + 1) <= search.budget
    ]


def _sizes_follow(search: PrecisionSearch) -> bool:
    """Tell whether other sizes follow from traces that were made, and take no time."""
    follows = any(trial.traced_steps == 0 for trial in search.bracket.trials)
    return follows or search.runner.sizes_follow


def _pace(search: PrecisionSearch) -> None:
    """Look after each trial whether traces take long (see `_try_small` and `_coarsen`)."""
    _try_small(search)
    _coarsen(search, search.bracket)


def _coarsen(search: PrecisionSearch, bracket: Bracket) -> None:
    """Let a bracket be coarser where every size has to be traced and that takes long; in time, end it."""
    trials = search.bracket.trials
    if _sizes_follow(search):
        return
    if len(trials) >= _FEW_TRACES and search.runner.slowest_s > _SLOW_TRACE_S:
        bracket.be_coarse(_COARSER)
    if (
        bracket is not search.bracket
        or bracket.best is None
        or not _is_over(search, LARGEST_BATCH_SIZE)
    ):
        return
    following = copy.copy(bracket).next()  # asking counts as a probe
    if following is not None and _is_over(search, following):
        bracket.end()


def _try_small(search: PrecisionSearch) -> None:
    """Try small sizes once a large one has taken long to trace.

    The first of them may be the trace that others need to follow from, and the second one tells whether they
    do: a trace of a larger size may take longer yet.
    """
    bracket, trials = search.bracket, search.bracket.trials
    if len(trials) != 2 or search.runner.slowest_s <= _SLOW_TRACE_S:
        return
    small, large = sorted(trial.batch_size for trial in trials)
    for times in (2, 3):
        size = search.sizes.above(times * small)
        if size < large and all(trial.batch_size != size for trial in bracket.trials):
            before = search.runner.busy_s
            bracket.record(search.try_size(size))
            if search.runner.busy_s - before > search.runner.slowest_s / 2:
                return  # small sizes take as long


def _is_over(search: PrecisionSearch, size: int = 1, *, times: float = 1.0) -> bool:
    """Tell whether traces of a search, of which each takes long, take too long with that of a size."""
    runner = search.runner
    longer = runner.slowest_s * max(0.0, size / runner.slowest_size - 1.0)
    return runner.slowest_s > _SLOW_TRACE_S and runner.busy_s + longer > times * _LONG_S


def _warn_of_end(search: PrecisionSearch) -> None:
    """Say that sizes were left out, and why."""
    best, failed = search.bracket.best, search.bracket.smallest_failed
    if best is None or not search.bracket.is_ended:
        return
    where = f"above {best.batch_size}"
    if failed is not None:
        where = f"between {best.batch_size} and {failed}"
    search.warnings.append(
        ReportWarning(
            code="trial_timeout",
            message=f"{search.name}: a {search.searched} {where} was not tried: every one has to be traced, "
            f"and a trace takes up to {format_duration(search.runner.slowest_s)}",
            hint="`check` tries any other size",
        )
    )


def _is_slow(search: PrecisionSearch, bracket: Bracket | None = None) -> bool:
    """Tell whether an exact search takes long, and sizes do not follow from those that were traced.

    A search whose batches vary counts as such: each size is traced by itself, with other batches.

    Args:
        search: the search.
        bracket: what is to be halved to its end; None: that of the search.
    """
    most_s = _SLOW_S if bracket is not None else _SLOW_S / 2
    bracket = bracket or search.bracket
    if any(trial.batches is not None for trial in search.bracket.trials):
        return True
    follows = _sizes_follow(search)
    if follows or bracket.best is None or bracket.smallest_failed is None:
        return search.runner.busy_s > most_s and not follows
    halvings = math.log2(max(1, bracket.smallest_failed - bracket.best.batch_size))
    each = search.runner.busy_s / len(search.bracket.trials)
    return search.runner.busy_s + halvings * each > most_s


def _goes_on_above(search: PrecisionSearch) -> bool:
    """Look whether sizes above the maximum fit again, multiples of some number; narrow the search to those.

    Memory of a step whose sizes do not follow from each other may depend on more than how large the batch
    is: on whether it is odd, say.
    """
    bracket, sizes, failed = search.bracket, search.sizes, search.bracket.smallest_failed
    if failed is None or bracket.best is None or not isinstance(sizes.form, Multiples):
        return False
    for factor in _FACTORS:
        unit = math.lcm(sizes.form.of, factor)
        size = Multiples(unit).above(failed)
        if failed % unit == 0 or size > search.limits.most:
            continue
        trial = search.try_size(size, exact=True)
        if trial.status != "ok":
            continue
        search.warnings.append(
            ReportWarning(
                code="memory_not_monotonic",
                message=f"{search.name}: {search.searched} {failed} runs out of memory, {size} fits: "
                f"memory does not grow steadily with it; only multiples of {unit} were searched",
                hint="`check` tries any other size",
            )
        )
        sizes.form = Multiples(unit)
        break
    else:
        return False
    bracket.forget(lambda trial: trial.batch_size not in sizes.form)
    bracket.record(trial)
    return True


def _are_same(traced: Trial, found: Trial) -> bool:
    return dataclasses.replace(found, traced_steps=traced.traced_steps) == traced


_SPEED_UNKNOWN = ReportWarning(
    code="speed_unknown",
    message="a prediction knows no speed: the largest batch size is recommended, not the fastest",
)

Policy = Measured | Simulated


def policy_for(device: DeviceInfo, *, is_launched: bool = False) -> Policy:
    """Return how trials on a device are used: of bsfind's own steps, or of a command that is launched."""
    is_measured = device.kind == "cuda"
    if is_launched:
        return Measured(is_measured=is_measured, tries_smaller=False)
    return Measured() if is_measured else Simulated()

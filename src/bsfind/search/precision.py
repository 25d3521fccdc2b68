"""The search in one precision: asks the bracket what to try, has it tried, confirms the answer."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Callable

from bsfind.errors import BsfindError, NoDeviceError, TargetError, TimeLimitError, WorkerError
from bsfind.records import DeviceInfo, ReportWarning
from bsfind.results import ExpandableSegments, PrecisionResult, PredictedPeaks, ResultStatus
from bsfind.search import beside_plain
from bsfind.search.accepted_sizes import AcceptedSizes
from bsfind.search.axis import trial_on
from bsfind.search.bracket import FIRST_BATCH_SIZE, Bracket
from bsfind.search.confirm import Confirmation
from bsfind.search.estimate import Estimate
from bsfind.search.events import Events, Progress
from bsfind.search.fragmentation import try_expandable_segments
from bsfind.search.neighbours import Neighbours
from bsfind.search.odd_memory import odd_memory
from bsfind.search.policy import Policy
from bsfind.search.recommend import is_fragmented
from bsfind.search.report_builder import PrecisionState, result_of
from bsfind.search.throughput import Timing
from bsfind.search.trials import Trials
from bsfind.search.variants import row_name, variables_of
from bsfind.settings import FIRST_SIZE_OF_AXIS, Settings
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.trial import Trial
from bsfind.units import format_duration
from bsfind.worker.client import ModelDoesNotFit

_LEAK_HINT = (
    "look for a list, attribute or metric that keeps tensors (losses with their graph, say) from step "
    "to step; keep `loss.detach()` or `loss.item()` instead. If it is a cache of many batches, "
    "`--steps` above their number shows that it fills up"
)

_OTHER_REASONS = {
    "kernel_limit": "failed for another reason than memory",
    "untraceable": "cannot be traced, smaller ones can",
}
"""What trials say that fail for other reasons than memory, by their `error_kind`."""

_by_size = operator.attrgetter("batch_size")

Predict = Callable[[str, int | None], PrecisionResult | None]
"""Returns what is predicted for a precision at one of several lengths; None without a prediction."""


class PrecisionSearch:
    """Finds the largest and the recommended batch size in one precision.

    Args:
        precision: the precision (never `amp`).
        settings: what to run.
        device: the device as the first worker found it.
        runner: runs the trials.
        policy: what differs between a GPU and a simulated one.
        events: receives progress and trials; `result` is up to date after each trial.
        plain: of a row of `--compare`: the row without the change (see `beside_plain`).

    Attributes:
        seq_len: which of several lengths it is at; None where there are not several.
        name: what the search is called in messages.
        axis: what is searched instead of the batch size; None: the batch size is.
        searched: the name of the number that is searched.
        is_check: whether one size is tried, and nothing is searched.
        remedy: what `--compare` changes; None: the model is as asked for.
        policy: what differs between a GPU and a simulated one.
        steps: optimizer steps of a trial.
        budget: bytes that the recommended size may use.
        bracket: what is known of the maximum.
        estimate: where the bracket probes.
        confirmation: what is known of the recommended size.
        neighbours: whether the sizes just below the recommended one run too.
        timing: trials that run for their speed alone.
        warnings: what the search warns of; `all_warnings` has those of the confirmation too.
        error: the failure of the user's code or of the worker that ended the search; None without one.
    """

    def __init__(
        self,
        precision: str,
        settings: Settings,
        device: DeviceInfo,
        runner: Trials,
        policy: Policy,
        events: Events,
        *,
        plain: PrecisionResult | None = None,
    ) -> None:
        limits = settings.limits
        self.precision = precision
        self.seq_len = settings.seq_len
        self.name = row_name(precision, self.seq_len)
        self.axis = settings.workload.axis
        self.searched = settings.workload.searched
        self.is_check = settings.batch_size is not None
        self.remedy = settings.remedy
        self.limits = limits
        self._world_size = settings.parallel.world_size
        self.steps = limits.steps
        self._exact = False
        self.runner = runner
        self._settings = settings
        self._device = device
        self.policy = policy
        self._events = events
        self._plain = plain
        self._capacity = device.capacity_bytes
        self.budget = limits.headroom.leaves(self._capacity)
        self._allocator = AllocatorSettings.from_environment(
            {**os.environ, **variables_of(settings.remedy, os.environ)},
            torch_version=device.torch_version or "",
        )
        self._begin(None)
        self._expandable_segments: ExpandableSegments | None = None
        self._status: ResultStatus = "unfinished"
        self._message: str | None = None
        self.error: BsfindError | None = None
        self._is_out_of_time = False
        self.warnings: list[ReportWarning] = []

    def _begin(self, predicted: PrecisionResult | None) -> None:
        """Make the bracket, around what is predicted, and what is to come after it."""
        self._predicted: PrecisionResult | None = predicted
        self.sizes = AcceptedSizes(
            1 if self.is_check else self.limits.multiple_of, is_of_axis=self.axis is not None
        )
        if predicted is not None:
            self.sizes.assume(predicted.refused_sizes)
        self.estimate = Estimate(
            *(self._capacity, self.runner.recordings, self._allocator, predicted),
            self.runner.check_time,
            is_of_axis=self.axis is not None,
        )
        only = self._settings.batch_size
        self.bracket = Bracket(
            smallest=only or self.limits.least,
            largest=only or self.limits.most,
            tolerance=self.policy.tolerance(self.limits.tolerance),
            estimate=self.estimate.maximum,
            expected=self.estimate.expected,
            sizes=self.sizes,
            first=FIRST_BATCH_SIZE if self.axis is None else FIRST_SIZE_OF_AXIS,
            is_of_axis=self.axis is not None,
        )
        self.confirmation = Confirmation(
            self.name,
            self.limits,
            self.sizes,
            self.budget,
            self.runner,
            lambda batch_size: self.report_progress("confirming", batch_size),
            is_everything=self.budget == self._capacity,
            reductions=self.policy.reductions,
            exact=self._exact,
            searched=self.searched,
            world_size=self._world_size,
        )
        self.neighbours = Neighbours(
            self.confirmation, self.sizes, self.limits.least, lambda: self.runner.busy_s
        )
        self.timing = Timing(self.limits, self.sizes, self._time)

    def run(self, predict: Predict | None = None) -> PrecisionResult:
        """Search to the end, and return the result.

        Failures of the user's code are part of the result (and `error`).

        Args:
            predict: asked, once the model is loaded, for what a prediction says of this precision.

        Raises:
            TimeLimitError: the time budget of the whole search is spent.
            BsfindError: a device that went away, or a bug in bsfind.
        """
        try:
            self._search(predict)
        except ModelDoesNotFit as answer:
            self._status = "nothing_fits"
            self._message = f"the model alone does not fit: {answer}"
        except (TargetError, WorkerError) as error:
            self._fail(error)
        except TimeLimitError:
            self._is_out_of_time = True
            raise
        except BsfindError as error:
            self._fail(error)
            # A setting of `--compare` with which the device cannot be opened ends its own row only.
            if self.remedy is None or not isinstance(error, NoDeviceError):
                raise
        return self.result

    def _fail(self, error: BsfindError) -> None:
        self._status, self._message, self.error = "error", error.message, error

    def _search(self, predict: Predict | None) -> None:
        self.report_progress("loading")
        self.runner.load()
        self._begin(predict(self.precision, self.seq_len) if predict is not None else None)
        self._find_sizes()
        is_settled = False
        while not is_settled:
            while not self.policy.is_proven(self):
                # Later steps are unlike those that stood for them, or sizes unlike those they follow from.
                self._exact = self.steps >= self.limits.confirm_steps
                self.steps = max(self.steps, self.limits.confirm_steps)
                self._begin(self._predicted)
                self._find_sizes()
            is_settled = self.is_check or self.policy.is_settled(self)
        self._raise_leak()
        self._finish()

    def _find_sizes(self) -> None:
        self.policy.find_maximum(self)
        self._raise_refusal()
        if self._plain is not None:
            beside_plain.try_maximum(self, self._plain)
        if self.bracket.best is not None and not self.is_check:
            self._find_recommendation(self.bracket.best.batch_size)

    def try_all(
        self,
        bracket: Bracket,
        steps: int | None = None,
        *,
        exact: bool = False,
        after_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Try what the bracket asks for, until it has its answer or memory leaks.

        Args:
            bracket: asks for sizes, and gets their trials.
            steps: optimizer steps of a trial; None: as always.
            exact: whether a prediction traces each of them (see `base.Device.run_trial`).
            after_each: called after each trial, before the next size is chosen.
        """
        while (batch_size := bracket.next()) is not None:
            self.report_progress("trying", batch_size)
            trial = self.try_size(batch_size, steps, exact=exact)
            bracket.record(trial)
            self.tell(trial)
            if trial.leak is not None:
                return
            after_each()

    def try_size(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        """Run a trial (see `try_all`); one that takes too long is an answer too.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        if self.bracket.best is not None and self.runner.busy_s > self.policy.longest_s:
            message = f"tracing has taken {format_duration(self.policy.longest_s)}"
            return self._given_up(batch_size, message, "`check` tries any other size")
        try:
            return self.runner.run(batch_size, steps or self.steps, exact=exact or self._exact)
        except TimeLimitError as error:
            self.runner.check_time()
            return self._given_up(batch_size, error.message, error.hint)

    def _given_up(self, batch_size: int, message: str, hint: str) -> Trial:
        self.warnings.append(
            ReportWarning(
                code="trial_timeout",
                message=f"{self.name}: {self.searched} {batch_size} was given up: {message}",
                hint=hint,
            )
        )
        return Trial(batch_size=batch_size, status="timeout", message=message)

    def _find_recommendation(self, largest: int) -> None:
        if any(trial.leak for trial in self.bracket.trials):
            return
        size = largest
        if self.budget < self._capacity:
            size = self.policy.largest_within_budget(self, largest)
            if self._plain is not None:
                size = beside_plain.largest_within_budget(self, self._plain, size, largest)
        self.confirmation.confirm(self.policy.size_to_confirm(self, size))
        if self._plain is not None:
            beside_plain.confirm_no_less(self, self._plain)
        if self.confirmation.trial is not None:
            self.tell(self.confirmation.trial)

    def try_beside(self, batch_size: int, steps: int, *, is_told: bool = False) -> Trial:
        """Run a trial of a size near the recommended one, within the budget.

        Args:
            batch_size: the size.
            steps: optimizer steps.
            is_told: whether the user sees that it ran.
        """
        self.report_progress("confirming", batch_size)
        trial = self.confirmation.run_beside(batch_size, steps)
        if is_told:
            self.tell(trial)
        return trial

    def _time(self, batch_size: int, steps: int) -> Trial:
        self.report_progress("timing", batch_size)
        trial = self.try_size(batch_size, steps)
        self.tell(trial)
        return trial

    def tell(self, trial: Trial) -> None:
        """Show the user that a trial ran."""
        self._events.trial(self.name, trial_on(self.axis, trial))

    def look_at_fragmentation(self) -> None:
        """Try expandable segments if much of the memory is reserved and not allocated.

        Raises:
            TimeLimitError: the time budget of the whole search is spent.
        """
        confirmed, limits = self.confirmation.trial, self.limits
        if not self.policy.has_own_processes or self._allocator.expandable_segments:
            return  # `--compare expandable-segments` predicts what they gain
        if confirmed is None or self.axis is not None:
            return
        if limits.objective != "largest" or limits.global_batch is not None:
            return  # memory does not decide
        if not is_fragmented(confirmed.peak_allocated_bytes, confirmed.peak_reserved_bytes):
            return
        self.report_progress("defragmenting", confirmed.batch_size)
        self._expandable_segments = try_expandable_segments(
            self.runner,
            confirmed,
            limits,
            self.sizes,
            self.budget,
            self._device.torch_version or "",
        )

    def _raise_refusal(self) -> None:
        """Raise what the user's code said first if it refused sizes or delivered less, and none ran."""
        trials = self.bracket.trials
        refused = [t.batch_size for t in trials if t.error_kind in ("refused", "short_batch")]
        if self.bracket.best is not None or not refused:
            return
        first = self.runner.refusals[refused[0]]
        out_of_memory = [t.batch_size for t in trials if t.status == "oom"]
        tried = "; ".join(
            f"{', '.join(map(str, sizes))} {singular if len(sizes) == 1 else plural}"
            for singular, plural, sizes in (
                ("fails too", "fail too", refused[1:]),
                ("runs out of memory", "run out of memory", out_of_memory),
            )
            if sizes
        )
        if not tried:
            raise first
        if not out_of_memory and len({t.message for t in trials if t.is_refused}) == 1:
            raise first  # whatever the size
        others = "batch sizes" if self.axis is None else "sizes"
        detail = f"{first.detail}\n\nOther {others} were tried: {tried}."
        raise type(first)(first.message, detail=detail, hint=first.hint)

    def _raise_leak(self) -> None:
        """Raise TargetError if memory grew from step to step: no batch size would last."""
        leaking = self._leaking
        if leaking is not None:
            raise TargetError(
                f"{leaking.message}, at {self.searched} {leaking.batch_size}",
                detail=f"If it is a leak, no {self.searched} lasts.",
                hint=_LEAK_HINT,
            )

    @property
    def _leaking(self) -> Trial | None:
        ran = (self.confirmation.leaking, *self.bracket.trials, *self.timing.trials)
        return next((trial for trial in ran if trial is not None and trial.leak is not None), None)

    def _finish(self) -> None:
        trials = self.bracket.trials
        if self.bracket.best is not None:
            self._status = "ok"
        elif any(trial.status == "timeout" for trial in trials):
            self._message = f"no {self.searched} ran in the time that was given"
        else:
            self._status = "nothing_fits"
            self._message = self._why_nothing_runs()
        self.warnings += odd_memory(self)
        if self._plain is not None:
            beside_plain.warn_of_less(self, self._plain)
        for kind, what in _OTHER_REASONS.items():
            failed = min((t for t in trials if t.error_kind == kind), key=_by_size, default=None)
            if failed is not None:
                refusal = self.runner.refusals.get(failed.batch_size)
                self.warnings.append(
                    ReportWarning(
                        code=kind,
                        message=f"{self.name}: {self.searched} {failed.batch_size:,} {what}: "
                        f"{failed.message}",
                        hint=refusal.hint if refusal is not None else None,
                    )
                )

    def _why_nothing_runs(self) -> str:
        """Return why no batch size ran: the smallest that failed, and that batch norm refuses one sample."""
        trials = self.bracket.trials
        refusal = next((t for t in trials if t.error_kind == "batch_norm"), None)
        failed = [t for t in trials if t is not refusal]
        if not failed:
            assert refusal is not None
            return f"{refusal.message}; 2 is the smallest to try"
        smallest = min(failed, key=lambda trial: trial.batch_size)
        text = f"{self.searched} {smallest.batch_size} does not run: {smallest.message}"
        others = sorted(trial.batch_size for trial in failed if trial is not smallest)
        if others:
            text += f"; nor do the others that were tried: {', '.join(f'{n:,}' for n in others)}"
        return text if refusal is None else f"{text}; {refusal.message}"

    def report_progress(self, doing: str, batch_size: int | None = None) -> None:
        """Report what is done next."""
        trials, best = self.bracket.trials, self.bracket.best
        self._events.progress(
            Progress(
                precision=self.name,
                doing=doing,
                batch_size=batch_size,
                best=best.batch_size if best else None,
                failed=self.bracket.smallest_failed,
                trials=len(trials),
                out_of_memory=sum(trial.status == "oom" for trial in trials),
            )
        )

    @property
    def all_warnings(self) -> list[ReportWarning]:
        """What the reader of the result must know."""
        return [*self.warnings, *self.confirmation.warnings]

    @property
    def result(self) -> PrecisionResult:
        """What is known so far."""
        bracket, confirmation = self.bracket, self.confirmation
        predicted, model = self._predicted, self.runner.model
        found = PrecisionResult(
            precision=self.precision,
            remedy=self.remedy,
            seq_len=self.seq_len,
            status=self._status,
            is_maximum_proven=bracket.is_proven,
            smallest_failed_batch_size=bracket.smallest_failed,
            confirmation=confirmation.trial,
            expandable_segments=self._expandable_segments,
            global_batch=confirmation.global_batch,
            neighbours=self.neighbours.found,
            refused_sizes=self.sizes.found() or (predicted.refused_sizes if predicted else None),
            trials=bracket.trials,
            timings=tuple(self.timing.trials),
            predicted=_peaks_of(predicted),
            message=self._message,
            weights_dtype=model.weights_dtype if model else None,
        )
        return result_of(
            PrecisionState(
                found=found,
                settings=self._settings,
                device=self._device,
                leaking=self._leaking,
                is_out_of_time=self._is_out_of_time,
                has_failed=confirmation.has_failed,
                has_failed_late=confirmation.has_failed_late,
                smallest_useful=self.sizes.above(self.limits.least - 1),
            )
        )


def _peaks_of(predicted: PrecisionResult | None) -> PredictedPeaks | None:
    if predicted is None or predicted.max_batch_size is None:
        return None
    names = [field.name for field in dataclasses.fields(PredictedPeaks)]
    return PredictedPeaks(**{name: getattr(predicted, name) for name in names})

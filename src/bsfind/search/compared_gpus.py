"""A list of simulated GPUs, one after the other: a report of each, and the smallest that is large enough."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bsfind import __version__
from bsfind.errors import BsfindError, InternalError
from bsfind.option_fields import SETTINGS, arguments_of
from bsfind.records import ReportWarning
from bsfind.results import SCHEMA_VERSION, Recommendation, Report, ReportStatus
from bsfind.search.events import Events, Progress
from bsfind.search.finder import Finder
from bsfind.search.time_budget import TimeBudget
from bsfind.settings import Settings
from bsfind.simulation.gpus.catalogue import find_gpu
from bsfind.trial import Trial
from bsfind.units import format_duration

_NUMBERS = re.compile(r"[0-9][0-9.,\s]*")

_FEW = 6
"""So many GPUs are named; of more, the first."""


def listed(labels: Sequence[str]) -> str:
    """Return names of GPUs as a sentence has them."""
    if len(labels) <= _FEW:
        return ", ".join(labels)
    return f"{', '.join(labels[: _FEW - 1])} and {len(labels) - _FEW + 1} others"


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """What was found on one GPU of a list.

    Attributes:
        gpu: its key in the catalogue, or its size in bytes.
        report: as a search on it alone would have it.
        errors: what left the search without an answer.
    """

    gpu: str
    report: Report
    errors: tuple[BsfindError, ...] = ()

    @property
    def label(self) -> str:
        """What rows and sentences call the GPU: what `--gpu` takes."""
        gpu = find_gpu(self.gpu)
        return gpu.name if gpu.generic else gpu.key

    @property
    def name(self) -> str:
        """The name that torch reports."""
        return find_gpu(self.gpu).name

    @property
    def total_bytes(self) -> int | None:
        """The memory of the GPU."""
        device = self.report.device
        return device.total_bytes if device is not None else find_gpu(self.gpu).total_bytes


@dataclass(frozen=True, kw_only=True)
class ComparedGpus:
    """What one `run` with a list of GPUs found out. `to_json` returns the public document.

    Attributes:
        command: the command line.
        reproduce: the shortest one that asks for the same.
        cards: what was found on each GPU that was tried, the one with the least memory first.
        not_tried: keys of those that were not.
        fail_under: the smallest size that is enough; None: any that is recommended.
        stopped_by: what ended the search from outside: `interrupted`, say; None: nothing did.
        duration_s: seconds since the start.
    """

    command: tuple[str, ...]
    reproduce: str
    cards: tuple[GpuReport, ...]
    not_tried: tuple[str, ...]
    fail_under: int | None
    stopped_by: str | None
    duration_s: float

    @property
    def simulated(self) -> bool:
        """Whether the figures are predicted: they are."""
        return True

    @property
    def status(self) -> ReportStatus:
        """`failed` if no GPU has an answer; `partial` if more was to be tried."""
        found = {card.report.status for card in self.cards}
        if self.stopped_by or self.not_tried or "partial" in found:
            return "partial"
        return "failed" if found == {"failed"} else "complete"

    @property
    def message(self) -> str | None:
        """Why the search is not complete, or has no answer."""
        said = (card.report.message for card in self.cards if card.report.status == self.status)
        return None if self.status == "complete" else self.stopped_by or next(said, None)

    @property
    def warnings(self) -> tuple[ReportWarning, ...]:
        """What the reader must know, those that differ in numbers alone once."""
        said: dict[tuple[str, str | None], list[tuple[str, str]]] = {}
        for card in self.cards:
            for warning in card.report.warnings:
                kind = (warning.code, warning.hint)
                said.setdefault(kind, []).append((card.label, warning.message))
        return tuple(
            ReportWarning(code=code, message=message, hint=hint)
            for (code, hint), pairs in said.items()
            for message in self.told_once(pairs)
        )

    def told_once(self, said: Iterable[tuple[str, str]]) -> list[str]:
        """Return what is said of GPUs, what differs in numbers alone once: `t4: 5 …; likewise on l4, a10g`.

        Args:
            said: labels of GPUs, and a text about each.
        """
        alike: dict[str, list[tuple[str, str]]] = {}
        for label, text in said:
            alike.setdefault(_NUMBERS.sub("0", text), []).append((label, text))
        found = []
        for pairs in alike.values():
            first = pairs[0][1]
            on = [label for label, text in pairs if text == first]
            others = list(dict.fromkeys(label for label, text in pairs if text != first))
            where = "" if len(on) == len(self.cards) else f"{listed(on)}: "
            found.append(f"{where}{first}" + (f"; likewise on {listed(others)}" if others else ""))
        return found

    @property
    def smallest(self) -> GpuReport | None:
        """The GPU with the least memory that has a recommended size which is large enough."""
        return next((card for card in self.cards if self._is_enough(card)), None)

    @property
    def smallest_without_accumulation(self) -> GpuReport | None:
        """The one of them that reaches the global batch in one step; None without such a batch, or a GPU."""
        for card in filter(self._is_enough, self.cards):
            chosen = card.report.recommendation
            if chosen and chosen.global_batch and chosen.global_batch.accumulation_steps == 1:
                return card
        return None

    def _is_enough(self, card: GpuReport) -> bool:
        chosen: Recommendation | None = card.report.recommendation
        return chosen is not None and chosen.size >= (self.fail_under or 1)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document: `cards` are reports as searches on one GPU write them."""
        return {
            "kind": "gpus",
            "schema_version": SCHEMA_VERSION,
            "bsfind_version": __version__,
            "status": self.status,
            "simulated": self.simulated,
            "command": list(self.command),
            "reproduce": self.reproduce,
            "fail_under": self.fail_under,
            "smallest": self.smallest.gpu if self.smallest else None,
            "cards": [{"gpu": card.gpu, **card.report.to_json()} for card in self.cards],
            "not_tried": list(self.not_tried),
            "message": self.message,
            "duration_s": round(self.duration_s, 3),
        }


class GpusFinder:
    """Runs what the settings ask for on each GPU.

    Every GPU has workers of its own: libraries keep what they have found out about the GPU of their process.

    Args:
        settings: what to run, on the GPU with the least memory first.
        command: the command line, for the reports.
        events: receives what happens; `report` is up to date after each trial.
        fail_under: the smallest size that is enough.

    Attributes:
        stopped_by: what ended it from outside, for the report: `interrupted`, say.
    """

    def __init__(
        self,
        settings: Sequence[Settings],
        *,
        command: Sequence[str] = (),
        events: Events | None = None,
        fail_under: int | None = None,
    ) -> None:
        self._settings = tuple(settings)
        self._command = tuple(command)
        self._events = events or Events()
        self._fail_under = fail_under
        limits = self._settings[0].limits
        self._clock = TimeBudget(limits.trial_timeout_s, limits.time_budget_s)
        self._done: list[GpuReport] = []
        self._finder = self._finder_of(0)
        self.stopped_by: str | None = None

    def run(self) -> ComparedGpus:
        """Search to the end (see `Finder.run`)."""
        while True:
            self._finder.run()
            number = len(self._done) + 1
            if number == len(self._settings) or self._clock.is_spent:
                return self.report
            self._done, self._finder = [*self._done, self._found], self._finder_of(number)

    def _finder_of(self, number: int) -> Finder:
        return Finder(
            self._settings[number],
            command=self._command,
            events=_OnOneGpu(self._events, self._key(number), self._place(number)),
            clock=self._clock,
        )

    def _key(self, number: int) -> str:
        gpu = self._settings[number].device.gpu
        assert gpu is not None
        return gpu

    def _place(self, number: int) -> str:
        """Return which of the GPUs it is, and how long the search may still take."""
        place = f"{number + 1} of {len(self._settings)}"
        if number:
            left_s = self._clock.elapsed_s / number * (len(self._settings) - number)
            place += f", {format_duration(round(left_s) or 1)} left"
        return place

    @property
    def _found(self) -> GpuReport:
        """What is known of the GPU that is searched."""
        finder = self._finder
        finder.stopped_by = self.stopped_by
        key = self._key(len(self._done))
        return GpuReport(gpu=key, report=finder.report, errors=tuple(finder.errors))

    @property
    def errors(self) -> list[BsfindError]:
        """What left every GPU without an answer; and bugs."""
        report = self.report
        found = [error for card in report.cards for error in card.errors]
        if any(card.report.status != "failed" for card in report.cards):
            return [error for error in found if isinstance(error, InternalError)]
        return found

    @property
    def report(self) -> ComparedGpus:
        """What is known so far."""
        cards = [*self._done, self._found]
        keys = [self._key(number) for number in range(len(self._settings))]
        first = self._settings[0]
        device = dataclasses.replace(first.device, gpu=SETTINGS["gpu"].kind.write(keys))
        asked = dataclasses.replace(first, device=device)
        return ComparedGpus(
            command=self._command,
            reproduce=shlex.join(["bsfind", *arguments_of(asked)]),
            cards=tuple(cards),
            not_tried=tuple(keys[len(cards) :]),
            fail_under=self._fail_under,
            stopped_by=self.stopped_by,
            duration_s=self._clock.elapsed_s,
        )


class _OnOneGpu(Events):
    """Tells which GPU it is that something happens on."""

    def __init__(self, events: Events, gpu: str, place: str) -> None:
        self._events = events
        self._gpu = gpu
        self._place = place

    def progress(self, progress: Progress) -> None:
        """Called before each step."""
        name = f"{self._gpu} ({self._place}) {progress.precision}"
        self._events.progress(dataclasses.replace(progress, precision=name))

    def trial(self, precision: str, trial: Trial) -> None:
        """Called after each trial."""
        self._events.trial(f"{self._gpu} {precision}", trial)

    def output(self, line: str) -> None:
        """Called with every line that the user's code prints."""
        self._events.output(line)

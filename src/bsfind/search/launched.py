"""Runs the trials of a launched command: the command once for each, with the batch size filled in."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bsfind.errors import BsfindError, TargetError
from bsfind.failures.leaks import STEPS_DIFFER
from bsfind.inputs import InputSpec
from bsfind.launch.limiting_rank import ranks_assumption, unequal_ranks
from bsfind.launch.outcome import (
    Outcome,
    check_device,
    outcome_of,
    recording_of,
    trains_the_same,
)
from bsfind.launch.placeholders import fill, trackers_off
from bsfind.launch.ranks import Asked, run_command
from bsfind.launch.records import RankRecord
from bsfind.parallel import GRAD_ACCUM
from bsfind.records import Assumption, DeviceInfo, ModelInfo, OutputMemory, ReportWarning, record_of
from bsfind.search.time_budget import TimeBudget
from bsfind.settings import DeviceChoice, Launch, SearchLimits
from bsfind.simulation.allocator.recording import Recording
from bsfind.trial import Trial

_ALIKE = 4
"""Failures with the same message after which no other size is tried: each takes a start of the command."""


class LaunchedTrials:
    """Runs trials of one variant of a command; every trial is a fresh process (see `trials.Trials`).

    Args:
        launch: the command.
        name: of the variant.
        limits: how many steps a trial has.
        device: the device as a worker found it.
        choice: the GPU to simulate, if it is simulated.
        clock: how long trials may take.
        logs: folder for what the trials print.
        found: file in which rank 0 tells what it trains, where the command is bsfind's own; None: it is not.
        on_line: called with every line of it, in a thread.
        on_warning: called with what the reader of the report must know.
    """

    left_over: None = None
    model: ModelInfo | None = None
    inputs: tuple[InputSpec, ...] = ()
    output: OutputMemory | None = None
    busy_s = 0.0
    slowest_s = 0.0
    slowest_size = 1
    sizes_follow = False

    def __init__(
        self,
        launch: Launch,
        name: str,
        limits: SearchLimits,
        device: DeviceInfo,
        choice: DeviceChoice,
        clock: TimeBudget,
        *,
        logs: Path,
        found: Path | None = None,
        on_line: Callable[[str], object],
        on_warning: Callable[[ReportWarning], object],
    ) -> None:
        self._launch = launch
        self._name = name
        self._steps = limits.steps
        self._device = device
        self._clock = clock
        self._logs = logs
        self._on_line = on_line
        self._on_warning = on_warning
        self._count = 0
        self._ran: dict[int, RankRecord] = {}
        self._messages: list[str] = []
        self._are_unequal = False
        self._capacities: dict[int, int] = {}
        self._gpu = choice.to_message() if choice.is_simulated else None
        self._found = found
        self._of_command: tuple[Assumption, ...] = ()
        if found is None:
            self._of_command = _assumptions(launch, is_simulated=choice.is_simulated)
        self.assumptions = self._of_command
        self.nccl_bytes: int | None = None
        self.convolution_workspaces: str | None = None
        self._micro_batches = 1
        self.recordings: dict[int, Recording] = {}
        self.refusals: dict[int, BsfindError] = {}

    def load(self) -> None:
        """Do nothing: every trial starts anew."""

    def run(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        """Run the command on the whole device (see `Trials.run`)."""
        steps = steps or self._steps
        capacity = self._device.capacity_bytes
        outcome = self._try(
            batch_size, Asked(steps=steps, limit_bytes=capacity, record=True, gpu=self._gpu)
        )
        record = outcome.record
        if outcome.trial.error_kind == "refused":
            self._give_up_if_alike(outcome)
        if outcome.trial.status != "ok" or record is None:
            return outcome.trial
        same = min((n for n, r in self._ran.items() if trains_the_same(r, record)), default=None)
        if same is not None and same != batch_size:
            return self._same(same, batch_size)
        self._ran[batch_size] = record
        recording = recording_of(record, batch_size)
        if recording is not None:
            self.recordings[batch_size] = recording
        return outcome.trial

    def run_within(
        self,
        batch_size: int,
        limit_bytes: int,
        *,
        steps: int,
        grad_accum: int | None = None,
        variables: Mapping[str, str] | None = None,
        exact: bool = False,
        is_beside: bool = False,
    ) -> Trial:
        """Run the command within a part of the device (see `Trials.run_within`)."""
        leave = max(0, self._device.capacity_bytes - limit_bytes)
        asked = Asked(
            steps=steps,
            limit_bytes=limit_bytes,
            leave_bytes=leave,
            capacities=self._capacities,
            record=False,
            gpu=self._gpu,
        )
        variables = dict(variables or {})
        if self._found is not None and grad_accum is not None:
            variables[GRAD_ACCUM] = str(grad_accum)
        return self._try(batch_size, asked, variables).trial

    def check_time(self) -> None:
        """Raise TimeLimitError if the time for the whole search is over."""
        self._clock.check()

    def _try(
        self, batch_size: int, asked: Asked, variables: Mapping[str, str] | None = None
    ) -> Outcome:
        self._count += 1
        log = self._logs / f"{self._name}-{self._count:02}-batch-size-{batch_size}.log"
        timeout_s = self._clock.for_trial(asked.steps / self._steps)
        with tempfile.TemporaryDirectory(prefix="bsfind-", ignore_cleanup_errors=True) as folder:
            filled = fill(self._launch, self._name, batch_size, Path(folder))
            run = run_command(
                filled.arguments,
                {**trackers_off(self._launch), **filled.variables, **(variables or {})},
                *(asked, timeout_s, log, self._on_line, self._launch.listen),
            )
        if run.left:
            message = f"processes of the command could not be ended: {', '.join(run.left)}"
            self._on_warning(ReportWarning(code="processes_left", message=message))
        limit = asked.limit_bytes if asked.limit_bytes is not None else self._device.free_bytes
        outcome = outcome_of(run, batch_size, limit, timeout_s, asked.leave_bytes)
        if self._found is not None and self._found.exists():
            self._take_in(json.loads(self._found.read_text(encoding="utf-8")))
            outcome = dataclasses.replace(outcome, trial=self._timed(outcome.trial))
        if outcome.record is not None:
            check_device(outcome.record, self._device.index)
            self._warn_of(outcome.record)
            told = outcome.record.convolution_workspaces
            self.convolution_workspaces = told or self.convolution_workspaces
        if outcome.trial.ranks:
            for each in outcome.trial.ranks:
                known = self._capacities.get(each.device_index, each.capacity_bytes)
                self._capacities[each.device_index] = min(known, each.capacity_bytes)
            self.assumptions = (*self._of_command, ranks_assumption(outcome.trial))
            unequal = unequal_ranks(outcome.trial)
            if unequal is not None and not self._are_unequal:
                self._on_warning(unequal)
                self._are_unequal = True
        if outcome.differ:
            self._on_warning(STEPS_DIFFER)
        if outcome.refusal is not None:
            self.refusals[batch_size] = outcome.refusal
        return outcome

    def _timed(self, trial: Trial) -> Trial:
        """Return a trial of bsfind's own step with its samples/s: all ranks have batches of its size."""
        if trial.step_time_s is None:
            return trial
        samples = trial.batch_size * max(1, len(trial.ranks)) * self._micro_batches
        return dataclasses.replace(trial, samples_per_s=samples / trial.step_time_s)

    def _take_in(self, told: dict[str, Any]) -> None:
        """Take in what rank 0 has told of bsfind's own step (see `devices.rank`)."""
        self.model = record_of(ModelInfo, told["model"])
        self.output = told["output"] and record_of(OutputMemory, told["output"])
        self.inputs = tuple(InputSpec.from_json(spec) for spec in told["inputs"])
        self._of_command = tuple(record_of(Assumption, made) for made in told["assumptions"])
        self.nccl_bytes, self._micro_batches = told["nccl_bytes"], told["micro_batches"]
        for warning in told["warnings"]:
            self._on_warning(record_of(ReportWarning, warning))

    def _give_up_if_alike(self, outcome: Outcome) -> None:
        """Raise what the command fails with if nothing has run and it fails alike at several sizes.

        Raises:
            BsfindError: the first failure.
        """
        self._messages.append(re.sub(r"[0-9]+", "", outcome.trial.message or ""))
        if not self._ran and len(self._messages) >= _ALIKE and len(set(self._messages)) == 1:
            raise next(iter(self.refusals.values()))

    def _same(self, smaller: int, larger: int) -> Trial:
        """Return the trial of a size at which the command trains as at another one.

        Raises:
            TargetError: it does so from the smallest that was tried on.
        """
        least, most = sorted((smaller, larger))
        what = f"the command trains the same at batch sizes {least:,} and {most:,}"
        if larger < smaller or smaller == min(self._ran):
            raise TargetError(
                f"{what}: it does not use the batch size that it is given",
                detail="In every step it asks for exactly as much memory.",
                hint="is `{batch_size}` where the command reads its batch size from?",
            )
        return Trial(
            batch_size=larger,
            status="error",
            error_kind="short_batch",
            delivered_batch_size=smaller,
            message=what,
        )

    def _warn_of(self, record: RankRecord) -> None:
        """Warn if a process uses several GPUs, or another torch than the one that has opened the device."""
        found, own = record.device, self._device.installed_torch
        for warning in record.warnings:
            self._on_warning(warning)
        if found is not None and len(found.used) > 1:
            self._on_warning(
                ReportWarning(
                    code="several_gpus",
                    message=f"a process of the command uses {len(found.used)} GPUs: peaks and headroom are "
                    f"those of cuda:{found.index} alone",
                )
            )
        if record.torch_version != own:
            self._on_warning(
                ReportWarning(
                    code="other_torch",
                    message=f"the command runs torch {record.torch_version}, and bsfind torch {own}: the "
                    "trials are the command's, the description of the device is bsfind's",
                )
            )


def _assumptions(launch: Launch, *, is_simulated: bool) -> tuple[Assumption, ...]:
    found = [
        Assumption(
            what="batch size",
            value="what `{batch_size}` stands for in the command",
            why="whether it is of a process or of all, with or without accumulation, the command decides",
        )
    ]
    if is_simulated:
        found.append(
            Assumption(
                what="prediction",
                value="experimental: the command ran without a GPU, with assumed losses",
                why="tensors on `cuda` have no values; what the command reads of them is made up",
            )
        )
    off = trackers_off(launch)
    if off:
        settings = ", ".join(f"{name}={value}" for name, value in off.items())
        found.append(
            Assumption(
                what="trackers",
                value=f"off: {settings}",
                why="trials are no experiments; `--set-env WANDB_MODE=online` leaves one on",
            )
        )
    return tuple(found)

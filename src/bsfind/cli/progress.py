"""What a terminal shows while a search goes on: one line on stderr, which is gone afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from bsfind.cli.console import Terminal
from bsfind.cli.interruption import Interruption
from bsfind.errors import NoGpuError
from bsfind.search.events import Events, Progress
from bsfind.settings import DeviceChoice
from bsfind.simulation.gpus.catalogue import DEFAULT_GPU, find_gpu
from bsfind.trial import Trial
from bsfind.units import format_bytes, format_count, format_duration


class TerminalEvents(Events):
    """Shows on a terminal what a search tells, and lets a signal end the search.

    Args:
        choice: the device that was asked for.
        options: the values of the options by name.

    Attributes:
        terminal: where everything is written.
        line: the progress line.
        interruption: the signals.
    """

    def __init__(self, choice: DeviceChoice, options: Mapping[str, Any]) -> None:
        self._choice = choice
        self._is_for_scripts = options["json"] or options.get("quiet", False)
        self.terminal = Terminal(color=options["color"], verbose=options["verbose"])
        is_hidden = options["no_progress"] or options["verbose"] or options.get("quiet", False)
        self.line = ProgressLine(self.terminal, enabled=not is_hidden)
        self.interruption = Interruption()

    def progress(self, progress: Progress) -> None:
        """Show the step, unless a signal has arrived."""
        self.interruption.check()
        self.line.update(progress)

    def output(self, line: str) -> None:
        """Show a line that the user's code printed."""
        self.terminal.user_output(line)

    def waiting(self, message: str) -> None:
        """Say that the GPU is in use."""
        self.terminal.note(message)
        self.terminal.hint("`--no-lock` goes ahead at once")

    def no_gpu(self, error: NoGpuError) -> DeviceChoice | None:
        """Return the GPU to predict for where there is none, and say so; None for a script.

        A script must not get the answer for another GPU than the one it runs on.
        """
        if self._is_for_scripts or not sys.stdout.isatty():
            return None
        gpu = find_gpu(DEFAULT_GPU)
        self.terminal.note(
            f"No usable GPU here: this predicts for the {gpu.name}, and runs nothing. {error.detail}"
        )
        self.terminal.hint("`--gpu` names another one, `bsfind gpus` lists them")
        return dataclasses.replace(self._choice, device="sim", gpu=gpu.key)


class ProgressLine:
    """The line: `amp-bf16  trying 420 · largest that ran 419 · 3 trials, 1 out of memory · 8 s`.

    Args:
        terminal: where it is shown, if that is a terminal.
        enabled: whether it is shown.
    """

    def __init__(self, terminal: Terminal, *, enabled: bool) -> None:
        self._terminal = terminal
        self._enabled = enabled and terminal.err.is_terminal and not terminal.err.is_dumb_terminal
        self._start = time.monotonic()
        self._progress: Progress | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the line while inside."""
        if not self._enabled:
            yield
            return
        with Live(
            self,
            console=self._terminal.err,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    def update(self, progress: Progress) -> None:
        """Take in what is known now."""
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        elapsed = format_duration(int(time.monotonic() - self._start) or 0.5)
        if self._progress is None:
            yield Text(f"starting · {elapsed}", style="dim", no_wrap=True)
            return
        parts = self._progress.words
        while True:
            text = Text(no_wrap=True, overflow="crop")
            text.append(f"{self._progress.precision}  ", style="bold")
            text.append(" · ".join(parts))
            text.append(f" · {elapsed}", style="dim")
            if text.cell_len <= options.max_width or len(parts) == 1:
                break
            parts.pop()  # a narrow terminal loses parts, not digits
        yield text


def trial_line(precision: str, trial: Trial, *, simulated: bool, searched: str) -> str:
    """Return a trial as one line of the log (`--verbose`)."""
    start = f"{precision}  {searched} {trial.size:,}: "
    if trial.status != "ok":
        words = {"oom": "out of memory", "timeout": "no answer in time", "error": "failed"}
        return start + words[trial.status] + (f" ({trial.message})" if trial.message else "")
    peaks = (
        f"peak allocated {format_bytes(trial.peak_allocated_bytes)}, "
        f"reserved {format_bytes(trial.peak_reserved_bytes)}"
    )
    speed = f", {format_count(trial.samples_per_s)} samples/s" if trial.samples_per_s else ""
    retries = f", {trial.num_alloc_retries} retries" if trial.num_alloc_retries else ""
    return f"{start}{'fits' if simulated else 'ran'}, {peaks}{speed}{retries}"

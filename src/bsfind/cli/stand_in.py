"""What is predicted for where there is no GPU."""

from __future__ import annotations

import dataclasses
import sys

from bsfind.cli.console import Terminal
from bsfind.errors import NoGpuError
from bsfind.settings import DeviceChoice
from bsfind.simulation.gpus.catalogue import DEFAULT_GPU, find_gpu


def stand_in(
    error: NoGpuError, choice: DeviceChoice, terminal: Terminal, *, for_scripts: bool
) -> DeviceChoice | None:
    """Return what to predict for, and say so: at a terminal alone.

    A script must not get the answer for another card than the one it runs on.

    Args:
        error: there is no GPU.
        choice: what was asked for.
        terminal: where it is said.
        for_scripts: whether the answer has a form that scripts read.
    """
    if for_scripts or not sys.stdout.isatty():
        return None
    gpu = find_gpu(DEFAULT_GPU)
    terminal.note(
        f"No usable GPU here: this predicts for the {gpu.name}, and runs nothing. {error.detail}"
    )
    terminal.hint("`--gpu` names another one, `bsfind gpus` lists them")
    return dataclasses.replace(choice, device="sim", gpu=gpu.key)

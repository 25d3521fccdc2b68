"""Models that stop at a chosen moment until a test lets them go on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn


def runs_on_a_gpu() -> bool:
    """Whether the GPU is there, real or fake: a prediction describes it by a class of bsfind's."""
    return type(torch.cuda.get_device_properties(0)).__module__.partition(".")[0] != "bsfind"


def _stop() -> None:
    """Say that the moment is there, once, and wait for the file that lets it go on."""
    announcement = Path(os.environ["ANNOUNCE"])
    if announcement.exists():
        return
    announcement.write_text(str(os.getpid()))
    while not Path(os.environ["GO"]).exists():
        time.sleep(0.02)


class Staged(nn.Module):
    """Stops while it is loaded, in its first or second batch size, or in its second process.

    The second process of a search is the one that confirms its answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.moment = os.environ["STOP_AT"]
        self.is_known = False
        if self.moment == "loading" and torch.cuda.is_initialized():
            _stop()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if runs_on_a_gpu():
            # In the environment: what the model keeps itself is set back after each trial.
            first = os.environ.setdefault("FIRST_BATCH_SIZE", str(x.shape[0]))
            stage = "first trial" if first == str(x.shape[0]) else "second trial"
            if self.moment == stage or (self.moment == "confirmation" and self._is_second()):
                _stop()
        return self.layer(x)

    def _is_second(self) -> bool:
        first = Path(os.environ["ANNOUNCE"] + ".first")
        if not first.exists():
            first.write_text(str(os.getpid()))
        return first.read_text() != str(os.getpid())


class LosesTheGpu(nn.Module):
    """The GPU is gone for processes that start after its first trial."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if runs_on_a_gpu():
            Path(os.environ["FAKE_GPU_LOST"]).touch()
        return self.layer(x)


class LiftsTheCap(nn.Module):
    """Takes almost the whole card, whatever bsfind allows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.cuda.set_per_process_memory_fraction(1.0)
        total = torch.cuda.get_device_properties(0).total_memory
        buffer = torch.empty(total - (64 << 20), dtype=torch.uint8, device=x.device)
        del buffer
        return self.layer(x)

"""Models that fail, each in its own way."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn


class Base(nn.Module):
    """What the others have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.misbehave(x)
        return self.layer(x)

    def misbehave(self, x: torch.Tensor) -> None:
        raise NotImplementedError


class Prints(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        print("printed by the model")
        sys.stderr.write("written by the model\n")
        os.write(1, b"written to descriptor 1\n")


class Raises(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        raise ValueError("a bug of my own")


class RaisesInBackward(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        y.register_hook(self._fail)
        return y

    def _fail(self, grad: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("a bug in backward")


class RaisesAbove20(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        if x.shape[0] > 20:
            raise ValueError("too many samples for me")


class WrapsOutOfMemory(Base):
    """Turns every exception into one of its own, as frameworks do."""

    def misbehave(self, x: torch.Tensor) -> None:
        try:
            self.big = torch.empty(x.shape[0] << 24, device=x.device)
        except Exception as error:
            raise KeyError("something went wrong") from error
        del self.big


class Hangs(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        time.sleep(10_000)


class HangsAbove20(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        if x.shape[0] > 20:
            time.sleep(10_000)


class Exits(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        os._exit(3)


class ExitsPolitely(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        sys.exit("so long")


class Crashes(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Leaks(Base):
    """Keeps 4 MiB of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def misbehave(self, x: torch.Tensor) -> None:
        self.kept.append(torch.zeros(1 << 20, device=x.device))


class KeepsLastOutput(Base):
    """Holds on to the output of the last step: more than it needs, but it does not grow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.layer(x)
        return self.last


def runs_on_a_gpu() -> bool:
    """Whether the GPU is there, real or fake: a prediction describes it by a class of bsfind's."""
    return type(torch.cuda.get_device_properties(0)).__module__.partition(".")[0] != "bsfind"


class Announces(Base):
    """Says, in its second trial, that it runs, and waits: for tests that interrupt it."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_sizes: set[int] = set()

    def misbehave(self, x: torch.Tensor) -> None:
        if runs_on_a_gpu():
            self.batch_sizes.add(x.shape[0])
        if len(self.batch_sizes) == 2:
            Path(os.environ["ANNOUNCE"]).write_text(str(os.getpid()))
            time.sleep(10_000)


class StartsProcess(Base):
    """Leaves a process behind in its own process group, then waits."""

    def misbehave(self, x: torch.Tensor) -> None:
        import subprocess

        if not runs_on_a_gpu():
            return
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10_000)"])
        Path(os.environ["ANNOUNCE"]).write_text(str(child.pid))
        time.sleep(10_000)


class NoParameters(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class DetachedOutput(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).detach()


class TooLarge(nn.Module):
    """Does not fit on any GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 << 46, device="cuda"))


class FailsToBuild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("cannot be built")


class LeaksSometimes(Base):
    """Keeps 4 MiB of every fifth step: three steps do not show it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []
        self.steps = 0

    def misbehave(self, x: torch.Tensor) -> None:
        self.steps += 1
        if self.steps % 5 == 0:
            self.kept.append(torch.zeros(1 << 20, device=x.device))


class GrowsAndStops(Base):
    """Keeps more of every step, and at some time no more: a cache, not a leak."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def misbehave(self, x: torch.Tensor) -> None:
        if len(self.kept) < 6:
            size = (len(self.kept) + 1) << 18
            self.kept.append(torch.zeros(size, device=x.device))


class GrowsLate(Base):
    """Takes more memory from the fourth step with a batch on: three steps look harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.batch_size = 0

    def misbehave(self, x: torch.Tensor) -> None:
        self.steps = self.steps + 1 if x.shape[0] == self.batch_size else 1
        self.batch_size = x.shape[0]
        if self.steps > 3:
            torch.zeros(x.shape[0] * (1 << 14), device=x.device)

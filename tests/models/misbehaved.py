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

    def misbehave(self, x: torch.Tensor) -> None:
        if not runs_on_a_gpu():
            return
        # In the environment: what the model keeps itself is set back after each trial.
        if os.environ.setdefault("FIRST_BATCH_SIZE", str(x.shape[0])) != str(x.shape[0]):
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


# --------------------------------------------------------------- exceptions that cannot be read


class NoText(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class TextIsNumber(RuntimeError):  # noqa: N818
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class ExitWithoutText(SystemExit):
    __str__ = __repr__ = NoText.__str__


class Nameless(type):
    def __getattribute__(cls, name: str) -> object:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class NoName(Exception, metaclass=Nameless):  # noqa: N818
    pass


class NoClass(Exception):  # noqa: N818
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class")


class NoCause(Exception):  # noqa: N818
    @property
    def __cause__(self) -> object:
        return 7

    __context__ = __cause__


UNREADABLE = (NoText, TextIsNumber, ExitWithoutText, NoName, NoClass, NoCause)


class RaisesUnreadable(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        raise UNREADABLE[int(os.environ["UNREADABLE"])]("a")


class RaisesFromUnreadable(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        try:
            raise NoName("a")
        except NoName as error:
            raise ValueError("a bug of my own") from error


class RaisesMuch(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        raise ValueError("much\n" * 10_000_000)


# ------------------------------------------------------------------- what bsfind calls, and its pipe


class ReplacesSynchronize(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        torch.cuda.synchronize = torch.cuda.memory_allocated = None  # type: ignore[assignment]


class ReplacesBackward(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        torch.Tensor.backward = None  # type: ignore[assignment, method-assign]


class ReplacesJson(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        import json

        json.dumps = json.loads = os.write = time.sleep = None  # type: ignore[assignment]


class Forges(Base):
    """Writes an answer to every pipe that the process has."""

    def misbehave(self, x: torch.Tensor) -> None:
        for entry in Path("/proc/self/fd").iterdir():
            try:
                is_pipe = int(entry.name) > 2 and str(entry.readlink()).startswith("pipe")
                if is_pipe:
                    os.write(int(entry.name), b'{"is": "trial", "trial": {"batch_size": 5}}\n')
            except OSError:
                continue


class Forks(Base):
    """Goes on in two processes."""

    def misbehave(self, x: torch.Tensor) -> None:
        os.fork()


class PrintsMuch(Base):
    def misbehave(self, x: torch.Tensor) -> None:
        for number in range(300_000):
            os.write(2, b"line %d\n" % number)
        for _ in range(100):
            os.write(2, b"x" * 1_000_000)


# ---------------------------------------------------------------------- helpers, and another folder


class StartsHelper(Base):
    """Leaves a process behind in a session of its own, and one that belongs to nobody."""

    def __init__(self) -> None:
        super().__init__()
        import subprocess

        subprocess.Popen(["sleep", "200"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(200)
            os._exit(0)

    def misbehave(self, x: torch.Tensor) -> None:
        pass


class ChangesFolder(Base):
    """Reads a file of the folder, and leaves it, as Hydra does."""

    def __init__(self) -> None:
        Path("is-here").read_text()
        os.chdir("/")
        super().__init__()

    def misbehave(self, x: torch.Tensor) -> None:
        pass


def sum_of(output: torch.Tensor) -> torch.Tensor:
    return output.sum()

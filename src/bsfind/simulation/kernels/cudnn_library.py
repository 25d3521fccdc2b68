"""cuDNN's library, where this machine has one, asked for the workspaces of convolutions.

Every CUDA wheel of torch brings cuDNN, whose plans need no GPU (see `cudnn_process`, the process that asks).
It is looked for in this order:

1. what `BSFIND_CUDNN` names: a path, or `off`;
2. the library that torch has loaded into this process;
3. `nvidia/cudnn/lib` among the packages of this environment (the wheels nvidia-cudnn-cu12 and -cu13), which a
   CPU build of torch can have too.

Linux on x86-64 only (see `cublaslt_stand_in`).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import bsfind
from bsfind.simulation.kernels import cudnn_process
from bsfind.simulation.kernels.cublaslt_stand_in import is_possible
from bsfind.simulation.kernels.cudnn_process import Question

VARIABLE = "BSFIND_CUDNN"
"""Environment variable: the path of libcudnn.so.9, or `off`."""

_SONAME = "libcudnn.so.9"

_PATIENCE_S = 30.0
"""How long cuDNN may take for an answer; a busy machine that loads it from a slow disk may take seconds."""

_PROGRAM = (
    f"import sys; sys.path.insert(0, {str(Path(bsfind.__file__).parents[1])!r}); "
    f"from {cudnn_process.__name__} import main; main()"
)
"""Without the packages of this environment, and what its `site` would run."""

_PRELOADED = "LD_PRELOAD"
"""What others preload for torch is not for cuDNN, least of all another library of its name."""


def find_library() -> str | None:
    """Return the path of cuDNN's library; None if there is none, or it is not to be used."""
    return _named() or _loaded() or _installed() if may_be_asked() else None


def may_be_asked() -> bool:
    """Return whether this machine can ask the library, and the user lets it."""
    return is_possible() and _named().lower() != "off"


def _named() -> str:
    return os.environ.get(VARIABLE, "").strip()


def _loaded() -> str | None:
    """Return the library that this process has mapped."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            _, slash, rest = line.partition("/")
            if slash and rest.rpartition("/")[2].startswith(_SONAME):
                return slash + rest
    return None


def _installed() -> str | None:
    """Return the library of NVIDIA's wheel, which is part of a namespace package."""
    try:
        found = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return None
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, "cudnn", "lib", _SONAME)
        if path.is_file():
            return str(path)
    return None


class CudnnLibrary:
    """A process that asks cuDNN, for one GPU. It starts with the first question.

    Args:
        library: path of libcudnn.so.9.
        device: JSON of the GPU's properties.

    Attributes:
        version: as cudnnGetVersion() returns it; None before the first question.
        failure: why it does not answer any more; None while it does.
    """

    def __init__(self, library: str, device: str) -> None:
        self._opening = {"library": library, "device": device}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that may ask: a fork of it has another's pipes
        self._lock = threading.Lock()
        self.version: int | None = None
        self.failure: str | None = None

    def sizes(self, question: Question) -> list[int] | None:
        """Return the workspaces of the engines that PyTorch tries, in bytes and in its order.

        Returns:
            The sizes, as many as the question is for; None if cuDNN does not answer this question, or any
            (see `failure`).
        """
        with self._lock:
            if not self._is_ready():
                return None
            answer = self._ask(dict(question))
            found = answer.get("sizes")
            return list(map(int, found)) if found else None

    def can_answer(self) -> bool:
        """Start the process; returns whether it answers."""
        with self._lock:
            return self._is_ready()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        process.wait()

    def _is_ready(self) -> bool:
        if self.failure is None and (self._process is None or self._owner != os.getpid()):
            self._start()
        return self.failure is None

    def _start(self) -> None:
        variables = {name: value for name, value in os.environ.items() if name != _PRELOADED}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=variables,
                cwd=os.sep,
            )
        except (OSError, ValueError) as error:
            self.failure = f"its process does not start: {error}"
            return
        self._owner = os.getpid()
        atexit.register(self.close)
        answer = self._ask(self._opening)
        self.version = answer.get("version")
        if self.failure is None and self.version is None:
            self._give_up(str(answer.get("error")))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the answer; empty if there is none."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = _line(process.stdout)
        except (OSError, ValueError):
            line = b""
        if line is None:
            self._give_up(f"it did not answer in {_PATIENCE_S:.0f} s")
        elif not line.endswith(b"\n"):
            self._give_up("it ended the process that asked")
        else:
            answer: dict[str, Any] = json.loads(line)
            return answer
        return {}

    def _give_up(self, why: str) -> None:
        self.failure = why
        self.close()


def _line(pipe: IO[bytes]) -> bytes | None:
    """Read a line; None if it takes too long. Each answer is read before the next is asked for."""
    if not select.select([pipe], [], [], _PATIENCE_S)[0]:
        return None
    return pipe.readline()

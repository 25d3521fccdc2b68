"""A GPU for tests: the real one of this machine, or a fake one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import fakegpu

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
FAKE_VENV = Path(os.environ.get("BSFIND_FAKEGPU_VENV", ROOT / ".venv-fakegpu"))

LIMIT = "1GiB"
"""Memory limit of the tests: running out of it is quick, on a large card too."""


def why_there_is_none() -> str | None:
    """Return why GPU tests cannot run here; None if they can."""
    if real_gpu() or fakegpu.available(FAKE_VENV):
        return None
    return f"no GPU, and no fake one: `make setup` builds it ({FAKE_VENV})"


def printed_on_fake_gpu(*arguments: str, gpu: str, **options: Any) -> str:
    """Run `python ARGUMENTS` in the project's root on a fake GPU; returns what it prints.

    Args:
        arguments: those of Python.
        gpu: name of the card.
        options: further ones of `fakegpu.environment`; without `cudnn`, a stub stands for it.
    """
    done = subprocess.run(
        [str(FAKE_VENV / "bin" / "python"), *arguments],
        cwd=ROOT,
        env={
            **fakegpu.environment(FAKE_VENV, **{"gpu": gpu, "cudnn": False, **options}),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def real_gpu() -> bool:
    """Whether this interpreter's torch has a real GPU (BSFIND_TEST_GPU, `fake` or `real`, says so)."""
    if (said := os.environ.get("BSFIND_TEST_GPU")) in ("fake", "real"):
        return said == "real"
    if shutil.which("nvidia-smi") is None:
        return False
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@dataclass(frozen=True)
class Result:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def only(self) -> dict[str, Any]:
        """The only result of the report."""
        (result,) = self.report["results"]
        return dict(result)


class Gpu:
    """Starts processes that see the GPU.

    Args:
        is_fake: whether to use the fake one.
        folder: where they run.
    """

    def __init__(self, *, is_fake: bool, folder: Path) -> None:
        self.is_fake = is_fake
        self.folder = folder
        # Of its own: a test waits for no other bsfind of this machine.
        self.locks = folder.with_name(f"{folder.name}-locks")
        self.python = str(FAKE_VENV / "bin" / "python") if is_fake else sys.executable

    def environment(self, variables: dict[str, str] | None = None, **fake: Any) -> dict[str, str]:
        """Return the environment of a process; `fake` are options of `fakegpu.environment`."""
        base = dict(os.environ)
        if self.is_fake:
            # Without cuDNN's own plans unless a test asks for them: they cost seconds.
            base = fakegpu.environment(FAKE_VENV, **{"cudnn": False, **fake})
        elif fake:
            raise ValueError(f"only a fake GPU has {', '.join(fake)}")
        ours = {"PYTHONPATH": str(ROOT / "src"), "BSFIND_LOCK_DIR": str(self.locks)}
        return {**base, **ours, **(variables or {})}

    def start(
        self, arguments: Sequence[str], variables: dict[str, str] | None = None, **fake: Any
    ) -> subprocess.Popen[str]:
        """Start `python ARGUMENTS`."""
        return subprocess.Popen(
            [self.python, *arguments],
            cwd=self.folder,
            env=self.environment(variables, **fake),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python_code(self, code: str, **fake: Any) -> Result:
        """Run code to its end."""
        return _finished(self.start(["-c", code], **fake))

    def bsfind(
        self, *arguments: str, variables: dict[str, str] | None = None, **fake: Any
    ) -> Result:
        """Run `bsfind ARGUMENTS` to its end."""
        return _finished(self.start(["-m", "bsfind", *arguments], variables, **fake))

    def run(
        self, model: str, *arguments: str, variables: dict[str, str] | None = None, **fake: Any
    ) -> Result:
        """Run `bsfind run` on a model of tests/models in `LIMIT` of memory, as JSON."""
        limit = () if "--memory-limit" in arguments else ("--memory-limit", LIMIT)
        return self.bsfind(
            "run", f"{MODELS}/{model}", "--json", *limit, *arguments, variables=variables, **fake
        )


def _finished(process: subprocess.Popen[str]) -> Result:
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end:\n{out}\n{err}") from None
    return Result(process.returncode, out, err)

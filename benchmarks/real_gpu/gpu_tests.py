"""`tests/gpu` on this GPU, as far as time goes: the tests of every day, then those that kill and hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.card import ROOT, child_environment
from benchmarks.real_gpu.card_facts import Card, installed
from benchmarks.real_gpu.steps import LeftOutError, Options, Row, Step

__all__ = ["STEP"]

_SHORT_TESTS = ("tests/gpu/test_device.py::test_env_opens_the_device",)
_PARTS = ("not faults", "faults")
_AT_ONCE = 6
_LONGEST_TEST_S = 120
_NO_TESTS = 5
"""pytest's exit status where nothing was selected."""


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each test that ended.

    Raises:
        LeftOutError: pytest, or what the tests import, is not installed.
    """
    packages = installed()
    if missing := [name for name in ("pytest", "hypothesis") if packages[name] is None]:
        raise LeftOutError(f"not installed: {', '.join(missing)}")
    for part in _PARTS[:1] if options.is_short else _PARTS:
        if options.seconds_left > 10:
            yield from _ran(_command(part, packages, options, card), card, options)


def _command(part: str, packages: dict[str, str | None], options: Options, card: Card) -> list[str]:
    tests = _SHORT_TESTS if options.is_short else ("tests/gpu",)
    command = [
        *(sys.executable, "-m", "pytest", *tests, "-q", "-m", part),
        *("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "benchmarks.real_gpu.pytest_rows"),
        # Without plugins that the configuration names, what it says of them is no error.
        *("-o", "addopts=", "-W", "ignore", "--continue-on-collection-errors"),
    ]
    if packages["pytest-timeout"]:
        command += ["--timeout", str(_LONGEST_TEST_S)]
    if packages["pytest-xdist"] and not options.is_short:
        command += ["-n", str(max(1, min(_AT_ONCE, (os.cpu_count() or 2) // 2)))]
    return command


def _ran(command: list[str], card: Card, options: Options) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.touch()
        # A pytest that this process may belong to is not that of the tests.
        outer = [name for name in os.environ if name.startswith("PYTEST_")]
        environment = child_environment() | {"REAL_GPU_TESTS": str(file)}
        for name in outer:
            environment.pop(name, None)
        environment["BSFIND_TEST_GPU"] = "fake" if card.is_fake else "real"
        output = Path(folder, "output.txt")
        with output.open("w") as text:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=text,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        count = 0
        with file.open() as rows:
            while True:
                code = process.poll()
                for line in rows.readlines():
                    count += 1
                    yield json.loads(line)
                if code is not None:
                    break
                time.sleep(0.2)
        if count == 0 and code != _NO_TESTS:
            raise RuntimeError(f"pytest ended with {code}: {output.read_text()[-1500:]}")


def summarise(rows: list[Row]) -> Row:
    """Return how many tests passed, and the names of those that did not."""
    outcomes = Counter(row["outcome"] for row in rows)
    figures: Row = dict(sorted(outcomes.items()))
    failed = [row["test"] for row in rows if row["outcome"] in ("failed", "error")]
    if failed:
        figures["not passed"] = ", ".join(failed)
    return figures


STEP = Step(
    name="tests",
    title="tests/gpu",
    measure=measure,
    summarise=summarise,
    least_s=15,
    kept_share=0.15,
    most_s=480,
)

"""The steps of `make real-gpu`: whatever one of them does, what it has measured is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.document import Document
from benchmarks.real_gpu.steps import (
    LeftOutError,
    Options,
    Row,
    Step,
    StepResult,
    run_step,
    seconds_for,
)

# Python 3.12 and later warn of a fork where there are threads, as under xdist.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

CARD = Card(
    name="Some GPU",
    uuid="GPU-1",
    is_fake=True,
    total_bytes=24 << 30,
    free_bytes=23 << 30,
    capability=(9, 0),
    sm_count=132,
    max_threads_per_sm=2048,
    torch_version=(2, 13),
)

Measure = Callable[[Card, Options], Iterable[Row]]


def step_of(measure: Measure, name: str = "some", **limits: float) -> Step:
    return Step(
        name=name,
        title=f"Step {name}",
        measure=measure,
        summarise=lambda rows: {"rows seen": len(rows)},
        columns=("n", "size_bytes"),
        **limits,  # type: ignore[arg-type]
    )


def result_of(measure: Measure, seconds: float = 20.0) -> StepResult:
    options = Options(is_short=True, results="", ends_at=time.monotonic() + seconds)
    return run_step(step_of(measure), CARD, options, lambda part: None)


def test_rows_come_through() -> None:
    result = result_of(lambda card, options: [{"n": 1, "card": card.name}, {"n": 2}])
    assert result.status == "ok"
    assert result.rows == [{"n": 1, "card": "Some GPU"}, {"n": 2}]


def test_a_row_takes_the_place_of_that_with_its_id() -> None:
    rows = [{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}]
    assert result_of(lambda *_: rows).rows == [{"id": "a", "n": 3}, {"id": "b", "n": 2}]


def test_what_fails_keeps_its_rows_and_says_why() -> None:
    def measure(card: Card, options: Options) -> Iterator[Row]:
        yield {"n": 1}
        raise RuntimeError("no engine")

    result = result_of(measure)
    assert (result.status, result.rows) == ("failed", [{"n": 1}])
    assert "no engine" in str(result.message)


def test_what_dies_keeps_its_rows() -> None:
    def measure(card: Card, options: Options) -> Iterator[Row]:
        yield {"n": 1}
        os.kill(os.getpid(), signal.SIGKILL)

    result = result_of(measure)
    assert (result.status, result.rows) == ("failed", [{"n": 1}])
    assert "-9" in str(result.message)


def test_what_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    def measure(card: Card, options: Options) -> Iterator[Row]:
        yield {"n": 1}
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        file.write_text(str(child.pid))
        child.wait()

    result = result_of(measure, seconds=1.0)
    assert (result.status, result.rows) == ("cut short", [{"n": 1}])
    assert result.seconds < 15
    pid = int(file.read_text())
    deadline = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_missing_is_no_failure() -> None:
    def measure(card: Card, options: Options) -> Iterator[Row]:
        yield from ()
        raise LeftOutError("not installed: pytest")

    result = result_of(measure)
    assert (result.status, result.message) == ("left out", "not installed: pytest")


@pytest.mark.parametrize(
    ("left", "budget", "seconds"),
    [
        (100.0, 100.0, 60.0),
        (50.0, 100.0, 40.0),
        (15.0, 100.0, 5.0),
        (14.9, 100.0, None),
        (-3.0, 100.0, None),
        (900.0, 960.0, 120.0),
    ],
)
def test_later_steps_have_what_is_kept_for_them(
    left: float, budget: float, seconds: float | None
) -> None:
    step = step_of(lambda *_: [], least_s=5.0, most_s=60.0)
    later = [step_of(lambda *_: [], kept_share=0.07), step_of(lambda *_: [], kept_share=0.03)]
    found = seconds_for(step, later, left, budget)
    assert found == (seconds if seconds is None else pytest.approx(seconds))


def test_the_planned_steps_leave_each_other_time() -> None:
    from benchmarks.real_gpu.plan import STEPS  # imports torch

    assert sum(step.kept_share for step in STEPS) < 0.9
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_the_document_has_every_step_from_the_beginning(tmp_path: Path) -> None:
    steps = (step_of(lambda *_: []), step_of(lambda *_: [], "other"))
    head = {
        **{"date": "2026-01-01", "is_short": True, "budget_s": 10.0, "seconds": 1.0},
        "card": {"name": "A|B", "is_fake": True, "total_bytes": 1 << 30, "capability": [9, 0], "sm_count": 1},
        "versions": {"torch": "2.13.0", "driver": None},
        "packages": {"torch": "2.13.0", "pytest": None},
    }  # fmt: skip
    document = Document(tmp_path / "real.json", head, steps)
    document.record(steps[0], StepResult(rows=[{"n": "x|y", "size_bytes": 3 << 20}, {"n": None}]))
    found = json.loads(document.path.read_text())
    assert found["card"]["name"] == "A|B"
    assert found["steps"]["some"]["figures"] == {"rows seen": 2}
    assert found["steps"]["some"]["rows"] == [{"n": "x|y", "size_bytes": 3 << 20}, {"n": None}]
    assert found["steps"]["other"]["status"] == "not begun"
    text = document.path.with_suffix(".md").read_text()
    assert text.startswith("# Fake GPU, no hardware: ")
    assert "| x\\|y | 3.0 MiB |" in text
    assert "Not installed: pytest." in text


def test_figures_that_cannot_be_computed_lose_no_rows(tmp_path: Path) -> None:
    def fail(rows: list[Row]) -> Row:
        raise KeyError("n")

    step = Step(name="some", title="Some", measure=lambda *_: [], summarise=fail)
    card = {"name": "A", "is_fake": False, "total_bytes": 1, "capability": [9, 0], "sm_count": 1}
    head = {"date": "", "is_short": True, "budget_s": 1, "seconds": 1, "card": card, "versions": {}}
    document = Document(tmp_path / "real.json", head | {"packages": {}}, (step,))
    document.record(step, StepResult(rows=[{"n": 1}]))
    found = json.loads(document.path.read_text())["steps"]["some"]
    assert found["rows"] == [{"n": 1}]
    assert "KeyError" in found["figures"]["could not be computed"]

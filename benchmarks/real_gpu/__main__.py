"""Measures on a real GPU what bsfind's rules assume, in eight minutes: `make real-gpu`.

    python -m benchmarks.real_gpu [--seconds 480] [--short] [--results DIR] [--steps NAME ...]

Writes `real_gpu_CARD.json`, a summary `.md`, and allocator traces into benchmarks/results, again after
every row: a run that is cut short keeps what it has. Steps go from the cheap and valuable to the long; one
that does not fit in the time is left out, one that fails leaves the others alone. Without a real GPU, the
short form runs on the fake one, and its files are named `real_gpu_fake_CARD`.

Environment: REAL_GPU_SECONDS, REAL_GPU_SHORT=1 and REAL_GPU_RESULTS are the defaults of the options. The exit
status is 0 if every step ended by itself or by its time limit, and 1 if one failed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_STARTED = time.monotonic()

from benchmarks import card as cards  # noqa: E402
from benchmarks.real_gpu.card_facts import Card, has_real_gpu, identify, installed  # noqa: E402
from benchmarks.real_gpu.steps import (  # noqa: E402
    USUAL_BUDGET_S,
    Options,
    StepResult,
    run_step,
    seconds_for,
)

_SHORT_SECONDS = 240.0
_LAST_S = 8.0
"""Kept at the end: ending processes takes some seconds."""

_FOREIGN = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ENDING = ("ok", "cut short", "left out")


def main() -> int:
    """Measure, write, and print how each step ended."""
    arguments = _arguments()
    is_fake = "FAKE_GPU" in os.environ
    if not is_fake and not has_real_gpu():
        _use_fake_gpu(arguments)
    is_short = arguments.short or (is_fake and not arguments.full)
    budget = arguments.seconds or (_SHORT_SECONDS if is_short else USUAL_BUDGET_S)
    for name in list(os.environ):
        if name in _FOREIGN or (name.startswith("BSFIND_") and name != "BSFIND_FAKEGPU_VENV"):
            del os.environ[name]
    # So that the processes of a step are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if installed()["torch"] is None:
        print(
            f"{sys.executable} has no torch: name another with `make real-gpu PYTHON=…`",
            file=sys.stderr,
        )
        return 1
    from benchmarks.real_gpu.document import Document
    from benchmarks.real_gpu.plan import STEPS
    from tests.simulation.forks import in_fork

    facts = in_fork(identify)
    if facts.get("status") == "error":
        print(f"the GPU cannot be used: {facts['message']}", file=sys.stderr)
        return 1
    versions, others, variables = (
        facts.pop(name) for name in ("versions", "other_processes", "variables")
    )
    card = Card.from_json(facts)
    steps = tuple(step for step in STEPS if not arguments.steps or step.name in arguments.steps)
    path = cards.results_file("real_gpu", card.name, is_fake=card.is_fake)
    path = Path(arguments.results or path.parent) / path.name
    head: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "is_short": is_short,
        "budget_s": budget,
        "seconds": round(time.monotonic() - _STARTED, 1),
        "card": facts,
        "versions": versions,
        "packages": installed(),
        "other_processes": others,
        "variables": variables,
    }
    document = Document(path, head, steps)
    document.write()
    ends_at = _STARTED + budget - _LAST_S
    for index, step in enumerate(steps):
        left = ends_at - time.monotonic()
        seconds = seconds_for(step, steps[index + 1 :], left, budget)
        if seconds is None:
            result = StepResult(
                status="left out", message=f"no time: {max(0.0, left):.0f} s are left"
            )
        else:
            options = Options(
                is_short=is_short,
                results=str(path.with_suffix("")),
                ends_at=time.monotonic() + seconds,
            )
            result = run_step(
                step, card, options, lambda part, step=step: document.record(step, part)
            )
        document.set(seconds=round(time.monotonic() - _STARTED, 1))
        document.record(step, result)
        print(
            f"{step.name}: {result.status}, {len(result.rows)} rows in {result.seconds} s",
            flush=True,
        )
        if result.message:
            print(f"  {result.message.strip().splitlines()[-1]}", flush=True)
    print(f"{path} and {path.with_suffix('.md').name}")
    return int(any(status not in _ENDING for status in document.statuses().values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    seconds = os.environ.get("REAL_GPU_SECONDS")
    parser.add_argument("--seconds", type=float, default=float(seconds) if seconds else None)
    parser.add_argument(
        "--short", action="store_true", default=os.environ.get("REAL_GPU_SHORT") == "1"
    )
    parser.add_argument("--full", action="store_true", help="on the fake GPU too")
    parser.add_argument("--results", default=os.environ.get("REAL_GPU_RESULTS") or None)
    parser.add_argument("--steps", nargs="*", default=[], help="only these")
    parser.add_argument("--gpu", default="h100", help="profile of the fake GPU")
    parser.add_argument("--gpu-memory", default=None, help="capacity of the fake GPU")
    return parser.parse_args()


def _use_fake_gpu(arguments: argparse.Namespace) -> None:
    """Start this program again on the fake GPU; ends it where there is none."""
    sys.path.insert(0, str(cards.ROOT))
    from tests import fakegpu

    if not fakegpu.available(cards.FAKE_VENV):
        raise SystemExit(
            f"there is no GPU here, and no fake one in {cards.FAKE_VENV}: `make setup` builds it"
        )
    arguments.real = False
    cards.use(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Runs of a launched command, and what their processes told, for tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bsfind.launch.outcome import outcome_of
from bsfind.launch.ranks import Run
from bsfind.launch.records import RankRecord, read_record
from bsfind.settings import Launch

LIMIT = 1 << 30
OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB. Process 7"
)
DEVICE = {
    **{"index": 0, "name": "A GPU", "uuid": "", "total_bytes": 8 << 30, "free_bytes": 6 << 30},
    **{"reserved_bytes": 1 << 20, "cached_bytes": 0, "used": [0]},
}


def a_step(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        **{"time_s": 0.5 if number else None, "backwards": 1, "retries": 0},
        **{"peak_allocated_bytes": 900, "peak_reserved_bytes": 1000, "held_bytes": 100},
        **{"requested_bytes": 5000 * (number + 1), **more},
    }


def told(**more: Any) -> dict[str, Any]:
    return {
        **{"key": "secret", "status": "ok", "message": "", "out_of_memory": [], "pid": 7},
        **{"rank": 0, "world_size": 1, "local_world_size": 1, "torch_version": "2.13.0"},
        **{"on_host": 0, "optimizers": 1},
        **{"steps": [a_step(i) for i in range(3)], "loaders": [], "errors": [], "device": DEVICE},
        **more,
    }


def record(**more: Any) -> RankRecord:
    found = read_record(json.dumps(told(**more)).encode(), "secret")
    assert found is not None
    return found


def raised(*kinds: str, message: str = "") -> list[dict[str, Any]]:
    return [{"kinds": [*kinds, "builtins.Exception"], "message": message}]


def a_run(
    *records: RankRecord, status: int | None = None, said: str = "", late: bool = False
) -> Run:
    return Run(
        records=records,
        status=status,
        is_out_of_time=late,
        last_lines=said,
        log=Path("trial.log"),
        left=(),
    )


def outcome(run: Run, batch_size: int = 64) -> Any:
    return outcome_of(run, batch_size, LIMIT, 60.0)


def launch(*command: str, **more: Any) -> Launch:
    return Launch(command=(sys.executable, *command), **more)

"""Is the memory still there that the search began with?"""

from __future__ import annotations

import dataclasses
import json

from bsfind.failures.memory_watch import MemoryLeft, MemoryWatch
from bsfind.records import DeviceInfo, GpuProcess, record_of
from bsfind.units import GIB, MIB

DEVICE = DeviceInfo(
    name="a GPU",
    index=0,
    compute_capability="8.6",
    total_bytes=24 * GIB,
    free_bytes=20 * GIB,
    capacity_bytes=20 * GIB,
    other_processes=(GpuProcess(pid=1, name="desktop", used_bytes=GIB),),
)
JUPYTER = GpuProcess(pid=2, name="jupyter", used_bytes=5 * GIB)


def message(device: DeviceInfo, *later: MemoryLeft) -> str | None:
    watch = MemoryWatch()
    watch.opened(device)
    for left in later:
        watch.left(left)
    return watch.warning.message if watch.warning else None


def test_what_stays_is_no_news() -> None:
    assert MemoryWatch().warning is None
    assert message(DEVICE) is None
    assert message(DEVICE, MemoryLeft(available_bytes=22 * GIB)) is None
    assert message(DEVICE, MemoryLeft(available_bytes=20 * GIB - 200 * MIB)) is None


def test_the_least_that_was_left_counts_and_who_is_new_is_named() -> None:
    said = message(
        DEVICE,
        MemoryLeft(available_bytes=15 * GIB, others=(*DEVICE.other_processes, JUPYTER)),
        MemoryLeft(available_bytes=20 * GIB),
    )
    assert said == (
        "jupyter (PID 2) took 5.0 GiB of this GPU during the search: the answer holds for the "
        "15.0 GiB that were left"
    )


def test_a_process_that_has_grown_is_named() -> None:
    desktop = GpuProcess(pid=1, name="desktop", used_bytes=9 * GIB)
    said = message(DEVICE, MemoryLeft(available_bytes=12 * GIB, others=(desktop, JUPYTER)))
    assert said is not None
    assert said.startswith("desktop (PID 1) and jupyter (PID 2) took 8.0 GiB")


def test_nobody_is_named_where_the_driver_tells_nothing() -> None:
    said = message(DEVICE, MemoryLeft(available_bytes=0))
    assert said is not None
    assert said.startswith("another process took 20.0 GiB")


def test_a_later_worker_that_finds_less() -> None:
    watch = MemoryWatch()
    watch.opened(DEVICE)
    watch.opened(dataclasses.replace(DEVICE, free_bytes=11 * GIB, capacity_bytes=11 * GIB))
    assert watch.warning is not None
    assert watch.warning.code == "memory_taken"
    assert "took 9.0 GiB" in watch.warning.message


def test_what_is_taken_beyond_the_limit_is_not_missed() -> None:
    limited = dataclasses.replace(DEVICE, capacity_bytes=8 * GIB)
    assert message(limited, MemoryLeft(available_bytes=9 * GIB)) is None
    assert message(limited, MemoryLeft(available_bytes=7 * GIB)) is not None


def test_a_simulated_gpu_is_not_watched() -> None:
    simulated = dataclasses.replace(DEVICE, kind="simulated")
    assert message(simulated, MemoryLeft(available_bytes=0)) is None


def test_json() -> None:
    left = MemoryLeft(available_bytes=1, others=(JUPYTER,))
    assert record_of(MemoryLeft, json.loads(json.dumps(dataclasses.asdict(left)))) == left

"""Slices of a card (MIG): neither the driver's figures of the card nor its prediction are the slice's."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from bsfind.devices import nvml
from bsfind.records import DeviceInfo
from bsfind.search.predict_first import simulated_counterpart
from bsfind.units import GIB

CARD, SLICE = "GPU-aaaaaaaa-1111", "MIG-bbbbbbbb-2222"
SLICE_BYTES = 4864 << 20


def mig_driver() -> SimpleNamespace:
    """Return the module `pynvml` of an A100 in MIG mode with one slice in use."""
    memory = {CARD: (40 * GIB, 30 * GIB), SLICE: (SLICE_BYTES, 4 * GIB)}  # total, free
    users = {CARD: (1, 8 * GIB), SLICE: (os.getpid(), None)}

    def handle(uuid: str) -> str:
        if uuid not in memory:
            raise LookupError(uuid)
        return uuid

    def info(of: str) -> SimpleNamespace:
        total, free = memory[of]
        return SimpleNamespace(total=total, free=free)

    def compute(of: str) -> list[SimpleNamespace]:
        pid, used = users[of]
        return [SimpleNamespace(pid=pid, usedGpuMemory=used)]

    def graphics(of: str) -> list[SimpleNamespace]:
        raise PermissionError("not in MIG mode")

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetMemoryInfo=info,
        nvmlDeviceGetComputeRunningProcesses=compute,
        nvmlDeviceGetGraphicsRunningProcesses=graphics,
        nvmlSystemGetProcessName=lambda pid: "python",
    )


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", mig_driver())


@pytest.mark.parametrize("uuid", [SLICE, SLICE.removeprefix("MIG-")])
def test_a_slice_is_found_by_its_own_uuid(uuid: str) -> None:
    assert nvml.free_bytes(uuid, SLICE_BYTES) == 4 * GIB
    assert nvml.other_processes(uuid, SLICE_BYTES) == ()


@pytest.mark.parametrize("uuid", [CARD, CARD.removeprefix("GPU-")])
def test_the_card_does_not_answer_for_its_slice(uuid: str) -> None:
    """CUDA may give the UUID of the card for a slice of it."""
    assert nvml.free_bytes(uuid, SLICE_BYTES) is None
    assert nvml.processes(uuid, SLICE_BYTES) == ()
    assert nvml.free_bytes(uuid, 39 * GIB) == 30 * GIB  # as CUDA sees the whole card


def test_the_uuid_of_a_slice_is_what_the_process_was_given() -> None:
    torch = pytest.importorskip("torch")
    from bsfind.devices.cuda_gpu import identity

    card = SimpleNamespace(uuid=CARD.removeprefix("GPU-"), name="NVIDIA A100 MIG 1g.5gb")
    first = torch.device("cuda", 0)
    assert identity(first, card, {"CUDA_VISIBLE_DEVICES": SLICE}) == SLICE
    assert identity(first, card, {"CUDA_VISIBLE_DEVICES": "0"}) == "aaaaaaaa-1111"
    assert identity(first, card, {}) == "aaaaaaaa-1111"
    assert identity(first, SimpleNamespace(name="an old torch"), {}) == "an old torch-0"


def device(name: str, total_bytes: int) -> DeviceInfo:
    return DeviceInfo(
        name=name,
        index=0,
        compute_capability="8.0",
        total_bytes=total_bytes,
        free_bytes=total_bytes - GIB,
        capacity_bytes=total_bytes - GIB,
    )


def test_a_card_has_a_twin_and_its_slices_have_none() -> None:
    whole = simulated_counterpart(device("NVIDIA A100-SXM4-40GB", 42297786368))
    assert whole is not None
    assert whole.memory_limit_bytes == 42297786368 - GIB
    assert simulated_counterpart(device("NVIDIA A100-SXM4-40GB MIG 1g.5gb", SLICE_BYTES)) is None
    assert simulated_counterpart(device("NVIDIA A100-SXM4-40GB MIG 7g.40gb", 42297786368)) is None


def test_the_twin_has_the_memory_of_the_card_not_of_the_catalogue() -> None:
    counterpart = simulated_counterpart(device("NVIDIA A100-SXM4-40GB", 20 * GIB))
    assert counterpart is not None
    assert counterpart.memory_limit_bytes == 20 * GIB - GIB

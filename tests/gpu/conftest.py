"""Every test here needs a GPU, real or fake."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.gpu.gpu import Gpu, real_gpu, why_there_is_none


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def signals_reach_the_children() -> None:
    """Where the tests run in the background, signals are ignored, and children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def is_fake() -> bool:
    reason = why_there_is_none()
    if reason is not None:
        pytest.skip(reason)
    return not real_gpu()


@pytest.fixture
def gpu(is_fake: bool, tmp_path: Path) -> Gpu:
    """The GPU that there is."""
    return Gpu(is_fake=is_fake, folder=tmp_path)


@pytest.fixture
def fake_gpu(gpu: Gpu) -> Gpu:
    """A GPU whose faults and other processes can be chosen."""
    if not gpu.is_fake:
        pytest.skip("a real GPU does not fail on request")
    return gpu

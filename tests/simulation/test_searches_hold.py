"""What a predicted search reports is what traces of these very sizes, each of its own, say.

The memory of these models depends on the batch size, or on the step, in ways that a few small traces do
not show: padding, parity, roots, thresholds, lazy steps, lists that fill up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from tests.exhaustive import exhaustive
from tests.simulation.simulated import without_cudnn_workspaces

from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import InputSpec
from bsfind.results import Neighbours, PrecisionResult
from bsfind.search.events import Events
from bsfind.search.policy import Simulated
from bsfind.search.precision import PrecisionSearch
from bsfind.settings import DeviceChoice, SearchLimits, Settings, Workload
from bsfind.trial import Trial
from bsfind.units import GIB, Headroom

# What is searched here does not depend on the release of torch.
pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[1] / "models"
CHOICE = DeviceChoice(device="sim", gpu="2GiB", context_memory_bytes=0)


class Runner:
    """A `TrialRunner` without a process."""

    recordings: ClassVar[dict[int, Any]] = {}
    model = None
    busy_s = 0.0
    slowest_s = 0.0
    slowest_size = 1
    sizes_follow = False

    def __init__(self, workload: Workload) -> None:
        self.device = SimulatedDevice(CHOICE)
        self._workload = workload

    def load(self) -> None:
        self.device.load(self._workload, "fp32")

    def check_time(self) -> None:
        pass

    def run(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        return self.run_within(batch_size, 2 * GIB, steps=steps or 3, exact=exact)

    def run_within(
        self, batch_size: int, limit_bytes: int, *, steps: int, exact: bool, **_: Any
    ) -> Trial:
        self.device.limit_memory(limit_bytes)
        return self.device.run_trial(batch_size, steps, exact=exact)


@contextlib.contextmanager
def runner(workload: Workload) -> Iterator[Runner]:
    made = Runner(workload)
    made.load()
    try:
        yield made
    finally:
        made.device.tracer.close()


def workload(target: str, shape: tuple[int, ...], **more: Any) -> Workload:
    inputs = (InputSpec(shape=shape),)
    return Workload(target=f"{MODELS}/{target}", inputs=inputs, loss="mean", **more)


def searched(of: Workload, max_batch_size: int = 2**31) -> tuple[PrecisionResult, PrecisionSearch]:
    settings = Settings(
        workload=of,
        precisions=("fp32",),
        device=CHOICE,
        limits=SearchLimits(headroom=Headroom(bytes=GIB // 4), max_batch_size=max_batch_size),
    )
    with runner(of) as trials:
        search = PrecisionSearch(
            "fp32", settings, trials.device.describe(), cast("Any", trials), Simulated(), Events()
        )
        return search.run(), search


def status(of: Workload, batch_size: int, *, steps: int = 3, limit: int = 2 * GIB) -> str:
    """Return what a trace of its own says of a size."""
    with runner(of) as trials:
        trial = trials.run_within(batch_size, limit, steps=steps, exact=True)
    assert trial.traced_steps is not None
    assert trial.traced_steps >= steps
    return trial.status


def check(of: Workload, *, steps: int = 3) -> tuple[PrecisionResult, PrecisionSearch]:
    """Search, and have what it reports traced."""
    result, search = searched(of)
    largest, failed = result.max_batch_size, result.smallest_failed_batch_size
    recommended = result.recommended_batch_size
    assert largest is not None
    assert failed is not None
    assert recommended is not None
    assert status(of, largest, steps=steps) == "ok"
    assert status(of, failed, steps=steps) == "oom"
    assert status(of, recommended, steps=20, limit=search.budget) == "ok"
    found = result.neighbours
    assert found is not None
    assert found.ran[-2:] == (recommended - 2, recommended - 1) or not found.all_tried
    for size in found.ran[-2:]:
        assert status(of, size, steps=steps, limit=search.budget) == "ok"
    for size in found.failed[-2:]:
        assert status(of, size, steps=steps, limit=search.budget) == "oom"
    return result, search


@pytest.mark.parametrize(
    "seed",
    [-2, *map(exhaustive, (-5, -3, 0, 1, 2))],
)
def test_irregular_sizes(seed: int) -> None:
    of = workload("irregular.py:Irregular", (256,), model_args=(("seed", str(seed)),))
    result, _ = check(of)
    if seed < 0:  # no size falls: there is one largest
        assert result.smallest_failed_batch_size == (result.max_batch_size or 0) + 1


def test_a_cubic_term() -> None:
    result, _ = check(workload("irregular.py:Triplet", (16,)))
    assert result.smallest_failed_batch_size == (result.max_batch_size or 0) + 1


def test_steps_that_do_more_now_and_then() -> None:
    result, _ = check(workload("repetition.py:EverySixteenth", (16,)), steps=20)
    assert result.smallest_failed_batch_size == (result.max_batch_size or 0) + 1


@pytest.mark.parametrize(
    "model", ["KeepsTheLastBatch", exhaustive("KeepsThreeBatches"), "KeepsTenBatches"]
)
def test_lists_that_fill_up(model: str) -> None:
    of = workload(f"repetition.py:{model}", (4096,))
    result, search = check(of)
    assert result.leak is None
    recommended = result.recommended_batch_size or 0
    assert status(of, recommended + 1, steps=20, limit=search.budget) == "oom"


def test_an_optimizer_that_makes_its_state_late() -> None:
    target = f"{MODELS}/repetition.py:TenthState"
    check(workload("repetition.py:Wide", (16,), optimizer=target), steps=20)


def test_an_island_is_not_recommended() -> None:
    inputs = (InputSpec(shape=(1, 4000)),)
    of = Workload(target="benchmarks.held_out_models:GatedResidual", inputs=inputs, loss="mean")
    with without_cudnn_workspaces():
        result, search = searched(of, max_batch_size=93)
        fit = {size: status(of, size, steps=6, limit=search.budget) for size in range(90, 94)}
    assert fit == {90: "ok", 91: "ok", 92: "oom", 93: "ok"}
    assert (result.max_batch_size, result.recommended_batch_size) == (93, 91)
    assert result.neighbours == Neighbours(ran=(89, 90), failed=(92,), moved_from=93)

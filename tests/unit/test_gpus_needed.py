"""The smallest number of GPUs on which a model trains: few are tried, and one less does not suffice."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import mock

import pytest
from command_line import settings_of

from bsfind.records import ModelInfo
from bsfind.search.events import Events
from bsfind.search.gpus_needed import find_gpus_needed, gpus_needed
from bsfind.search.time_budget import TimeBudget
from bsfind.settings import Settings
from bsfind.trial import Trial

CAPACITY = 80_000


class Cluster:
    """Ranks that hold a part of the model, and some memory each, whatever their number."""

    def __init__(self, model: int, each: int, *, in_steps_of: int = 1) -> None:
        self.model, self.each, self.unit = model, each, in_steps_of
        self.tried: list[int] = []

    def peak(self, number: int) -> int:
        peak = 4 * self.model // number + self.each
        return -(-peak // self.unit) * self.unit

    def run(self, settings: Settings) -> tuple[Trial, ModelInfo | None]:
        parallel = settings.parallel
        assert (parallel.strategy, settings.device.communicators) == (
            "fsdp",
            (parallel.world_size,),
        )
        number, share = parallel.world_size, self.model // parallel.world_size
        assert number not in self.tried
        self.tried.append(number)
        if share > CAPACITY:
            return Trial(batch_size=1, status="oom"), None
        model = ModelInfo(parameters=1, optimizer="AdamW", model_bytes=share, gradient_bytes=share)
        if self.peak(number) > CAPACITY:
            return Trial(batch_size=1, status="oom"), model
        return (
            Trial(
                batch_size=1,
                status="ok",
                peak_allocated_bytes=self.peak(number),
                peak_reserved_bytes=self.peak(number),
                resident_bytes=4 * share,
            ),
            model,
        )


@pytest.mark.parametrize("model", [21_000, 40_000, 39_999, 100_000, 1_000_000, 4_321_987])
@pytest.mark.parametrize("each", [0, 1_000, 35_000])
@pytest.mark.parametrize("unit", [1, 20_000])
def test_the_smallest_number(model: int, each: int, unit: int) -> None:
    cluster = Cluster(model, each, in_steps_of=unit)
    asked = settings_of(["run", "a:b", "--input-shape", "3", "--gpu", "a100-sxm4-80gb"])
    found = gpus_needed(asked, "mp-bf16", lambda _: CAPACITY, cluster.run)
    expected = next((n for n in range(2, 1025) if cluster.peak(n) <= CAPACITY), None)
    assert expected is not None
    assert found is not None
    assert found.world_size == expected
    assert len(cluster.tried) <= (12 if unit == 1 else 20)
    terms = found.parameter_bytes + found.gradient_bytes + found.optimizer_bytes
    assert terms + found.activation_bytes == pytest.approx(found.peak_reserved_bytes, rel=0.01)


def test_no_number_is_large_enough() -> None:
    cluster = Cluster(100, CAPACITY + 1)
    asked = settings_of(["run", "a:b", "--input-shape", "3", "--gpu", "a100-sxm4-80gb"])
    assert gpus_needed(asked, "fp32", lambda _: CAPACITY, cluster.run) is None
    assert max(cluster.tried) <= 1024


class Traces:
    """Stands for the trials of a rank; keeps how many steps each has, and whether all are traced."""

    model = ModelInfo(parameters=1, optimizer="AdamW", model_bytes=1, gradient_bytes=1)
    busy_s = 0.0
    asked: ClassVar[list[tuple[int, bool]]] = []
    limits_s: ClassVar[list[float]] = []

    def __init__(
        self, settings: Settings, precision: str, pool: object, clock: TimeBudget, **_: object
    ) -> None:
        self._clock = clock

    def run_within(self, size: int, limit: int, *, steps: int, exact: bool = False) -> Trial:
        self.asked.append((steps, exact))
        self.limits_s.append(self._clock.for_trial())
        return Trial(batch_size=size, status="ok", peak_allocated_bytes=1, resident_bytes=4)


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_what_was_not_asked_for_is_traced_for_few_steps(
    monkeypatch: pytest.MonkeyPatch, *, is_asked_for: bool
) -> None:
    monkeypatch.setattr("bsfind.search.gpus_needed.TrialRunner", Traces)
    monkeypatch.setattr(Traces, "asked", [])
    monkeypatch.setattr(Traces, "limits_s", [])
    asked = settings_of(
        ["run", "a:b", "--input-shape", "3", "--gpu", "a10g", "--precision", "amp-bf16"]
    )
    device = mock.Mock(supports_bf16=True, capacity_bytes=CAPACITY)
    worker = mock.Mock(is_alive=True)
    worker.open.return_value = device
    opened: Any = mock.Mock(settings=asked, device=device)
    clock = TimeBudget(120.0, None)
    found = find_gpus_needed(opened, worker, clock, Events(), is_asked_for=is_asked_for)
    assert found is not None
    assert found.world_size == 2
    each = [(20, True)] if is_asked_for else [(3, False), (20, False)]
    assert Traces.asked == each * (len(Traces.asked) // len(each))
    assert {*Traces.limits_s} == {120.0 if is_asked_for else 30.0}


def test_a_clock_with_shorter_trials_is_the_same_clock() -> None:
    clock = TimeBudget(120.0, 1000.0)
    shorter = clock.with_trials_of(30.0)
    assert (shorter.for_trial(), shorter.for_trial(2.0)) == (30.0, 60.0)
    assert clock.for_trial() == 120.0
    assert clock.with_trials_of(500.0).for_trial() == 120.0
    assert shorter.left_s == pytest.approx(clock.left_s, abs=1.0)

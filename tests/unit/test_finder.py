"""The finder with workers of the test's own: which device answers, and how many processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, ClassVar, cast

import jsonschema
import pytest
from example_report import SETTINGS, predicted_report

from bsfind.cli.session import exit_code
from bsfind.errors import (
    BsfindError,
    ExitCode,
    InternalError,
    NoDeviceError,
    NoGpuError,
    TimeLimitError,
    WorkerError,
)
from bsfind.inputs import InputSpec, parse_input, parse_input_shape
from bsfind.records import Assumption, DeviceInfo, ModelInfo, OutputMemory, ReportWarning
from bsfind.report.json import schema, to_json
from bsfind.report.sentences import accuracy
from bsfind.results import Report
from bsfind.search.events import Events
from bsfind.search.finder import Finder
from bsfind.search.time_budget import TimeBudget
from bsfind.search.trials import TrialRunner
from bsfind.settings import DeviceChoice, Settings
from bsfind.trial import Trial
from bsfind.units import MIB, format_bytes
from bsfind.worker.client import TrialAnswer

SIMULATED = predicted_report().device
assert SIMULATED is not None
MODEL = ModelInfo(parameters=7, optimizer="AdamW", model_bytes=100 * MIB)
LOSS = Assumption(what="loss", value="mean of the output", why="nothing else suits it")
CAVEAT = ReportWarning(code="coarse", message="an operator is modelled coarsely")


class FakeWorker:
    """A machine without a GPU; 50 MiB for each sample on the simulated one."""

    inputs: tuple[InputSpec, ...] = ()
    output: OutputMemory | None = None

    def __init__(self, on_warning: Callable[[ReportWarning], None], refusal: BsfindError) -> None:
        self._on_warning = on_warning
        self._refusal = refusal
        self._limit = 0
        self.is_alive = True
        self.assumptions = (LOSS,)
        self.loads: list[str] = []
        self.opened: list[DeviceChoice] = []

    def identify(self, choice: DeviceChoice, timeout_s: float) -> str:
        raise self._refusal

    def open(self, choice: DeviceChoice, timeout_s: float) -> DeviceInfo:
        self.opened.append(choice)
        if not choice.is_simulated:
            raise self._refusal
        assert SIMULATED is not None
        return SIMULATED

    def load(self, workload: object, precision: str, timeout_s: float) -> ModelInfo:
        assert SIMULATED is not None
        self._limit = SIMULATED.capacity_bytes
        self.loads.append(precision)
        self._on_warning(CAVEAT)
        return MODEL

    def limit_memory(self, nbytes: int, timeout_s: float) -> None:
        self._limit = nbytes

    def run_trial(
        self,
        batch_size: int,
        steps: int,
        timeout_s: float,
        *,
        record: bool = True,
        exact: bool = False,
    ) -> TrialAnswer:
        size = (100 + 50 * batch_size) * MIB
        if size > self._limit:
            trial = Trial(batch_size=batch_size, status="oom", message="out of memory")
        else:
            trial = Trial(
                batch_size=batch_size,
                status="ok",
                peak_allocated_bytes=size,
                peak_reserved_bytes=size,
                resident_bytes=100 * MIB,
                activation_bytes=50 * MIB * batch_size,
                steps=steps,
            )
        return TrialAnswer(trial=trial, is_clean=True, recording=None, kind="attention")


class FakePool:
    """Counts the workers that are taken."""

    refusal: BsfindError = NoGpuError("no usable GPU was found", detail="There is none.")
    workers: ClassVar[list[FakeWorker]] = []
    early: int = 0

    def __init__(self, *, expected: int, on_warning: Any = None, **_: Any) -> None:
        self._on_warning = on_warning
        type(self).early = expected

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self, variables: Any = None) -> FakeWorker:
        self.workers.append(FakeWorker(self._on_warning, self.refusal))
        return self.workers[-1]

    def prepare(self) -> None:
        pass

    def expect_no_more(self) -> None:
        type(self).early = 0

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> type[FakePool]:
    monkeypatch.setattr(FakePool, "workers", [])
    return FakePool


def settings(device: DeviceChoice, **more: Any) -> Settings:
    return dataclasses.replace(SETTINGS, device=device, **more)


NAMED = DeviceChoice(device="sim", gpu="rtx-4090")


class Named(Events):
    """Names a simulated GPU where there is no real one."""

    def __init__(self) -> None:
        self.asked: list[NoGpuError] = []

    def no_gpu(self, error: NoGpuError) -> DeviceChoice:
        self.asked.append(error)
        return NAMED


def found(asked: Settings, events: Events | None = None) -> tuple[Report, Finder]:
    finder = Finder(asked, events=events, make_pool=cast("Any", FakePool))
    report = finder.run()
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(report)))
    return report, finder


def test_a_prediction_needs_one_process(pool: type[FakePool]) -> None:
    report, finder = found(settings(NAMED))
    assert finder.errors == []
    assert len(pool.workers) == 1
    assert pool.early == 0
    assert pool.workers[0].loads == ["fp32", "amp-bf16"]
    assert report.status == "complete"
    assert report.simulated
    assert [result.precision for result in report.results] == ["fp32", "amp-bf16"]
    assert not any(result.verified for result in report.results)
    assert report.recommendation is not None
    assert report.recommendation.precision == "amp-bf16"  # as large as fp32
    assert "per second" not in report.recommendation.reason


def test_what_a_prediction_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    report, _ = found(settings(NAMED))
    assert report.prediction is not None
    assert report.prediction.torch_version == "2.13.0"
    assert report.prediction.allocator == {"expandable_segments": True}
    assert report.prediction.model_kind == "attention"
    assert report.prediction.accuracy is not None
    assert report.prediction.no_accuracy_because is None


def test_a_bound_is_not_shown_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SIMULATED is not None
    older = dataclasses.replace(SIMULATED, torch_version="2.9.1+cu128")
    monkeypatch.setitem(globals(), "SIMULATED", older)
    report, _ = found(settings(NAMED))
    assert report.prediction is not None
    assert report.prediction.accuracy is None
    assert accuracy(report) == "Error bound: not measured for torch 2.9 (measured for 2.13)."


def test_a_bound_is_not_shown_where_shapes_depend_on_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "CAVEAT", dataclasses.replace(CAVEAT, code="value_shapes"))
    report, _ = found(settings(NAMED))
    assert report.prediction is not None
    assert report.prediction.accuracy is None
    assert accuracy(report) == "Error bound: none for a step whose shapes depend on values."


def test_a_caveat_of_both_precisions_is_one() -> None:
    report, _ = found(settings(NAMED))
    assert report.warnings == (CAVEAT,)


def test_a_check_predicts_too() -> None:
    report, _ = found(settings(NAMED, batch_size=64))
    assert [result.max_batch_size for result in report.results] == [64, 64]
    report, _ = found(settings(NAMED, batch_size=6400))
    assert [result.status for result in report.results] == ["nothing_fits"] * 2


def test_without_a_gpu_it_fails() -> None:
    report, finder = found(settings(DeviceChoice()))
    assert [error.exit_code for error in finder.errors] == [ExitCode.NO_DEVICE]
    assert report.status == "failed"
    assert not report.simulated


def test_what_stands_in_for_a_gpu_that_is_not_there(pool: type[FakePool]) -> None:
    events = Named()
    report, finder = found(settings(DeviceChoice()), events)
    assert finder.errors == []
    assert [error.detail for error in events.asked] == ["There is none."]
    assert report.simulated
    assert report.reproduce.endswith(" --gpu rtx-4090")
    assert len([worker for worker in pool.workers if worker.opened]) == 1  # the other one predicts
    assert pool.early == 0


def test_a_mean_that_stands_in_for_the_loss_is_told_with_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = OutputMemory(bytes_per_sample=20 * MIB, is_stand_in=True)
    monkeypatch.setattr(FakeWorker, "output", output)
    report, _ = found(settings(NAMED))
    assert report.recommendation is not None
    (warning,) = [w for w in report.warnings if w.code == "loss_stand_in"]
    assert f"the model's output ({LOSS.why}): its mean is trained" in warning.message
    size = report.recommendation.batch_size
    assert f"at batch size {size:,} the output is " in warning.message
    assert "(40 %)" in warning.message  # of 50 MiB for each sample
    assert "`--loss cross-entropy`" in (warning.hint or "")
    monkeypatch.setattr(FakeWorker, "output", None)
    report, _ = found(settings(NAMED))
    assert "loss_stand_in" not in [w.code for w in report.warnings]


def test_a_large_output_is_assumed_to_be_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_outputs(nbytes: int) -> list[Assumption]:
        output = OutputMemory(bytes_per_sample=nbytes, is_stand_in=False)
        monkeypatch.setattr(FakeWorker, "output", output)
        report, _ = found(settings(NAMED))
        assert not any(w.code == "loss_stand_in" for w in report.warnings)
        assert report.recommendation is not None
        size = format_bytes(nbytes * report.recommendation.batch_size)
        made = [a for a in report.assumptions if a.what == "outputs"]
        assert all(f"needs up to {size} more at batch size " in a.why for a in made)
        return made

    (made,) = of_outputs(10 * MIB)  # of 50 MiB for each sample
    assert made.value == "released before the backward pass"
    assert not of_outputs(MIB // 2)


def test_what_was_assumed(pool: type[FakePool]) -> None:
    inputs = (parse_input_shape("3,4"), parse_input("ids=7:int64"), parse_input("x=:int64:0..9"))
    asked = dataclasses.replace(
        settings(NAMED), workload=dataclasses.replace(SETTINGS.workload, inputs=inputs)
    )

    def assumed(given: set[str]) -> list[tuple[str, str]]:
        report, _ = found(dataclasses.replace(asked, given=frozenset(given)))
        assert report.to_json()["workload"]["assumptions"][0]["what"] == "loss"
        return [(made.what, made.value) for made in report.assumptions]

    of_inputs = [("dtype of input 1", "float32"), ("values of input `ids`", "0..2")]
    loss = (LOSS.what, LOSS.value)
    assert assumed({"gpu", "optimizer"}) == [loss, *of_inputs]
    assert assumed({"device"}) == [
        *(loss, ("optimizer", "AdamW"), *of_inputs),
        ("GPU", "NVIDIA GeForce RTX 4090"),
    ]


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_nothing_stands_in_for_a_gpu_that_was_named(device: str) -> None:
    _, finder = found(settings(DeviceChoice(device=device)), Named())
    assert [error.exit_code for error in finder.errors] == [ExitCode.NO_DEVICE]


def test_nothing_stands_in_for_a_gpu_that_is_there_but_cannot_be_used(
    pool: type[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "refusal", NoDeviceError("`cuda:0` cannot be used: busy"))
    _, finder = found(settings(DeviceChoice()), Named())
    assert [error.message for error in finder.errors] == ["`cuda:0` cannot be used: busy"]


def test_a_worker_that_died_is_replaced(
    pool: type[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial = FakeWorker.run_trial

    def dies_in_the_first_precision(self: FakeWorker, *args: Any, **more: Any) -> TrialAnswer:
        if self.loads[-1] == "fp32":
            self.is_alive = False
            raise WorkerError("the worker was killed by SIGKILL")
        return run_trial(self, *args, **more)

    monkeypatch.setattr(FakeWorker, "run_trial", dies_in_the_first_precision)
    report, finder = found(settings(NAMED))
    assert finder.errors == []  # the other precision gave the answer
    assert report.status == "complete"
    assert [warning.code for warning in report.warnings] == ["coarse", "precision_failed"]
    assert [worker.loads for worker in pool.workers] == [["fp32"], ["amp-bf16"]]
    assert [result.status for result in report.results] == ["error", "ok"]


@pytest.mark.parametrize(
    ("error", "code", "answer"),
    [
        (InternalError("a bug"), ExitCode.INTERNAL, None),
        (TimeLimitError("the time budget of 1 s is spent"), ExitCode.STOPPED_EARLY, 5),
    ],
)
def test_only_a_time_limit_leaves_a_recommendation(
    monkeypatch: pytest.MonkeyPatch, error: BsfindError, code: ExitCode, answer: int | None
) -> None:
    run_trial = FakeWorker.run_trial

    def breaks_off(self: FakeWorker, batch_size: int, *args: Any, **more: Any) -> TrialAnswer:
        if batch_size > 5:
            monkeypatch.setattr(TimeBudget, "is_spent", isinstance(error, TimeLimitError))
            raise error
        return run_trial(self, batch_size, *args, **more)

    monkeypatch.setattr(FakeWorker, "run_trial", breaks_off)
    limits = dataclasses.replace(SETTINGS.limits, multiple_of=1, time_budget_s=60.0)
    report, finder = found(settings(NAMED, limits=limits, precisions=("fp32",)))
    assert exit_code(report, finder.errors) == code
    (result,) = report.results
    assert [trial.batch_size for trial in result.trials] == [5]
    assert result.recommended_batch_size == answer
    assert (report.recommendation is not None) == (answer is not None)


def test_a_worker_that_dies_before_any_code_of_the_user_s_ran_is_replaced(
    pool: type[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = FakeWorker.open
    deaths = [WorkerError("the worker was killed by SIGKILL, opening the device")]

    def die_once(worker: FakeWorker, choice: DeviceChoice, timeout_s: float) -> DeviceInfo:
        if deaths:
            raise deaths.pop()
        return opens(worker, choice, timeout_s)

    monkeypatch.setattr(FakeWorker, "open", die_once)
    runner = TrialRunner(
        settings(NAMED),
        "fp32",
        cast("Any", FakePool(expected=2, on_warning=lambda _: None)),
        TimeBudget(1.0, None),
        keeps_worker=False,
    )
    assert runner.load().parameters == 7
    assert runner.run_within(4, 1 << 40, steps=3).status == "ok"
    assert len(pool.workers) == 3


def test_after_a_bug_nothing_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in a precision that was searched before."""
    load = FakeWorker.load

    def breaks_off(
        self: FakeWorker, workload: object, precision: str, timeout_s: float
    ) -> ModelInfo:
        if precision == "tf32":
            raise InternalError("a bug")
        return load(self, workload, precision, timeout_s)

    monkeypatch.setattr(FakeWorker, "load", breaks_off)
    report, finder = found(settings(NAMED, precisions=("fp32", "tf32")))
    assert exit_code(report, finder.errors) == ExitCode.INTERNAL
    assert report.results[0].max_batch_size is not None
    assert report.recommendation is None
    assert [result.recommended_batch_size for result in report.results] == [None, None]

"""The simulated device: how much memory it has, what it says of itself, and its trials.

A tracer of the test's own stands in for the real one: what a step allocates is known here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from bsfind.devices.base import DoesNotFit
from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import ShortBatchError, TargetError, UntraceableError, UsageError
from bsfind.failures.leaks import StepMemory
from bsfind.inputs import InputSpec, parse_input_shape
from bsfind.records import Assumption, OutputMemory, ReportWarning
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.trace.building import FixedMemory
from bsfind.units import GIB, MIB

WORKLOAD = Workload(target="pkg.mod:Net", inputs=(parse_input_shape("3"),))


class FakeProgram:
    """A model of 100 MiB, and 10 MiB for each sample of a step."""

    traced_steps = 1
    step_ends = (None,)
    batches = None

    repeats = False

    def __init__(self, model_bytes: int, batch_size: int) -> None:
        self._model_bytes = model_bytes
        self._batch_size = batch_size

    def load(self, allocator: CachingAllocator) -> list[Any]:
        return [allocator.malloc(self._model_bytes)]

    def replay(self, allocator: CachingAllocator, blocks: list[Any]) -> Any:
        blocks += [allocator.malloc(10 * MIB) for _ in range(self._batch_size)]
        return SimpleNamespace(
            peak_allocated_bytes=allocator.peak_allocated_bytes,
            peak_reserved_bytes=allocator.peak_reserved_bytes,
            resident_bytes=(self._model_bytes,),
            activation_bytes=self._batch_size * 10 * MIB,
            memory=(
                StepMemory(
                    held_bytes=self._model_bytes,
                    peak_bytes=allocator.peak_allocated_bytes,
                    is_warm_up=True,
                ),
            ),
            retries=(allocator.num_alloc_retries,),
            peaks_by_step=(allocator.peak_allocated_bytes,),
            peaks_of_evaluation=None,
        )


class FakeTracer:
    """Stands in for `bsfind.simulation.trace.tracer.Tracer`."""

    class_name = "Net"
    weights_dtype: str | None = None
    assumptions: tuple[Assumption, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    output: OutputMemory | None = None
    model_bytes = 100 * MIB
    parameters = 7
    gradient_bytes = 28
    rank: int | None = None
    optimizer = "AdamW"
    steps = SimpleNamespace(operators=None)
    random_places: tuple[str, ...] = ()
    fault: BaseException | None = None
    opened: ClassVar[list[FakeTracer]] = []

    def __init__(
        self,
        workload: Workload,
        precision: str,
        gpu: Any,
        properties: Any,
        observer: Any,
        shapes: Any,
    ) -> None:
        self.gpu, self.properties, self.precision = gpu, properties, precision
        self.workload = workload
        self.notes: dict[str, str] = {}
        self.is_open = True
        self.asked: list[tuple[int, bool]] = []
        self.opened.append(self)

    def close(self) -> None:
        self.is_open = False

    def fixed_memory(self) -> FixedMemory:
        return FixedMemory(parameter_bytes=self.model_bytes)

    def model_program(self) -> FakeProgram:
        return FakeProgram(self.model_bytes, 0)

    def program(
        self,
        batch_size: int,
        steps: int,
        *,
        exact: bool,
        enough: int | None = None,
        most_entries: int | None = None,
    ) -> FakeProgram:
        self.asked.append((batch_size, exact))
        if self.fault is not None:
            raise self.fault
        self.notes["coarse"] = "an operator is modelled coarsely"
        return FakeProgram(self.model_bytes, batch_size)


@pytest.fixture(autouse=True)
def tracer(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeTracer]]:
    modules = {"tracer": {"Tracer": FakeTracer}, "cuda_module": {"SimulatedGpu": SimpleNamespace}}
    for name, content in modules.items():
        module = ModuleType(f"bsfind.simulation.trace.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeTracer, "opened", [])
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    yield FakeTracer
    assert sum(tracer.is_open for tracer in FakeTracer.opened) <= 1


def device(gpu: str = "rtx-4090", **more: int) -> SimulatedDevice:
    return SimulatedDevice(DeviceChoice(device="sim", gpu=gpu, **more))


def loaded(gpu: str = "rtx-4090", **more: int) -> SimulatedDevice:
    made = device(gpu, **more)
    made.load(WORKLOAD, "fp32")
    return made


# ------------------------------------------------------------------------------------- its memory


def test_the_context_is_taken_off_what_the_card_has() -> None:
    info = device().describe()
    assert (info.kind, info.name) == ("simulated", "NVIDIA GeForce RTX 4090")
    assert info.total_bytes == 25222447104
    assert info.context_source == "modelled"
    assert info.context_bytes is not None
    assert 300 * MIB < info.context_bytes < 600 * MIB
    assert info.free_bytes == info.capacity_bytes == info.total_bytes - info.context_bytes


def test_what_the_context_takes_can_be_given() -> None:
    info = device("24GiB", context_memory_bytes=1 * GIB).describe()
    assert (info.context_bytes, info.context_source) == (GIB, "given")
    assert (info.total_bytes, info.free_bytes) == (24 * GIB, 23 * GIB)
    assert device("24GiB", context_memory_bytes=0).describe().free_bytes == 24 * GIB


def test_eager_loading_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = device().describe().context_bytes or 0
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    assert (device().describe().context_bytes or 0) > lazy + GIB


def test_a_limit_below_the_card_is_what_the_allocator_may_reserve() -> None:
    info = device(memory_limit_bytes=8 * GIB).describe()
    assert info.total_bytes == 25222447104
    assert info.capacity_bytes == 8 * GIB < info.free_bytes


def test_a_limit_above_the_card_takes_its_place() -> None:
    info = device(memory_limit_bytes=40 * GIB, context_memory_bytes=GIB).describe()
    assert (info.total_bytes, info.free_bytes) == (41 * GIB, 40 * GIB)
    assert info.capacity_bytes == 40 * GIB


def test_a_card_whose_memory_is_not_known_is_as_large_as_the_limit() -> None:
    assert device("b300", memory_limit_bytes=270 * GIB).describe().capacity_bytes == 270 * GIB


def test_a_card_that_the_context_fills() -> None:
    with pytest.raises(UsageError, match="the CUDA context leaves nothing of generic 64"):
        device("64MiB")


@pytest.mark.parametrize(("gpu", "has_bf16"), [("t4", False), ("v100-sxm2-16gb", False)])
def test_what_old_cards_have_not(gpu: str, has_bf16: bool) -> None:
    info = device(gpu).describe()
    assert (info.supports_bf16, info.supports_tf32) == (has_bf16, has_bf16)
    assert device().describe().supports_bf16


# ------------------------------------------------------------------------------------- the trials


def test_a_trial_is_a_replay() -> None:
    made = device()
    model = made.load(WORKLOAD, "fp32")
    assert (model.parameters, model.optimizer, model.kind) == (7, "AdamW", None)
    assert model.model_bytes == 100 * MIB
    trial = made.run_trial(8, 3)
    assert (trial.status, trial.batch_size, trial.steps) == ("ok", 8, 3)
    assert trial.peak_allocated_bytes == 180 * MIB
    assert trial.resident_bytes == 100 * MIB
    assert trial.samples_per_s is None
    assert trial.step_time_s is None
    assert made.run_trial(8, 3) == trial
    assert made.is_clean
    assert made.recording is None


def test_a_size_is_traced_itself_where_that_is_asked_for(tracer: type[FakeTracer]) -> None:
    made = loaded()
    assert made.run_trial(8, 3).traced_steps == 1
    made.run_trial(8, 3, exact=True)
    assert tracer.opened[-1].asked == [(8, False), (8, True)]


def test_it_is_out_of_memory_where_the_memory_ends() -> None:
    made = loaded("1GiB", context_memory_bytes=0)
    fits = (1024 - 100) // 10
    assert made.run_trial(fits, 3).status == "ok"
    trial = made.run_trial(fits + 1, 3)
    assert trial.status == "oom"
    assert trial.message is not None
    assert "out of memory" in trial.message
    assert trial.num_alloc_retries == 1
    assert trial.peak_reserved_bytes is None


def test_the_limit_holds_until_the_model_is_loaded_again() -> None:
    made = loaded("1GiB", context_memory_bytes=0)
    made.limit_memory(512 * MIB)
    assert made.run_trial(41, 3).status == "ok"
    assert made.run_trial(42, 3).status == "oom"
    made.load(WORKLOAD, "amp-bf16")
    assert made.run_trial(42, 3).status == "ok"


def test_the_memory_limit_is_the_allocators() -> None:
    made = loaded(memory_limit_bytes=512 * MIB)
    assert made.run_trial(41, 3).status == "ok"
    assert made.run_trial(42, 3).status == "oom"


def test_a_model_that_does_not_fit_alone(
    tracer: type[FakeTracer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "model_bytes", 2 * GIB)
    with pytest.raises(DoesNotFit, match=r"parameters 2\.0 GiB, and the card has 1\.0 GiB for it"):
        loaded("1GiB", context_memory_bytes=0)


def refusal(message: str) -> TargetError:
    error = TargetError(f"`ValueError: {message}`")
    error.__cause__ = ValueError(message)
    return error


def test_batch_normalisation_may_refuse_one_sample() -> None:
    made = loaded()
    made._tracer.fault = refusal("Expected more than 1 value per channel when training")  # type: ignore[union-attr]
    trial = made.run_trial(1, 3)
    assert (trial.status, trial.error_kind) == ("error", "batch_norm")
    assert made.refusal is None
    assert made.run_trial(2, 3).error_kind == "refused"


def test_a_size_that_cannot_be_traced_ends_nothing_where_another_ran() -> None:
    made = loaded()
    fault = UntraceableError("`nonzero` cannot be predicted", hint="measure")
    made._tracer.fault = fault  # type: ignore[union-attr]
    with pytest.raises(UntraceableError):
        made.run_trial(5, 3)
    made._tracer.fault = None  # type: ignore[union-attr]
    assert made.run_trial(5, 3).status == "ok"
    made._tracer.fault = fault  # type: ignore[union-attr]
    trial = made.run_trial(40, 3)
    assert (trial.status, trial.error_kind) == ("error", "untraceable")
    assert made.refusal is not None
    assert made.refusal.hint == "measure"


@pytest.mark.parametrize("delivered", [500, None])
def test_a_batch_that_is_not_whole_is_no_answer_for_its_size(delivered: int | None) -> None:
    made = loaded()
    made._tracer.fault = ShortBatchError("`a:b` delivered 500", delivered=delivered)  # type: ignore[union-attr]
    trial = made.run_trial(700, 3)
    assert trial.status == "error"
    assert trial.error_kind == ("short_batch" if delivered else "refused")
    assert trial.delivered_batch_size == delivered
    assert isinstance(made.refusal, TargetError)


def test_what_another_batch_size_may_not_raise_is_a_refusal() -> None:
    made = loaded()
    made._tracer.fault = refusal("not a multiple of 4")  # type: ignore[union-attr]
    trial = made.run_trial(7, 3)
    assert (trial.status, trial.error_kind) == ("error", "refused")
    assert trial.message == "ValueError: not a multiple of 4"
    assert made.refusal is not None
    assert made.refusal.message == "`ValueError: not a multiple of 4`"
    assert made.refusal.__cause__ is None  # else the frames would be alive, and their tensors
    made._tracer.fault = None  # type: ignore[union-attr]
    assert made.run_trial(8, 3).status == "ok"
    assert made.refusal is None


def test_what_every_batch_size_raises_is_raised() -> None:
    made = loaded()
    error = TargetError("the loss has shape [7], not one value")
    error.__cause__ = error  # as user_error leaves bsfind's own errors
    made._tracer.fault = error  # type: ignore[union-attr]
    with pytest.raises(TargetError, match="not one value"):
        made.run_trial(1, 3)
    mistake = TargetError("`TypeError: forward() missing 1 argument`")
    mistake.__cause__ = TypeError("forward() missing 1 argument")
    made._tracer.fault = mistake  # type: ignore[union-attr]
    with pytest.raises(TargetError, match="missing 1 argument"):
        made.run_trial(1, 3)
    left = TargetError("the code called `sys.exit(3)`")
    left.__cause__ = SystemExit(3)
    made._tracer.fault = left  # type: ignore[union-attr]
    with pytest.raises(TargetError, match=r"sys\.exit"):
        made.run_trial(1, 3)


def test_failures_of_bsfind_are_not_blamed_on_the_user() -> None:
    made = loaded()
    made._tracer.fault = ZeroDivisionError()  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        made.run_trial(1, 3)


# ---------------------------------------------------------------------------------- what it says


def taken(device: SimulatedDevice) -> list[ReportWarning]:
    """Return the warnings without that of a torch that no prediction was compared with."""
    return [warning for warning in device.take_warnings() if warning.code != "torch_version"]


def test_each_caveat_is_told_once() -> None:
    made = loaded()
    assert taken(made) == []
    made.run_trial(1, 3)
    (warning,) = taken(made)
    assert warning == ReportWarning(code="coarse", message="an operator is modelled coarsely")
    made.run_trial(2, 3)
    assert made.take_warnings() == []


def test_options_of_the_allocator_that_are_not_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    (warning,) = taken(device())
    assert warning.code == "allocator_not_modelled"
    assert "`backend`" in warning.message


def test_options_of_the_allocator_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:1")
    with pytest.raises(UsageError, match="`max_split_size_mb` must be at least 20"):
        device()


def test_options_of_the_allocator_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "roundup_power2_divisions:2")
    trial = loaded().run_trial(1, 3)
    assert trial.peak_allocated_bytes == 128 * MIB + 12 * MIB


@pytest.mark.parametrize(
    ("precision", "override", "tf32"),
    [("fp32", None, (True, False)), ("tf32", None, (True, True)), ("tf32", "0", (False, False))],
)
def test_what_the_kernels_are_told(
    precision: str,
    override: str | None,
    tf32: tuple[bool, bool],
    tracer: type[FakeTracer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if override is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    device().load(WORKLOAD, precision)
    target = tracer.opened[-1].gpu
    assert (target.capability, target.sm_count, target.max_threads_per_sm) == ((8, 9), 128, 1536)
    assert (target.tf32_convolutions, target.tf32_matmul) == tf32
    assert tracer.opened[-1].properties.name == "NVIDIA GeForce RTX 4090"

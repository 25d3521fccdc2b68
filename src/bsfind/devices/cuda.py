"""The measured device: trains on the GPU and reads the caching allocator's own counters."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence

import torch

from bsfind.devices import nvml
from bsfind.devices.base import DoesNotFit, failed_in_evaluation, nccl_memory, short_trial
from bsfind.devices.cuda_gpu import cuda_device, identity, memory_left, unusable
from bsfind.devices.cuda_steps import MeasuredSteps, MemoryHistory
from bsfind.errors import BsfindError, ShortBatchError, TargetError, UsageError
from bsfind.failures.exceptions import plain
from bsfind.failures.leaks import STEPS_DIFFER, draws_assumption, draws_warning
from bsfind.failures.memory_watch import MemoryLeft
from bsfind.failures.oom import (
    BATCH_NORM_REFUSAL,
    DEVICE_FAULT,
    FailureKind,
    classify,
    first_sentence,
    is_batch_norm_refusal,
    may_depend_on_size,
)
from bsfind.inputs import InputSpec
from bsfind.records import Assumption, DeviceInfo, ModelInfo, OutputMemory, ReportWarning
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.allocator.recording import Recording
from bsfind.trial import Trial
from bsfind.units import format_bytes
from bsfind.workload.delivery import Extents
from bsfind.workload.late_imports import postpone_imports
from bsfind.workload.precision import precision_plan
from bsfind.workload.randomness import LargestStep, reproducible_building
from bsfind.workload.state import DeviceValues, State
from bsfind.workload.step import LoadedWorkload
from bsfind.workload.user_errors import text_of, user_error

_EXHAUSTED_FRACTION = 0.01
"""With less than this part of the device free, an inconclusive error counts as out of memory."""

_CLEAN_FRACTION = 0.0005
"""Part of the device that a trial may leave allocated (caches of the model, library state); if it
leaves more, the next trial runs in a new process."""


class CudaDevice:
    """A CUDA (or ROCm) device of this machine.

    Args:
        choice: which device, and how much of its memory may be used.

    Attributes:
        model_kind: None: operators are traced for predictions only (see `base.Device.model_kind`).
        convolution_workspaces: None: those that were measured are known.
        refusal: see `base.Device.refusal`.
        recording: see `base.Device.recording`.
        sizes_follow: False: every size has to run.

    Raises:
        NoDeviceError: torch sees no such device.
    """

    model_kind: None = None
    convolution_workspaces: None = None
    sizes_follow = False

    def __init__(self, choice: DeviceChoice) -> None:
        postpone_imports()
        self._device = cuda_device(choice)
        try:
            self._properties = torch.cuda.get_device_properties(self._device)
            self._uuid = identity(self._device, self._properties)
            free_before = nvml.free_bytes(self._uuid, self._properties.total_memory)
            torch.cuda.set_device(self._device)
            torch.zeros((), device=self._device)  # creates the context: `free` is without it
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise unusable(self._device, error) from error
        torch.cuda.empty_cache()
        self._free_bytes = torch.cuda.mem_get_info(self._device)[0]
        self._context_bytes = _context_bytes(free_before, self._free_bytes)
        self._nccl_bytes, self._nccl_source = nccl_memory(choice)
        self._capacity_bytes = max(0, self._free_bytes - (self._nccl_bytes or 0))
        self._memory_limit = choice.memory_limit_bytes
        if self._memory_limit is not None:
            if self._memory_limit > self._properties.total_memory:
                total = format_bytes(self._properties.total_memory)
                raise UsageError(
                    f"`--memory-limit` of {format_bytes(self._memory_limit)} is more than the "
                    f"{total} of {self._properties.name}"
                )
            self._capacity_bytes = min(self._memory_limit, self._capacity_bytes)
        # Without a limit, Windows and WSL would use host memory beyond what is free.
        self.limit_memory(self._capacity_bytes)
        self._loaded: LoadedWorkload | None = None
        self._state: State | None = None
        self._largest = LargestStep()
        self._new_warnings: list[ReportWarning] = []
        self._told: list[ReportWarning] = []
        self._baseline_bytes = 0
        self._residual_bytes = 0
        self._poisoned = False
        self.recording: Recording | None = None
        self.refusal: BsfindError | None = None

    def describe(self) -> DeviceInfo:
        """Return the device's properties and its free memory as this process found it."""
        properties = self._properties
        is_nvidia = torch.version.cuda is not None
        major = properties.major if is_nvidia else None
        return DeviceInfo(
            name=properties.name,
            index=self._device.index or 0,
            compute_capability=f"{properties.major}.{properties.minor}" if is_nvidia else None,
            total_bytes=properties.total_memory,
            free_bytes=max(0, self._free_bytes - (self._nccl_bytes or 0)),
            capacity_bytes=self._capacity_bytes,
            context_bytes=self._context_bytes,
            context_source=None if self._context_bytes is None else "measured",
            nccl_bytes=self._nccl_bytes,
            nccl_source=self._nccl_source,
            others_bytes=self._others_bytes(),
            supports_bf16=major is None or major >= 8,
            supports_tf32=major is not None and major >= 8,
            driver=nvml.driver_version(),
            torch_version=torch.__version__,
            cuda_version=torch.version.cuda or torch.version.hip,
            other_processes=nvml.other_processes(self._uuid, properties.total_memory),
        )

    def _others_bytes(self) -> int | None:
        if self._context_bytes is None:
            return None
        return max(0, self._properties.total_memory - self._free_bytes - self._context_bytes)

    def limit_memory(self, nbytes: int) -> None:
        """Let the allocator reserve at most `nbytes` (a fraction of the total memory, in torch)."""
        fraction = min(1.0, nbytes / self._properties.total_memory)
        torch.cuda.set_per_process_memory_fraction(fraction, self._device)

    def load(self, workload: Workload, precision: str) -> ModelInfo:
        """Build the model and move it to the device (see `base.Device.load`)."""
        too_large = self._state = None
        # Compiled code has to find torch's own functions.
        self._largest = LargestStep(is_watching=not workload.compile)
        try:
            with reproducible_building():
                self._loaded = LoadedWorkload(workload, precision_plan(precision), self._device)
            info = self._loaded.describe(lambda: torch.cuda.memory_allocated(self._device))
            values = DeviceValues(self._device)
            self._state = State(self._loaded.model, values, self._loaded.functions)
        except BaseException as raised:
            error = plain(raised)
            if classify(error, memory_exhausted=self._is_exhausted()) is FailureKind.OTHER:
                raise user_error(error, doing="building the model") from error
            too_large = first_sentence(str(error))
        if too_large is not None:
            raise DoesNotFit(too_large)
        self._release()
        self._baseline_bytes = torch.cuda.memory_allocated(self._device)
        return info

    def memory_left(self) -> MemoryLeft | None:
        """Return how much memory PyTorch can use now (see `base.Device.memory_left`)."""
        return memory_left(self._device, self._uuid, self._free_bytes, self._context_bytes)

    def take_warnings(self) -> list[ReportWarning]:
        """Return what was done to the model and whether steps differed (see `base.Device.take_warnings`)."""
        notes = self._loaded.notes if self._loaded is not None else {}
        noted = [ReportWarning(code=code, message=message) for code, message in notes.items()]
        new = [warning for warning in (*noted, *self._new_warnings) if warning not in self._told]
        self._told += new
        self._new_warnings = []
        return new

    @property
    def assumptions(self) -> list[Assumption]:
        """Return what was chosen for the steps (see `base.Device.assumptions`)."""
        loaded, places = self._loaded, self._largest.places
        chosen = loaded.assumptions if loaded is not None else []
        return [*chosen, draws_assumption(places)] if places else chosen

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """Return the inputs that follow from the model (see `base.Device.inputs`)."""
        return self._loaded.proposed_inputs if self._loaded is not None else ()

    @property
    def output(self) -> OutputMemory | None:
        """Return what the model returned (see `base.Device.output`)."""
        return self._loaded.output if self._loaded is not None else None

    @property
    def is_clean(self) -> bool:
        """Whether the last trial left almost no memory behind (see `base.Device.is_clean`)."""
        allowed = _CLEAN_FRACTION * self._properties.total_memory
        return not self._poisoned and self._residual_bytes <= allowed

    def run_trial(
        self, batch_size: int, steps: int, *, record: bool = True, exact: bool = False
    ) -> Trial:
        """Train for `steps` steps and read the peaks (see `base.Device.run_trial`).

        An exception holds the frames, and these the tensors: so it is turned into text inside the
        handler, and the memory is released outside of it.
        """
        if self._loaded is None:
            raise RuntimeError("run_trial before load")
        self.recording = self.refusal = None
        self._loaded.deliveries.begin()
        history = MemoryHistory(self._device)
        failed: Trial | BsfindError | None = None
        is_over = False
        while not is_over:
            measured = MeasuredSteps(self._loaded, batch_size)
            is_over = True
            try:
                if self._loaded.try_labels(batch_size):
                    self._release()
                with history.recorded() if record else contextlib.nullcontext():
                    is_over = measured.run(steps, self._capacity_bytes, self._largest)
            except BaseException as error:
                failed = self._failed_trial(plain(error), batch_size, measured)
            if not is_over:
                self._release()
                self._loaded.choice.forget_loss()
        if self._largest.places:
            self._new_warnings.append(draws_warning(self._largest.places))
        if measured.differ and not self._loaded.variation.is_there:
            self._new_warnings.append(STEPS_DIFFER)
        if failed is None and record:
            available = torch.cuda.mem_get_info(self._device)[0]
            available += torch.cuda.memory_reserved(self._device)
            self.recording = history.recording(
                batch_size, available, has_convolutions=self._loaded.has_convolutions
            )
        self._release()
        if failed is None or self.refusal is not None:  # it may be the reason
            failed = self._check_delivery(batch_size) or failed
        if failed is None:
            failed = self._spilled_trial(batch_size, steps, measured.peak_reserved)
        if isinstance(failed, BsfindError):
            raise failed
        if failed is not None:
            return failed
        return measured.trial()

    def _check_delivery(self, batch_size: int) -> Trial | BsfindError | None:
        """Compare the batch that was trained with what was asked for (see `delivery.Deliveries`).

        Returns:
            The trial of a batch with too few samples, or the error that ends the search; None if the batch
            is as it should be.
        """
        loaded = self._loaded
        assert loaded is not None

        def of(size: int, make: Callable[[int], Extents]) -> Extents | None:
            try:
                return make(size)
            except Exception:  # not kept: its frames hold the tensors
                return None
            finally:
                self._release()

        try:
            note = loaded.deliveries.check(
                batch_size,
                lambda size: of(size, loaded.batch_extents),
                lambda size: of(size, loaded.step_extents),
            )
        except ShortBatchError as error:
            trial, self.refusal = short_trial(batch_size, error)
            self.recording = None
            return trial
        except TargetError as error:
            return TargetError(error.message, hint=error.hint)
        if note is not None:
            loaded.notes["batch_ignored"] = note
        return None

    def _spilled_trial(self, batch_size: int, steps: int, peak_bytes: int) -> Trial | None:
        """Return the trial of a size that ran in host memory; None if it ran on the device.

        Where the GPU is full, drivers for Windows and WSL use host memory instead of failing ("CUDA -
        Sysmem Fallback Policy", since 535): the step runs, many times slower. bsfind limits the
        allocator, but the user's code can lift the limit.

        Args:
            batch_size: the batch size that ran.
            steps: the number of steps that ran.
            peak_bytes: peak reserved of the trial.
        """
        if peak_bytes <= self._free_bytes:
            return None
        return Trial(
            batch_size=batch_size,
            status="oom",
            steps=steps,
            message=f"spilled into host memory: {format_bytes(peak_bytes)} reserved of "
            f"{format_bytes(self._free_bytes)} that were free on the GPU",
        )

    def _failed_trial(
        self, error: BaseException, batch_size: int, measured: MeasuredSteps
    ) -> Trial | BsfindError:
        """Turn an exception into a trial, or into the error that ends the search."""
        if self._loaded is not None and self._loaded.parallelized is not None:
            self._poisoned = True  # FSDP2 and DDP keep the state of a pass that has not ended
        if isinstance(error, ShortBatchError):
            trial, self.refusal = short_trial(batch_size, error)
            return trial
        kind = classify(error, memory_exhausted=self._is_exhausted())
        if kind is FailureKind.OTHER or (kind is FailureKind.SIZE_LIMIT and batch_size == 1):
            return self._refused(error, batch_size)
        is_too_large = kind is FailureKind.SIZE_LIMIT
        trial = Trial(
            batch_size=batch_size,
            status="error" if is_too_large else "oom",
            error_kind="kernel_limit" if is_too_large else None,
            steps=len(measured.resident),
            message=first_sentence(str(error)),
        )
        if measured.is_evaluating and self._loaded is not None:
            return failed_in_evaluation(trial, self._loaded.workload.evaluated(batch_size))
        return trial

    def _refused(self, error: BaseException, batch_size: int) -> Trial | BsfindError:
        """Return the trial of a batch size that the step refuses, or the error that ends the search."""
        if batch_size == 1 and is_batch_norm_refusal(error):
            return Trial(
                batch_size=1, status="error", error_kind="batch_norm", message=BATCH_NORM_REFUSAL
            )
        reported = user_error(
            error,
            doing=f"{self._searched()} {batch_size} in {self._plan_name()}",
            inputs=self._loaded.last_batch if self._loaded else None,
        )
        # A fault of a kernel poisons the context; what bsfind itself reports holds at every size.
        is_own = type(reported) is TargetError and reported is not error
        if not is_own or DEVICE_FAULT.search(str(error)) or not may_depend_on_size(error):
            self._poisoned = True
            return reported
        self.refusal = reported
        return Trial(
            batch_size=batch_size, status="error", error_kind="refused", message=text_of(error)
        )

    def _searched(self) -> str:
        return self._loaded.workload.searched if self._loaded else "batch size"

    def _plan_name(self) -> str:
        return self._loaded.plan.name if self._loaded else "?"

    def _is_exhausted(self) -> bool:
        try:
            free, total = torch.cuda.mem_get_info(self._device)
            cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(
                self._device
            )
        except RuntimeError:  # the context is poisoned
            return False
        return free + cached < _EXHAUSTED_FRACTION * total

    def _release(self) -> None:
        """Set the model back to its state after loading, and free all memory but the model's."""
        if self._loaded is not None and self._loaded.parallelized and not self._poisoned:
            self._loaded.parallelized.reshard()
        if self._state is not None and not self._state.restore():
            self._poisoned = True
        if self._loaded is not None:
            self._loaded.clear_gradients()
        gc.collect()
        try:
            torch.cuda.synchronize(self._device)
            # Workspaces of cuBLAS live in the pool until the process ends, one for each thread and
            # stream (aten/src/ATen/cuda/CublasHandlePool.cpp, torch 1.11-2.13).
            with contextlib.suppress(AttributeError):
                torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
        except RuntimeError:  # the context is poisoned: only a new process helps
            self._poisoned = True
            return
        allocated = torch.cuda.memory_allocated(self._device)
        self._residual_bytes = allocated - self._baseline_bytes


def _context_bytes(free_before: int | None, free_after: int) -> int | None:
    """Return the memory of the CUDA context, bytes; None if it is not known.

    Args:
        free_before: free memory by the driver, before the context was made.
        free_after: free memory by CUDA, afterwards. It is more where another process freed some.
    """
    if free_before is None or free_before <= free_after:
        return None
    return free_before - free_after

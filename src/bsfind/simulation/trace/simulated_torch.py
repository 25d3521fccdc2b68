"""The torch of this thread on a simulated GPU: the parts that trace it, and all that is replaced."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bsfind.simulation.kernels.call import GpuSpec, load_rules
from bsfind.simulation.trace.cuda_paths import meta_kernel_gaps, quantised_weights
from bsfind.simulation.trace.cuda_paths.autocast import AutocastCuda
from bsfind.simulation.trace.cuda_paths.backward import GradientSums
from bsfind.simulation.trace.cuda_paths.composites import CudaComposites
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.distributed.ranks import parallel_handlers, parallel_torch
from bsfind.simulation.trace.distributed.storages import resizes_recorded
from bsfind.simulation.trace.masquerade.compiler import uncompiled
from bsfind.simulation.trace.masquerade.device import CudaMasquerade
from bsfind.simulation.trace.masquerade.torch_cuda import SimulatedGpu, simulated_cuda_module
from bsfind.simulation.trace.masquerade.torch_functions import cuda_groups, undelegated_functions
from bsfind.simulation.trace.recorder import Recorder
from bsfind.simulation.trace.self_check import problems
from bsfind.simulation.trace.torch_private import (
    AUTOCAST_CUDA,
    FAKE,
    allows_tf32_convolutions,
    check_torch,
    include_key,
)
from bsfind.simulation.trace.value_operators import value_handlers
from bsfind.simulation.trace.value_shapes import ValueShapes
from bsfind.workload.late_imports import postpone_imports


class SimulatedTorch:
    """What traces the operators of this thread.

    Args:
        gpu: the GPU that is modelled.
        properties: its properties, for code that asks.
        recorder: records what operators allocate.
        shapes: what depends on values, if steps with values were run.
        is_parallel: whether this is one of several GPUs that train together.

    Attributes:
        recorder: the recorder.
        autocast: the casts of `torch.autocast("cuda")`.
        composites: what compound operators of CUDA are made of.
        dispatcher: runs the operators.
        masquerade: lets simulated tensors look like CUDA's.

    Raises:
        UntraceableError: this torch cannot be traced.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        properties: SimulatedGpu,
        recorder: Recorder,
        shapes: ValueShapes | None = None,
        *,
        is_parallel: bool = False,
    ) -> None:
        postpone_imports()
        check_torch()
        load_rules()
        self._gpu = gpu
        self._is_parallel = is_parallel
        self._properties = properties
        self.recorder = recorder
        for problem in problems():
            recorder.note(
                "estimate",
                f"this is an estimate, not exact: the tracer does not fit this torch: {problem}",
            )
        self._sums = GradientSums()
        self.autocast = AutocastCuda(recorder.observer.has_cast, gpu.torch_version)
        self.composites = CudaComposites(gpu)
        self.dispatcher = Dispatcher(
            recorder,
            {
                **value_handlers(),
                **meta_kernel_gaps.handlers(),
                **quantised_weights.handlers(),
                "aten::add.Tensor": self._sums.handle,
                **(parallel_handlers() if is_parallel else {}),
            },
            self.composites.kernels,
            shapes,
        )
        self.masquerade = CudaMasquerade(self.dispatcher)

    @contextlib.contextmanager
    def active(self, answers: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Let this thread's torch run on the simulated GPU while inside.

        Args:
            answers: functions that stand for those of `torch.cuda` instead of the usual ones, by name.
        """
        is_on_gpu, recorder = self.dispatcher.is_on_gpu, self.recorder
        with (
            simulated_cuda_module(
                *(self._gpu, self._properties, self.autocast.clear_cache),
                *(recorder, answers or {}),
            ),
            self.composites.active(is_on_gpu),
            cuda_groups(is_on_gpu),
            undelegated_functions(),
            uncompiled(recorder.note),
            self.autocast.active(),
            self.dispatcher.active(),
            resizes_recorded(recorder),
            parallel_torch(self.dispatcher) if self._is_parallel else contextlib.nullcontext(),
        ):
            self._sums.calibrate()
            with self.masquerade.in_backward(), self.masquerade, recorder.observer.watching():
                yield

    @contextlib.contextmanager
    def active_in_thread(self) -> Iterator[None]:
        """Let another thread's torch run on it too, while `active` is entered."""
        include_key(FAKE, True)
        include_key(AUTOCAST_CUDA, True)
        with self.masquerade:
            yield

    def leave(self) -> None:
        """Let operators run as they are, in a process that was forked from one that simulates a GPU."""
        include_key(FAKE, False)
        include_key(AUTOCAST_CUDA, False)
        self.masquerade.is_off = True


def anonymous(gpu: GpuSpec) -> SimulatedGpu:
    """Return the properties of a GPU without a name, of whose memory nobody asks."""
    major, minor = gpu.capability
    return SimulatedGpu(
        name="GPU",
        total_memory=1 << 40,
        major=major,
        minor=minor,
        multi_processor_count=gpu.sm_count,
        max_threads_per_multi_processor=gpu.max_threads_per_sm,
    )


def gpu_as_set(gpu: GpuSpec) -> GpuSpec:
    """Return a GPU with what the user's code has set so far: on import, in `forward`, anywhere."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    return dataclasses.replace(
        gpu,
        tf32_convolutions=gpu.tf32_convolutions and allows_tf32_convolutions(),
        deterministic=deterministic,
        cudnn_deterministic=deterministic or torch.backends.cudnn.deterministic,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
    )

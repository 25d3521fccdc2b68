"""What `torch.cuda` and `torch._C` answer while a step is traced: that there is a GPU, and which one.

Nothing here touches a driver: the functions of the module are replaced for the time of the trace.
Memory is counted by the replay, not by the program that is traced: questions about memory are
answered with the bytes of the tensors that are alive.

Libraries take names that only a CUDA build of `torch._C` has at import or at first use. Questions
are answered as on one GPU that does nothing else; what would launch a kernel or hand out memory is
refused when it is called.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.utils.checkpoint

from bsfind.errors import UntraceableError
from bsfind.simulation import torch_releases
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.masquerade.device import TENSOR_TYPES
from bsfind.simulation.trace.masquerade.streams import stream_functions
from bsfind.simulation.trace.recorder import Recorder
from bsfind.simulation.trace.torch_private import native_module
from bsfind.workload.user_errors import user_line


class SimulatedGpu(SimpleNamespace):
    """The properties of the GPU, as `torch.cuda.get_device_properties` returns them."""

    name: str
    total_memory: int
    # The same on all GPUs of compute capability 5.0 to 12.1.
    warp_size = 32
    max_threads_per_block = 1024
    regs_per_multiprocessor = 65536
    shared_memory_per_block = 49152
    is_integrated = 0
    is_multi_gpu_board = 0


class _Device(contextlib.nullcontext[None]):
    """The only device: a class, as torch asks `isinstance(x, torch.cuda.device)`."""

    def __init__(self, *_: object) -> None:
        super().__init__()


_COUNTERS = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
_COMMANDS = (
    *("init", "_lazy_init", "set_device", "synchronize", "empty_cache", "ipc_collect"),
    *("reset_peak_memory_stats", "reset_max_memory_allocated", "set_per_process_memory_fraction"),
    *("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"),
    *("set_sync_debug_mode", "_record_memory_history", "_dump_snapshot"),
)
"""Functions that do nothing here."""

_WITHOUT_MEANING = (
    *("CUDAGraph", "graph", "graph_pool_handle", "make_graphed_callables", "MemPool"),
    *("current_blas_handle", "caching_allocator_alloc", "caching_allocator_delete"),
    *("change_current_allocator", "CUDAPluggableAllocator"),
)
"""What captures, hands out or replaces memory past the caching allocator that is modelled."""


def _constant(value: Any) -> Callable[..., Any]:
    """Return a function that returns a value: one of its own, as torch's compiler tells them apart."""
    return lambda *_, **__: value


def _replacements(gpu: GpuSpec, properties: SimulatedGpu, recorder: Recorder) -> dict[str, Any]:
    """Return the functions and classes that stand for those of `torch.cuda`, by name."""
    major, minor = gpu.capability
    total = properties.total_memory

    def allocated() -> int:
        return recorder.allocated_bytes

    random_state = torch.zeros(16, dtype=torch.uint8)
    values: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_capability": (major, minor),
        "get_device_properties": properties,
        "is_bf16_supported": major >= 8,
        "is_tf32_supported": major >= 8,
        "initial_seed": 0,
        "is_current_stream_capturing": False,
        "memory_summary": "",
        "list_gpu_processes": "",
        "get_allocator_backend": "native",
        "can_device_access_peer": False,
        "get_sync_debug_mode": 0,
        "utilization": 0,
        **dict.fromkeys(_COMMANDS),
    }
    return {
        **{name: _constant(value) for name, value in values.items()},
        "_initialized": True,
        "device": _Device,
        "device_of": _Device,
        "get_arch_list": lambda: [f"sm_{major}{minor}"],
        "mem_get_info": lambda *_: (max(0, total - allocated()), total),
        "memory_stats": lambda *_: _memory_stats(allocated()),
        "memory_stats_as_nested_dict": lambda *_: {},
        "memory_snapshot": lambda *_: [],
        **{name: lambda *_, **__: allocated() for name in _COUNTERS},
        "get_rng_state": lambda *_: random_state.clone(),
        "get_rng_state_all": lambda: [random_state.clone()],
        **stream_functions(recorder.streams, lambda: recorder.count),
        "cudart": _CudaRuntime,
        **{name: refusing_class("torch.cuda", name) for name in _WITHOUT_MEANING},
        **TENSOR_TYPES,
    }


def _memory_stats(allocated: int) -> dict[str, int]:
    """Return `torch.cuda.memory_stats()`: what is allocated, and zero of what is only counted."""
    sizes = (
        f"{kind}_bytes.all.{when}"
        for kind in ("allocated", "reserved", "active", "requested")
        for when in ("current", "peak", "allocated")
    )
    return defaultdict(int, dict.fromkeys(sizes, allocated))


class _CudaRuntime:
    """`torch.cuda.cudart()`: the profiler's switches."""

    @staticmethod
    def cudaProfilerStart() -> int:  # noqa: N802 (CUDA's name)
        return 0

    @staticmethod
    def cudaProfilerStop() -> int:  # noqa: N802 (CUDA's name)
        return 0

    @staticmethod
    def cudaMemGetInfo(_device: int) -> tuple[int, int]:  # noqa: N802 (CUDA's name)
        return torch.cuda.mem_get_info()


class _KeepOnHost:
    """Lets `torch.load` leave on the host what was saved, or is wanted, on the GPU.

    Weights are copied from there wherever they belong.
    """

    is_active = False

    def __call__(self, storage: Any, location: str) -> Any:
        return storage if self.is_active and location.startswith("cuda") else None


_keep_on_host = _KeepOnHost()
torch.serialization.register_package(1, lambda _: None, _keep_on_host)  # before CUDA's, which is 20


_NVTX = ("range_push", "range_pop", "range_start", "range_end", "mark")


def _accelerator_replacements(answers: dict[str, Any]) -> dict[str, Any]:
    """What `torch.accelerator` answers; torch's optimizers ask it from 2.14 on."""
    same = (
        *("is_available", "device_count", "current_stream", "set_stream", "synchronize"),
        *("empty_cache", "memory_stats", "reset_peak_memory_stats", *_COUNTERS),
    )
    return {name: answers[name] for name in same} | {
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        **{name: _constant(0) for name in ("current_device_index", "current_device_idx")},
        **{name: _constant(None) for name in ("set_device_index", "set_device_idx")},
        "reset_accumulated_memory_stats": _constant(None),
        "get_memory_info": answers["mem_get_info"],
    }


@contextlib.contextmanager
def simulated_cuda_module(
    gpu: GpuSpec,
    properties: SimulatedGpu,
    clear_autocast_cache: Callable[[], None],
    recorder: Recorder,
    own_answers: Mapping[str, Any],
) -> Iterator[None]:
    """Let torch's Python code find a GPU while inside.

    Args:
        gpu: the GPU that is modelled.
        properties: its properties.
        clear_autocast_cache: called when the outermost autocast is left.
        recorder: knows the tensors on the GPU, whose bytes code may ask for, and the streams.
        own_answers: functions that stand for those of `torch.cuda` instead of the usual ones, by name.
    """
    import torch.cuda.amp.common

    own_clear = torch.clear_autocast_cache

    def clear() -> None:
        clear_autocast_cache()
        own_clear()

    with contextlib.ExitStack() as undo:

        def replace(owner: Any, name: str, value: Any) -> None:
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)

        undo.enter_context(cuda_build(gpu))
        answers = {**_replacements(gpu, properties, recorder), **own_answers}
        # Most of these functions are in a module of their own, which code asks too.
        owners = (
            *(torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams),
            *(torch.cuda.graphs, torch.cuda.profiler),
        )
        for owner in owners:
            for name, value in answers.items():
                replace(owner, name, value)
        for name in _NVTX:
            replace(torch.cuda.nvtx, name, _constant(0))
        cuda, cudnn = torch_releases.cuda_and_cudnn(gpu.torch_version)
        replace(torch.version, "cuda", cuda)
        replace(torch.backends.cuda, "is_built", lambda: True)
        replace(torch.backends.cudnn, "is_available", lambda: True)
        replace(torch.backends.cudnn, "version", lambda: cudnn)
        if hasattr(torch, "accelerator"):  # torch 2.6
            for name, value in _accelerator_replacements(answers).items():
                replace(torch.accelerator, name, value)
        replace(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        replace(torch, "clear_autocast_cache", clear)
        _keep_on_host.is_active = True
        undo.callback(setattr, _keep_on_host, "is_active", False)
        yield


_NATIVE_COMMANDS = (
    *("_cuda_init", "_cuda_setDevice", "_cuda_setStream", "_cuda_synchronize"),
    *("_cuda_emptyCache", "_cuda_ipc_collect", "_cuda_sleep", "_cuda_setMemoryFraction"),
    *("_cuda_resetPeakMemoryStats", "_cuda_resetAccumulatedMemoryStats"),
    *("_cuda_record_memory_history", "_cuda_clearCublasWorkspaces"),
    *("_cuda_set_sync_debug_mode", "_cuda_set_cudnn_benchmark_limit"),
)
"""Functions of `torch._C` that do nothing here."""
_PREFIXES = ("_cuda_", "_CUDA", "_Cuda", "_cudnn_", "_nccl_")


def refuse(name: str) -> NoReturn:
    """Refuse a call that a prediction cannot answer.

    Raises:
        UntraceableError: names it, and the user's line.
    """
    where = user_line()
    raise UntraceableError(
        f"`{name}`{f', called in {where},' if where else ''} cannot be predicted without a GPU",
        hint="`--device cuda` measures instead, on a machine with a GPU",
    )


def _answers(gpu: GpuSpec) -> dict[str, Any]:
    """Return what names of `torch._C` are that only a CUDA build has."""
    major, minor = gpu.capability
    cuda, _ = torch_releases.cuda_and_cudnn(gpu.torch_version)
    values: dict[str, Any] = {
        "_cuda_getDevice": 0,
        "_cuda_getDeviceCount": 1,
        "_cuda_exchangeDevice": 0,
        "_cuda_maybeExchangeDevice": 0,
        "_cuda_hasPrimaryContext": True,
        "_cuda_isInBadFork": False,
        "_cuda_canDeviceAccessPeer": False,
        "_cuda_getCurrentRawStream": 0,
        "_cuda_getCurrentStream": (0, 0, 1),
        "_cuda_getDefaultStream": (0, 0, 1),
        "_cuda_isCurrentStreamCapturing": False,
        "_cuda_getCompiledVersion": int(cuda.replace(".", "")) * 100,
        "_cuda_getArchFlags": f"sm_{major}{minor}",
        "_cuda_getAllocatorBackend": "native",
        "_cuda_getMemoryFraction": 1.0,
        "_cuda_isHistoryEnabled": False,
        "_cuda_get_sync_debug_mode": 0,
        "_cuda_tunableop_is_enabled": False,
        "_cuda_memoryStats": {},
        "_cuda_memorySnapshot": {"segments": [], "device_traces": []},
        "_nccl_version": 2 << 32 | 28 << 16 | 9,  # 2.28.9
        "_nccl_version_suffix": b"",
        **dict.fromkeys(_NATIVE_COMMANDS),
    }
    return {
        **{name: _constant(value) for name, value in values.items()},
        "_scatter": _scatter,
        "_broadcast": lambda tensor, devices: [tensor for _ in devices],
        "_broadcast_coalesced": lambda tensors, devices, *_: [list(tensors) for _ in devices],
        "_gather": lambda tensors, *_: tensors[0],
    }


def _scatter(tensor: torch.Tensor, devices: Sequence[int], *_: Any) -> list[torch.Tensor]:
    if len(devices) != 1:
        refuse("torch.cuda.comm.scatter")
    return [tensor.to("cuda")]


class _Refusing(type):
    """The type of classes of which nothing can be made: code names them, and asks `isinstance`."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        refuse(f"{cls.__module__}.{cls.__name__}")


def refusing_class(module: str, name: str) -> type:
    """Return a class that stands for one of the CUDA build, and says so when it is called."""
    return _Refusing(name, (), {"__module__": module})


@contextlib.contextmanager
def cuda_build(gpu: GpuSpec) -> Iterator[None]:
    """Let `torch._C` have the names of a CUDA build for a GPU while inside."""
    known = _answers(gpu)

    def lacking(name: str) -> Any:
        if name.startswith(("_CUDA", "_Cuda")):
            return refusing_class("torch._C", name)
        if name.startswith(_PREFIXES):
            return lambda *_, **__: refuse(f"torch._C.{name}")
        raise AttributeError(f"module 'torch._C' has no attribute '{name}'")

    # It logs a traceback where its kernels cannot be loaded, which nothing here needs.
    logging.getLogger("bitsandbytes.cextension").setLevel(logging.CRITICAL)
    own = {name: vars(native_module)[name] for name in known if name in vars(native_module)}
    vars(native_module).update(known)
    native_module.__getattr__ = lacking
    try:
        yield
    finally:
        del native_module.__getattr__
        for name in known:
            del vars(native_module)[name]
        vars(native_module).update(own)

"""The names of `torch._C` that only a CUDA build of PyTorch has, while a step is traced.

Libraries take them at import or at first use. Questions are answered as on one GPU that does
nothing else; what would launch a kernel or hand out memory says what it is when it is called.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch

from bsfind.errors import UntraceableError
from bsfind.simulation.kernels.call import CudaTarget
from bsfind.simulation.kernels.cudnn_engines import CUDNN_VERSION
from bsfind.simulation.trace.torch_private import native_module
from bsfind.workload.blame import user_line

_PREFIXES = ("_cuda_", "_CUDA", "_Cuda", "_cudnn_", "_nccl_")
_NCCL_VERSION = (2, 28, 9)


def versions(gpu: CudaTarget) -> tuple[str, int]:
    """Return the versions of CUDA and cuDNN that the default wheels of a torch come with."""
    if gpu.torch_version >= (2, 11):
        return "13.0", CUDNN_VERSION
    return ("12.8", 91002) if gpu.torch_version >= (2, 8) else ("12.6", 90501)


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


def _answers(gpu: CudaTarget) -> dict[str, Any]:
    """Return what these names are, by name."""
    major, minor = gpu.capability
    cuda, _ = versions(gpu)
    nccl = _NCCL_VERSION[0] << 32 | _NCCL_VERSION[1] << 16 | _NCCL_VERSION[2]
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
        "_nccl_version": nccl,
        "_nccl_version_suffix": b"",
    }
    commands = (
        *("_cuda_init", "_cuda_setDevice", "_cuda_setStream", "_cuda_synchronize"),
        *("_cuda_emptyCache", "_cuda_ipc_collect", "_cuda_sleep", "_cuda_setMemoryFraction"),
        *("_cuda_resetPeakMemoryStats", "_cuda_resetAccumulatedMemoryStats"),
        *("_cuda_record_memory_history", "_cuda_clearCublasWorkspaces"),
        *("_cuda_set_sync_debug_mode", "_cuda_set_cudnn_benchmark_limit"),
    )
    return {
        **{name: _constant(value) for name, value in values.items()},
        **{name: _constant(None) for name in commands},
        "_scatter": _scatter,
        "_broadcast": lambda tensor, devices: [tensor for _ in devices],
        "_broadcast_coalesced": lambda tensors, devices, *_: [list(tensors) for _ in devices],
        "_gather": lambda tensors, *_: tensors[0],
    }


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


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
def cuda_build(gpu: CudaTarget) -> Iterator[None]:
    """Let `torch._C` have the names of a CUDA build while inside.

    Args:
        gpu: which GPU there seems to be.
    """
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

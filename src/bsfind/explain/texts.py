"""Which texts are out-of-memory errors, and of what kind: a table, each line with its source.

It starts from the table of `bsfind.oom`, which decides about exceptions, and adds what only a log
shows: other frameworks, the host's killer, and texts that stand for lack of memory if nothing
better explains them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum

from bsfind.oom import DEVICE_FAULT, OOM_TEXTS

__all__ = [
    "HEAD",
    "KEYS",
    "Kind",
    "Match",
    "Strength",
    "is_fault",
    "match_text",
    "match_traceback",
]


class Kind(str, Enum):
    """What ran out of memory."""

    CUDA_OOM = "cuda_oom"
    HIP_OOM = "hip_oom"
    XPU_OOM = "xpu_oom"
    MPS_OOM = "mps_oom"
    CPU_OOM = "cpu_oom"
    CUDNN_ALLOC = "cudnn_alloc"
    CUBLAS_ALLOC = "cublas_alloc"
    HOST_OOM_KILL = "host_oom_kill"
    OTHER_FRAMEWORK_OOM = "other_framework_oom"
    NOT_OOM = "not_oom"


class Strength(IntEnum):
    """What a text proves."""

    HINT = 1
    """Lack of memory, unless the log holds a fault or a clearer error."""
    LIBRARY = 2
    """A library's allocation failed; a fault of a kernel before it makes it an echo."""
    PROOF = 3
    """An allocation failed, whatever else the log says."""


@dataclass(frozen=True)
class Match:
    """What a text was found to be, and where the text comes from."""

    kind: Kind
    strength: Strength
    source: str
    start: int


@dataclass(frozen=True)
class _Text:
    pattern: str
    kind: Kind
    source: str
    strength: Strength = Strength.PROOF


_OTHER = Kind.OTHER_FRAMEWORK_OOM
_HOST = Kind.HOST_OOM_KILL
_HINT = Strength.HINT

_BEFORE_SHARED = (
    # The host: its killer names itself.
    _Text(r"out of memory: kill(ed)? process|oom-kill:constraint", _HOST, "Linux, mm/oom_kill.c"),
    _Text(
        r"invoked oom-killer|memory cgroup out of memory|oom_reaper", _HOST, "Linux, mm/oom_kill.c"
    ),
    _Text(
        r"oom[-_ ]?kill event|cgroup out-of-memory handler|exceeded (job|step) memory limit"
        r"|task \d+: out of memory|\b(?-i:OUT_OF_ME)(MORY|\+)",
        _HOST,
        "Slurm: slurmstepd, srun, sacct",
    ),
    _Text(
        r"\bOOMKilled\b(?!\"?[:=] ?false)",
        _HOST,
        "Kubernetes, Docker: reason of a container that ended",
    ),
    _Text(r"TERM_MEMLIMIT|job killed: \S*mem \S+ exceeded limit", _HOST, "LSF, PBS"),
    _Text(
        r"killed due to the node running low on memory|workers? \(tasks / actors\) killed due to memory",
        _HOST,
        "Ray: memory monitor",
    ),
    # Other frameworks that use the same words as PyTorch.
    _Text(
        r"lua/5\.\d.{0,300}out of memory|(luarocks|cutorch|cunn).{0,300}out of memory",
        _OTHER,
        "Torch 7",
    ),
    _Text(
        r"\b(?!CUDA|HIP|XPU|MPS)[A-Z]{3,5} out of memory\. Tried to allocate",
        _OTHER,
        "PyTorch on other accelerators: torch_npu, torch_musa, torch_mlu …",
    ),
    _Text(
        r"(ggml|llama)\w*[:.].{0,300}(out of memory|failed to allocate|unable to allocate"
        r"|insufficient memory)"
        r"|(out of memory|failed to allocate|unable to allocate).{0,300}(ggml|llama_)\w*[:.(]"
        r"|(unable|failed) to allocate (CUDA|ROCm|Metal|Vulkan|SYCL|CPU)\w* (compute )?buffers?"
        r"|kIOGPUCommandBufferCallbackErrorOutOfMemory|ErrorOutOf(Device|Host)Memory",
        _OTHER,
        "llama.cpp: ggml-cuda.cu, ggml-metal.m, ggml-vulkan.cpp",
    ),
    _Text(r"requires more (system |GPU )?memory \(.{1,30}\) than is available", _OTHER, "Ollama"),
    _Text(r"OOM when allocating tensor|ran out of memory trying to allocate", _OTHER, "TensorFlow"),
    _Text(
        r"failed to allocate \S+ \(\d+ bytes\) from device|failed to alloc \d+ bytes on host",
        _OTHER,
        "XLA: cuda_driver.cc (TensorFlow, JAX)",
    ),
    _Text(
        r"RESOURCE_EXHAUSTED.{0,120}(out of memory|allocat|hbm|ran out)"
        r"|ResourceExhaustedError.{0,200}(memory|OOM|allocat)|ran out of memory in memory space",
        _OTHER,
        "XLA, TensorFlow",
    ),
    _Text(r"out of memory error on (GPU|XPU|NPU) \d+", _OTHER, "PaddlePaddle: cuda_allocator.cc"),
    _Text(
        r"cupy\S*OutOfMemoryError|out of memory allocating [\d,]+ bytes", _OTHER, "CuPy: memory.pyx"
    ),
    _Text(
        r"failed to allocate memory for requested buffer of size|BFCArena::\w+.{0,300}(requested bytes|alloc)"
        r"|onnxruntime.{0,400}out of memory|CUDA failure 2: out of memory",
        _OTHER,
        "ONNX Runtime: bfc_arena.cc, cuda_call.cc",
    ),
    _Text(
        r"requested amount of GPU memory|tensorrt.{0,200}out ?of ?memory|\[TRT\].{0,200}out ?of ?memory",
        _OTHER,
        "TensorRT",
    ),
    _Text(r"mxnet.{0,300}out of memory|cudaMalloc retry failed", _OTHER, "MXNet"),
    _Text(
        r"(numba|pycuda|chainer)\S*.{0,200}(out of memory|OUT_OF_MEMORY)", _OTHER, "Numba, PyCUDA"
    ),
    _Text(r"std::bad_alloc: (out_of_memory|CUDA error)|rmm.{0,100}out_of_memory", _OTHER, "RAPIDS"),
    _Text(r"xgboost.{0,300}memory allocation error", _OTHER, "XGBoost"),
    _Text(r"\[(metal::)?malloc(_or_wait)?\] (unable|attempting|failed) to allocate", _OTHER, "MLX"),
    _Text(r"java\.lang\.OutOfMemoryError", _OTHER, "Java"),
    _Text(
        r"no available memory for the cache blocks|larger than the available KV cache memory"
        r"|is less than desired GPU memory utilization|not enough memory\. please try to increase",
        _OTHER,
        "vLLM, SGLang: their own check of what is left for the cache",
    ),
)

_AFTER_SHARED = (
    _Text(
        r"MPS.{0,40}out of memory|invalid buffer size:? [\d.]+ [KMGT]i?B", Kind.MPS_OOM, "aten/mps"
    ),
    _Text(
        r"tried to allocate [\d.]+ (bytes|[KMG]iB)\.? ?\(?GPU \d",
        Kind.CUDA_OOM,
        "c10/cuda/CUDACachingAllocator.cpp, quoted without its beginning",
    ),
    _Text(
        r"cuda runtime error \(2\) ?: out of memory|THCudaCheck FAIL.{0,200}error=2 ?: out of memory",
        Kind.CUDA_OOM,
        "THC/THCGeneral.cpp (torch 0.1-1.5)",
    ),
    _Text(
        r"cuda failure '?(2 )?'?out of memory|cudaMalloc\w* failed: out of memory"
        r"|cu(da)?Mem\w+ .{0,60}out of memory|error out of memory at line \d+ in file",
        Kind.CUDA_OOM,
        "NCCL; CUDA extensions (bitsandbytes: ops.cu)",
    ),
    _Text(r"\bCUDA out of memory[\"'`*!)}\]]", Kind.CUDA_OOM, "the beginning of it, quoted"),
    _Text(r"preemptively rejected because it would exceed", Kind.CUDA_OOM, "torch 2.13"),
    _Text(r"hipErrorOutOfMemory|hip(Malloc)? .{0,40}out of memory", Kind.HIP_OOM, "HIP runtime"),
    _Text(
        r"UR_RESULT_ERROR_OUT_OF_(DEVICE|HOST)_MEMORY|OUT_OF_DEVICE_MEMORY|PI_ERROR_OUT_OF_(RESOURCES|HOST_MEMORY)"
        r"|XPU.{0,20}out of memory",
        Kind.XPU_OOM,
        "Level Zero, SYCL",
    ),
    _Text(
        r"_ArrayMemoryError|unable to allocate [\d.]+ ?[KMGT]?i?B(ytes)? for an array",
        Kind.CPU_OOM,
        "NumPy",
    ),
    _Text(r"(?<![\w.])MemoryError\b|std::bad_alloc", Kind.CPU_OOM, "CPython, C++"),
    _Text(
        r"\[Errno 12\]|(OSError|fork|mmap|RuntimeError).{0,200}cannot allocate memory"
        r"|cannot allocate memory \(12\)|failed to allocate memory \(errno|unable to mmap \d+ bytes",
        Kind.CPU_OOM,
        "ENOMEM",
    ),
    # Weaker: what these say depends on what else the log says.
    _Text(r"CUDNN_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)", Kind.CUDNN_ALLOC, "cudnn.h", _HINT),
    _Text(
        r"CUBLAS_STATUS_NOT_INITIALIZED|CUSOLVER_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)"
        r"|CUBLAS_STATUS_INTERNAL_ERROR.{0,40}cublasCreate|CUFFT_INTERNAL_ERROR",
        Kind.CUBLAS_ALLOC,
        "cublas_api.h: handles that were not made",
        _HINT,
    ),
    _Text(
        r"exit ?code ?: ?-9\b|signal 9 \(SIGKILL\)|died with <Signals\.SIGKILL|non-zero exit status -9\b"
        r"|exit(ed with)? (code|status):? 137\b|returned (exit code )?137\b"
        r"|(?<!killed by)(?<!killed by\s)signal: killed\b"
        r"|SIGKILL\S*.{0,60}out of memory|unexpectedly exit with exit code -9",
        _HOST,
        "SIGKILL, which the kernel's out-of-memory killer sends",
        _HINT,
    ),
    _Text(
        r"(^|: line \d+: ?)\s*(\d+ )?Killed\b\s*(\(core dumped\))?(\s{2,}.*)?$",
        _HOST,
        "shell",
        _HINT,
    ),
)

_IN_TRACEBACK = _Text(
    r"Traceback \(most recent call last\).{0,6000}DataLoader worker \(pid\D{0,8}\d+\)? is killed by "
    r"signal: Killed",
    _HOST,
    "torch/utils/data/_utils/signal_handling.py: a worker got SIGKILL while the loop waited for it",
    _HINT,
)


def _shared_kind(found: str) -> Kind:
    for pattern, kind in (
        (r"HIP(BLAS)?\b|ROCBLAS", Kind.HIP_OOM),
        (r"XPU", Kind.XPU_OOM),
        (r"MPS", Kind.MPS_OOM),
        (r"CUBLAS|CUSOLVER|CUSPARSE|CUFFT|HIPBLAS|ROCBLAS", Kind.CUBLAS_ALLOC),
        (r"CUDNN|unable to find an engine|workspace", Kind.CUDNN_ALLOC),
        (r"DefaultCPUAllocator", Kind.CPU_OOM),
    ):
        if re.match(pattern, found, re.IGNORECASE) or (
            kind is not Kind.HIP_OOM and re.search(pattern, found, re.IGNORECASE)
        ):
            return Kind.CUBLAS_ALLOC if "BLAS" in found else kind
    return Kind.CUDA_OOM


_LIBRARIES = (Kind.CUDNN_ALLOC, Kind.CUBLAS_ALLOC)
_SHARED = tuple(
    (re.compile(text.pattern, re.IGNORECASE | re.MULTILINE), text.source)
    for text in OOM_TEXTS
    if text.conclusive
)
_OWN = {
    order: tuple((re.compile(text.pattern, re.IGNORECASE | re.MULTILINE), text) for text in texts)
    for order, texts in (("before", _BEFORE_SHARED), ("after", _AFTER_SHARED))
}

_TRACEBACK = re.compile(_IN_TRACEBACK.pattern, re.IGNORECASE)

HEAD = re.compile(
    r"(\b(CUDA|HIP|XPU|NPU|MUSA|MLU) out of memory\.|MPS backend out of memory"
    r"|DefaultCPUAllocator: |out of memory error on GPU)",
    re.IGNORECASE,
)
"""Where a message begins: two of them in a row are two errors."""

KEYS = (
    *("memory", "alloc", "oom", "kill", "_status_", "resource", "code -9", "tried to"),
    *(
        "exitcode",
        "code 137",
        "code: 137",
        "status 137",
        "status: 137",
        "returned 137",
        "errno 12",
        "unable to",
        "memlimit",
        "nvml",
        "cufft",
        "buffer",
        "assert",
    ),
    *(
        "illegal",
        "misaligned",
        "launch failure",
        "watchdog",
        "out of",
        "no kernel image",
        "space left",
    ),
    *("bus error", "segmentation", "cuda error", "hip error", "mismatch", "must match", "shapes"),
    *(
        "not divisible",
        "no such device",
        "ordinal",
        "driver",
        "valueerror",
        "indexerror",
        "typeerror",
    ),
)
"""Lower-case parts of lines that may matter: all others are passed over quickly."""


def _own(order: str, text: str) -> Match | None:
    for pattern, entry in _OWN[order]:
        found = pattern.search(text)
        if found is not None:
            return Match(entry.kind, entry.strength, entry.source, found.start())
    return None


def match_text(joined: str, lines: str) -> Match | None:
    """Tell which out-of-memory error a piece of a log is; None if it is none.

    Args:
        joined: its lines joined to one, for messages that were wrapped.
        lines: the same with its line breaks, for texts that must end a line.
    """
    found = _own("before", joined)
    if found is not None:
        return found
    for pattern, source in _SHARED:
        match = pattern.search(joined) or pattern.search(lines)
        if match is not None:
            kind = _shared_kind(match[0])
            strength = Strength.LIBRARY if kind in _LIBRARIES else Strength.PROOF
            return Match(kind, strength, source, match.start())
    return _own("after", joined) or _own("after", lines)


def match_traceback(text: str) -> Match | None:
    """Tell whether a traceback ends in an error that means lack of memory only there."""
    found = _TRACEBACK.search(text) if "DataLoader" in text else None
    if found is None:
        return None
    return Match(_IN_TRACEBACK.kind, _IN_TRACEBACK.strength, _IN_TRACEBACK.source, found.start())


def is_fault(text: str) -> bool:
    """Tell whether a kernel failed for another reason than memory."""
    return DEVICE_FAULT.search(text) is not None

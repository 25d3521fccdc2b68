"""Which texts are out-of-memory errors, and of what kind: a table, each line with its source.

It starts from the table of `bsfind.failures.oom`, which decides about exceptions, and adds what only a log
shows: the host's killer, other frameworks, any other sentence that says that an allocation failed,
and texts that stand for lack of memory if nothing better explains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum

from bsfind.failures.oom import DEVICE_FAULT, OOM_TEXTS


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


_Table = tuple[tuple[re.Pattern[str], _Text], ...]


def _table(*texts: _Text) -> _Table:
    return tuple((re.compile(text.pattern, re.IGNORECASE | re.MULTILINE), text) for text in texts)


_OTHER = Kind.OTHER_FRAMEWORK_OOM
_HOST = Kind.HOST_OOM_KILL

_KILLED = _table(
    _Text(
        r"out of memory: kill(ed)? process|killed process \d+ \([^)]{1,40}\).{1,20}total-vm"
        r"|oom-kill:constraint|invoked oom-killer"
        r"|memory cgroup out of memory|oom_reaper|systemd-oomd.{0,40}killed|result 'oom-kill'"
        r"|killed by the (\w+ )?oom|sending SIG(TERM|KILL) to process \d|at or below SIGTERM limits",
        _HOST,
        "Linux (mm/oom_kill.c), systemd, systemd-oomd, earlyoom",
    ),
    _Text(
        r"oom[-_ ]?kill event|cgroup out-of-memory handler|exceeded (job |step )?memory limit"
        r"|task \d+: out of memory|\b(?-i:OUT_OF_ME)(MORY\b(?!_)|\+)|TERM_MEMLIMIT"
        r"|job killed: \S*mem \S+ exceeded limit|gone over memory limit",
        _HOST,
        "Slurm (slurmstepd, srun, sacct), LSF, PBS, HTCondor",
    ),
    _Text(
        r"ray\.exceptions\.OutOfMemory|\bOOM ?Killed\b(?!\"?[:=] ?false)"
        r"|\b[1-9]\d* workers \(tasks / actors\) ?killed|(?<!\))(?<!\) )\bkilled (by \w+ )?"
        r"(due to|for) (the |exceeding )?(\w+ ){0,4}memory|to avoid running out of memory"
        r"|exceeded \d+% memory budget|(used|using) all available RAM"
        r"|tried to allocate more memory than is available",
        _HOST,
        "Kubernetes, Docker, Ray's memory monitor, YARN, Dask, notebooks",
    ),
)

# Texts of one meaning wherever they stand; PyTorch's own are in `bsfind.failures.oom`.
_NAMED = _table(
    _Text(
        r"invalid buffer size:? [\d.]+ [KMGT]i?B|MPS allocated: \S+ \S+, other allocations",
        Kind.MPS_OOM,
        "aten/mps",
    ),
    _Text(
        r"(UR_RESULT|PI)_ERROR_OUT_OF_\w+|(?<!VK_ERROR_)OUT_OF_DEVICE_MEMORY"
        r"|platform can NOT allocate memory block",
        Kind.XPU_OOM,
        "Level Zero, SYCL, intel_extension_for_pytorch",
    ),
    _Text(
        r"preemptively rejected because it would exceed"
        r"|tried to allocate [\d.]+ (bytes|[KMG]iB)\.? ?\(?GPU \d",
        Kind.CUDA_OOM,
        "c10/cuda/CUDACachingAllocator.cpp",
    ),
    _Text(
        r"\(2\) ?: out of memory|THCudaCheck FAIL.{0,200}error=2 ?: out of memory",
        Kind.CUDA_OOM,
        "THC/THCGeneral.cpp (torch 0.1-1.5)",
    ),
    _Text(
        r"cuda failure '?(2 )?'?out of memory|failed to CUDA (host )?\w?alloc"
        r"|cudaMalloc\w* failed: out of memory"
        r"|cu(da)?Mem\w+ .{0,60}out of memory|error:? out of memory at line \d+ in file",
        Kind.CUDA_OOM,
        "NCCL; CUDA extensions (bitsandbytes: ops.cu)",
    ),
    _Text(r"hipErrorOutOfMemory|hip(Malloc)? .{0,40}out of memory", Kind.HIP_OOM, "HIP runtime"),
    _Text(r"(cublas|cusolver).{0,40}resource allocation failed", Kind.CUBLAS_ALLOC, "cublas_api.h"),
    _Text(
        r"cudnn.{0,40}resource allocation failed|resource allocation failed.{0,20}cudnn",
        Kind.CUDNN_ALLOC,
        "cudnn.h",
    ),
    _Text(
        r"_ArrayMemoryError|unable to allocate [\d.]+ ?[KMGT]?i?B(ytes)? for an array"
        r"|(?<!except )\b(?!\w*OutOf)\w*MemoryError\b|std::bad_alloc"
        r"|(?<!CUDA )memory allocation of \d+ bytes failed",
        Kind.CPU_OOM,
        "NumPy, CPython, C++, Rust",
    ),
    _Text(
        r"\[Errno 12\]|\berrno=12\b|\[WinError (8|14|1455)\]"
        r"|posix_memalign\b.{0,80}(12 (vs|!=)|failed)"
        r"|failed to allocate memory \(errno|unable to mmap \d+ bytes"
        r"|you tried to allocate \d[\d.]* ?[bKMGT]",
        Kind.CPU_OOM,
        "ENOMEM; Windows' commit limit; c10/core/impl/alloc_cpu.cpp, quoted without its beginning",
    ),
    _Text(
        r"no available memory for the cache blocks|available KV cache memory \(|can be stored in KV cache"
        r"|less than desired GPU memory utilization|not enough memory\. please try to increase",
        _OTHER,
        "vLLM, SGLang: their own check of what is left for the cache",
    ),
    _Text(
        r"(^|[-:|\]] ?[\"']?)\s*(\w*error: ?)?out of memory\W{0,3}\s*$",
        Kind.CUDA_OOM,
        "cudaGetErrorString(cudaErrorMemoryAllocation), alone",
    ),
)

_HINTS = _table(
    _Text(r"CUDNN_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)", Kind.CUDNN_ALLOC, "cudnn.h"),
    _Text(
        r"CUBLAS_STATUS_NOT_INITIALIZED|CUSOLVER_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)"
        r"|CUBLAS_STATUS_INTERNAL_ERROR.{0,40}cublasCreate|CUFFT_INTERNAL_ERROR",
        Kind.CUBLAS_ALLOC,
        "cublas_api.h: handles that were not made",
    ),
    _Text(
        r"\b(exit\w*|code|status|returned)\"?\W{1,5}(137|-9)\b|\bcode=killed\b"
        r"|(?<!received )\bsignal 9\b|<Signals\.SIGKILL|SIGKILL\(-9\)|signal SIGKILL"
        r"|(?<!killed by)(?<!killed by\s)signal: killed\b"
        r"|signal 9 \(SIGKILL\) received|DataLoader worker \(pid\D{0,8}\d+\)? is killed by signal: Killed",
        _HOST,
        "SIGKILL, which the kernel's out-of-memory killer sends",
    ),
    _Text(
        r"(^|: line \d+: ?|[\]|.])[\s*]{0,20}(\d{1,9} )?(Killed|Getötet|已杀死)\b"
        r"[\s*]{0,8}(\(core dumped\))?(\s{2,}.*)?$",
        _HOST,
        "shell",
    ),
)

_MEMORY = r"(?:(?:GPU|device|host|system|video|free|available|HBM) )?memory\b"
_FAILURE = re.compile(
    "|".join(
        (
            rf"\bout[ _-]of[ _-]{_MEMORY}",
            r"(?<![a-z])OutOf(?:Device|Host)?Memory(?![a-z])",
            r"OutOf(?:Device|Host)?Memory(?:Error|Exception)\b",
            r"Error_?OutOf(?:Device|Host)?Memory\b",
            r"(?-i:_OUT_OF_(?:\w+_)?MEMORY\b)",
            r"\bOOM when\b",
            rf"\b(?:not enough|insufficient|no available) {_MEMORY}",
            r"memory (?:is insufficient|not available)",
            rf"requires? more {_MEMORY}",
            r"available memory\b.{0,20}\b(?:smaller|only)\b",
            r"\b(?:fail\w*|unable|cannot|can't|could ?n[o']t)(?: to)? alloc(?:ate)?\b.{0,60}?"
            r"(?:memory|buffer|bytes|tensor|array|\d ?[KMGT]i?B?\b)",
            r"\b(?:memory|buffer)[ _]alloc\w*[ _](?:failed|failure|error)",
            r"\b(?:memory|device|tensor|buffer|host)\w* allocation\b.{0,30} failed",
            r"malloc\w{0,40}(?:\(\d{1,40}\))?[^).;]{0,25} failed",
            r"to (?:allocate|reserve) .{0,60}(?:not possible|greater than|exceed)",
            r"\ballocating <= available failed",
        )
    ),
    re.IGNORECASE,
)
"""A sentence of any program that says that an allocation failed."""

_ADVICE_BEFORE = re.compile(
    r"(\b(if|may|might|would|avoid\w*|prevent\w*|reduc\w+|hints?|consider|except|catch\w*|handl(e|es|er|ing)"
    r"|enabl\w+|ibv_\w+|in case|risk|started)\b|skip\w*)(?!.*[.;!?] )",
    re.IGNORECASE | re.DOTALL,
)
_ADVICE_AFTER = re.compile(
    r"(errors\b|[_.](log|py|txt)\b|\W{0,3}(\(\w+\))?\W{0,3}(killer|handler|protection|guard|retry)"
    r"|[\"']?\s?[:=]\s?(false|none|0)\b|.{0,80}: invalid argument|.{0,200}\bnot a failure)",
    re.IGNORECASE | re.DOTALL,
)
"""What makes advice, a warning or a setting of such a sentence."""

_CUDA = re.compile(r"\bcuda|\bCUresult|\btorch\.(cuda\.)?OutOf|\bGPU (ran )?out of", re.IGNORECASE)
_FRAMEWORKS = re.compile(
    r"lua/5\.\d|luarocks|cutorch|\bcunn\b|caffe|darknet|cudaSuccess \(2 vs|chainer|mxnet|pooled_storage"
    r"|pygpu|mindspore|tensorflow|stream_executor|cuda_(driver|dnn|blas)\.cc|(from device|on host): "
    r"|\bxla\b|\bjax"
    r"|RESOURCE[ _]EXHAUSTED|ResourceExhausted|paddle|\bNPU\b|\bMUSA\b|\bMLU\b|\bmlx\b|\[(metal::)?malloc"
    r"|ggml|llama_|\bllama\b|ollama|onnxruntime|CUDA failure \d+:|tensorrt|\[TRT\]|rtSafe|nvinfer"
    r"|cupy|numba|pycuda|thrust::|\brmm\b|bad_alloc: \w|xgboost|\bjava\.lang",
    re.IGNORECASE,
)
"""Frameworks whose errors have the words of CUDA's or PyTorch's, told by a name near them."""

_NEAR = 300
"""Characters around an error in which a framework is named."""

_LIBRARY_KINDS = (
    (r"HIPBLAS|ROCBLAS", Kind.CUBLAS_ALLOC),
    (r"\bHIP|MIOpen|ROCm", Kind.HIP_OOM),
    (r"\bXPU|Level.?Zero|SYCL", Kind.XPU_OOM),
    (r"\bMPS", Kind.MPS_OOM),
    (r"CUBLAS|CUSOLVER|CUSPARSE|CUFFT", Kind.CUBLAS_ALLOC),
    (r"CUDNN|unable to find (an engine|a valid)|for workspace", Kind.CUDNN_ALLOC),
    (
        r"DefaultCPUAllocator|CPUAllocator|alloc_cpu|pinned|OpenCV|\bfork|mmap|cannot allocate memory(?! on)",
        Kind.CPU_OOM,
    ),
)


def _kind_of(text: str, otherwise: Kind) -> Kind:
    """Return whose memory a text names."""
    return next(
        (kind for pattern, kind in _LIBRARY_KINDS if re.search(pattern, text, re.IGNORECASE)),
        otherwise,
    )


_SHARED = tuple(
    (re.compile(text.pattern, re.IGNORECASE | re.MULTILINE), text.source)
    for text in OOM_TEXTS
    if text.conclusive
)

HEAD = re.compile(
    r"(\b(CUDA|HIP|XPU|NPU|MUSA|MLU) out of memory\.|MPS backend out of memory"
    r"|DefaultCPUAllocator: |out of memory error on GPU)",
    re.IGNORECASE,
)
"""Where a message begins: two of them in a row are two errors."""

_OWN_HEAD = re.compile(
    r"\b(?:(CUDA|HIP|XPU) out of memory\. {0,2}Tried|(MPS) backend out of memory)", re.IGNORECASE
)
"""Messages of PyTorch's allocators, which no framework's name near them makes another's."""

_CUT_HEAD = re.compile(
    r"has a total capaci?ty of [\d.]+ \w+( of which|\.)|total capaci?ty; [\d.]+ \w+ already allocated"
    r"|[\d.] \w+ already allocated;|is allocated by PyTorch|is reserved by PyTorch but unallocated"
    r"|[\d.] \w+ reserved in total by PyTorch",
    re.IGNORECASE,
)
"""The rest of such a message, where the log has lost its beginning."""

VAGUE_KEYS = ("memory", "alloc", "buffer")
"""Keys that programs also print when all is well: how much memory they use."""

KEYS = (
    *VAGUE_KEYS,
    *("oom", "kill", "_status", "resource", "exit", "errno", "unable", "winerror", "signal"),
    *("out_of", "cufft", "memlimit", "assert", "illegal", "misaligned", "watchdog", "mismatch"),
    *("ordinal", "driver", "segmentation", "shapes", "ancdata", "quota", "return code"),
    *("code 137", "code: 137", "status 137", "status: 137", "returned 137", "code -9"),
    *("status -9", "tried to", "kv cache", "launch failure", "out of", "no kernel image"),
    *(
        "space left",
        "bus error",
        "must match",
        "all available ram",
        "getötet",
        "已杀死",
        "cuda error",
        "xid",
    ),
)
"""Lower-case parts of lines that may matter: all others are passed over quickly."""


def _find(texts: _Table, text: str) -> tuple[_Text, re.Match[str]] | None:
    for pattern, entry in texts:
        found = pattern.search(text)
        if found is not None:
            return entry, found
    return None


def _failures(text: str) -> Iterator[re.Match[str]]:
    """Yield where a text says that an allocation failed, advice and settings apart."""
    for found in _FAILURE.finditer(text):
        before = text[max(0, found.start() - 100) : found.start()]
        if _ADVICE_BEFORE.search(before) or _ADVICE_AFTER.match(text, found.end()):
            continue
        yield found


def _gpu(joined: str, lines: str) -> tuple[Kind, str, int] | None:
    """Find an error that names what ran out, or any other sentence about a failed allocation."""
    for pattern, source in _SHARED:
        match = pattern.search(joined) or pattern.search(lines)
        if match is not None:
            return _kind_of(match[0], Kind.CUDA_OOM), source, match.start()
    named = _find(_NAMED, joined) or _find(_NAMED, lines)
    if named is not None:
        return named[0].kind, named[0].source, named[1].start()
    for found in _failures(joined):
        around = joined[max(0, found.start() - 80) : found.end() + 40]
        kind = Kind.CUDA_OOM if _CUDA.search(around) else _OTHER
        return _kind_of(around, kind), "a failed allocation", found.start()
    return None


def match_text(joined: str, lines: str) -> Match | None:
    """Tell which out-of-memory error a piece of a log is; None if it is none.

    Args:
        joined: its lines joined to one, for messages that were wrapped.
        lines: the same with its line breaks, for texts that must end a line.
    """
    own = _OWN_HEAD.search(joined) is not None
    killed = _find(_KILLED, joined) if not own else None
    if killed is not None:
        return Match(_HOST, Strength.PROOF, killed[0].source, killed[1].start())
    found = _gpu(joined, lines)
    if found is not None:
        kind, source, start = found
        near = joined[max(0, start - _NEAR) : start + _NEAR]
        if kind in (Kind.CUDNN_ALLOC, Kind.CUBLAS_ALLOC):
            return Match(kind, Strength.LIBRARY, source, start)
        if not own:
            framework = _FRAMEWORKS.search(near) if kind is not Kind.XPU_OOM else None
            if framework is not None:
                return Match(_OTHER, Strength.PROOF, f"a framework: {framework[0]}", start)
        return Match(kind, Strength.PROOF, source, start)
    cut = _CUT_HEAD.search(joined)
    if cut is not None:
        kind = _kind_of(joined, Kind.CUDA_OOM)
        return Match(
            kind, Strength.PROOF, "an allocator's message without its beginning", cut.start()
        )
    hint = _find(_HINTS, joined) or _find(_HINTS, lines)
    if hint is not None:
        return Match(hint[0].kind, Strength.HINT, hint[0].source, hint[1].start())
    return None


def is_fault(text: str) -> bool:
    """Tell whether a kernel failed for another reason than memory."""
    return DEVICE_FAULT.search(text) is not None

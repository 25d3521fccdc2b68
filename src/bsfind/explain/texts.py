"""Which texts of a log are out-of-memory errors, of what kind, and which are taken for one but are not.

Starts from the texts of `bsfind.failures`, which decide about exceptions, and adds what only a log
shows: the host's killer, other frameworks, any other sentence that says that an allocation failed,
and texts that stand for lack of memory if nothing better explains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum

from bsfind.failures.oom import HANDLE_FAILED, OOM_TEXTS


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
    """What a text was found to be."""

    kind: Kind
    strength: Strength


def _compile(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE)


_KILLED = _compile(
    # Linux (mm/oom_kill.c), systemd, systemd-oomd, earlyoom
    r"out of memory: kill(ed)? process|killed process \d+ \([^)]{1,40}\).{1,20}total-vm",
    r"oom-kill:constraint|invoked oom-killer",
    r"memory cgroup out of memory|oom_reaper|systemd-oomd.{0,40}killed|result 'oom-kill'",
    r"killed by the (\w+ )?oom|sending SIG(TERM|KILL) to process \d|at or below SIGTERM limits",
    # Batch systems
    r"oom[-_ ]?kill event|cgroup out-of-memory handler|exceeded (job |step )?memory limit",
    r"task \d+: out of memory|\b(?-i:OUT_OF_ME)(MORY\b(?!_)|\+)|TERM_MEMLIMIT",
    r"job killed: \S*mem \S+ exceeded limit|gone over memory limit",
    # Kubernetes, Docker, Ray's memory monitor, YARN, Dask, notebooks
    r"ray\.exceptions\.OutOfMemory|\bOOM ?Killed\b(?!\"?[:=] ?false)",
    r"\b[1-9]\d* workers \(tasks / actors\) ?killed|(?<!\))(?<!\) )\bkilled (by \w+ )?"
    r"(due to|for) (the |exceeding )?(\w+ ){0,4}memory|to avoid running out of memory",
    r"exceeded \d+% memory budget|(used|using) all available RAM",
    r"tried to allocate more memory than is available",
)

# Texts of one meaning wherever they stand; the first that occurs names the kind.
_NAMED = (
    (
        Kind.MPS_OOM,  # aten/src/ATen/mps/MPSAllocator.mm
        _compile(
            r"invalid buffer size:? [\d.]+ [KMGT]i?B|MPS allocated: \S+ \S+, other allocations"
        ),
    ),
    (
        Kind.XPU_OOM,  # Level Zero, SYCL, intel_extension_for_pytorch
        _compile(
            r"(UR_RESULT|PI)_ERROR_OUT_OF_\w+|(?<!VK_ERROR_)OUT_OF_DEVICE_MEMORY",
            r"platform can NOT allocate memory block",
        ),
    ),
    (
        Kind.CUDA_OOM,
        _compile(
            # c10/cuda/CUDACachingAllocator.cpp; THC/THCGeneral.cpp (torch 0.1-1.5)
            r"preemptively rejected because it would exceed",
            r"tried to allocate [\d.]+ (bytes|[KMG]iB)\.? ?\(?GPU \d",
            r"\(2\) ?: out of memory|THCudaCheck FAIL.{0,200}error=2 ?: out of memory",
            # NCCL; CUDA extensions (bitsandbytes: ops.cu)
            r"cuda failure '?(2 )?'?out of memory|failed to CUDA (host )?\w?alloc",
            r"cudaMalloc\w* failed: out of memory",
            r"cu(da)?Mem\w+ .{0,60}out of memory|error:? out of memory at line \d+ in file",
        ),
    ),
    (Kind.HIP_OOM, _compile(r"hipErrorOutOfMemory|hip(Malloc)? .{0,40}out of memory")),
    (Kind.CUBLAS_ALLOC, _compile(r"(cublas|cusolver).{0,40}resource allocation failed")),
    (
        Kind.CUDNN_ALLOC,
        _compile(r"cudnn.{0,40}resource allocation failed|resource allocation failed.{0,20}cudnn"),
    ),
    (
        Kind.CPU_OOM,
        _compile(
            # NumPy, CPython, C++, Rust
            r"_ArrayMemoryError|unable to allocate [\d.]+ ?[KMGT]?i?B(ytes)? for an array",
            r"(?<!except )\b(?!\w*OutOf)\w*MemoryError\b|std::bad_alloc",
            r"(?<!CUDA )memory allocation of \d+ bytes failed",
            # ENOMEM; Windows' commit limit; c10/core/impl/alloc_cpu.cpp, quoted without its beginning
            r"\[Errno 12\]|\berrno=12\b|\[WinError (8|14|1455)\]",
            r"posix_memalign\b.{0,80}(12 (vs|!=)|failed)",
            r"failed to allocate memory \(errno|unable to mmap \d+ bytes",
            r"you tried to allocate \d[\d.]* ?[bKMGT]",
        ),
    ),
    (
        Kind.OTHER_FRAMEWORK_OOM,  # servers' own check of what is left for the cache
        _compile(
            r"no available memory for the cache blocks|available KV cache memory \(",
            r"can be stored in KV cache|less than desired GPU memory utilization",
            r"not enough memory\. please try to increase",
        ),
    ),
    (
        Kind.CUDA_OOM,  # cudaGetErrorString(cudaErrorMemoryAllocation), alone
        _compile(r"(^|[-:|\]] ?[\"']?)\s*(\w*error: ?)?out of memory\W{0,3}\s*$"),
    ),
)

_HANDLE_FAILED = _compile(
    HANDLE_FAILED,
    r"CUBLAS_STATUS_INTERNAL_ERROR.{0,40}cublasCreate|CUFFT_INTERNAL_ERROR",
)
_SIGKILL = _compile(
    # The signal that the kernel's out-of-memory killer sends
    r"\b(exit\w*|code|status|returned)\"?\W{1,5}(137|-9)\b|\bcode=killed\b",
    r"(?<!received )\bsignal 9\b|<Signals\.SIGKILL|SIGKILL\(-9\)|signal SIGKILL",
    r"(?<!killed by)(?<!killed by\s)signal: killed\b",
    r"signal 9 \(SIGKILL\) received",
    r"DataLoader worker \(pid\D{0,8}\d+\)? is killed by signal: Killed",
    # Shells
    r"(^|: line \d+: ?|[\]|.])[\s*]{0,20}(\d{1,9} )?(Killed|Getötet|已杀死)\b"
    r"[\s*]{0,8}(\(core dumped\))?(\s{2,}.*)?$",
)

_MEMORY = r"(?:(?:GPU|device|host|system|video|free|available|HBM) )?memory\b"
_FAILURE = _compile(
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
_OTHER_FRAMEWORK = _compile(
    r"lua/5\.\d|luarocks|cutorch|\bcunn\b|caffe|darknet|cudaSuccess \(2 vs|chainer|mxnet|pygpu",
    r"pooled_storage|mindspore|tensorflow|stream_executor|cuda_(driver|dnn|blas)\.cc|\bxla\b|\bjax",
    r"(from device|on host): |RESOURCE[ _]EXHAUSTED|ResourceExhausted|paddle|\b(NPU|MUSA|MLU|mlx)\b",
    r"\[(metal::)?malloc|ggml|llama_|\bllama\b|ollama|onnxruntime|CUDA failure \d+:|tensorrt|\[TRT\]",
    r"rtSafe|nvinfer|cupy|numba|pycuda|thrust::|\brmm\b|bad_alloc: \w|xgboost|\bjava\.lang",
)
"""Names of frameworks whose errors have the words of CUDA's or PyTorch's: one kind, one advice."""

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


_OOM_TEXTS = tuple(_compile(text.pattern) for text in OOM_TEXTS if text.conclusive)

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

KEYS = (
    *("memory", "alloc", "buffer", "oom", "kill", "_status", "resource", "exit", "errno", "unable"),
    *("winerror", "signal", "out_of", "cufft", "memlimit", "assert", "illegal", "misaligned"),
    *("watchdog", "mismatch", "ordinal", "driver", "segmentation", "shapes", "ancdata", "quota"),
    *("return code", "code 137", "code: 137", "status 137", "status: 137", "returned 137"),
    *("code -9", "status -9", "tried to", "kv cache", "launch failure", "out of", "xid"),
    *("no kernel image", "space left", "bus error", "must match", "all available ram", "getötet"),
    *("已杀死", "cuda error"),
)
"""Lower-case parts of lines that may matter: all others are passed over quickly."""

_NEEDLES = (
    # Failed allocations, of any program
    *("error_out_of", "bad_alloc", "memoryerror", "[errno12]", "errno=12", "(errno", "[winerror"),
    *("cufft_", "notenough", "insufficient", "noavailable", "availablemem", "notavailable"),
    *("requiremore", "requiresmore", "toalloc", "toreserve", "unablealloc", "cannotalloc"),
    *("can'talloc", "couldn'talloc", "couldnotalloc", "allocating<=", "unabletommap"),
    *("memalign", "buffersize", "resourceallocation", "kvcache", "memoryutilization"),
    # PyTorch's own
    *("mpsallocated", "mpsbackend", "preemptively", "exceedallowed", "cpuallocator"),
    *("totalcapac", "alreadyallocated", "bypytorch", "_status_", "findanengine", "findavalid"),
    *("nvml_success", "internal_error", "memoryallocation"),
    # Processes that were killed
    *("killed", "sigkill", "sigterm", "oomkill", "oom-kill", "oom_kill", "oom_reap", "oomd"),
    *("oomwhen", "memlimit", "memorylimit", "exceededlimit", "(tasks/actors)", "memorybudget"),
    *("availableram", "signal9", "getötet", "已杀死", "cacheblocks"),
    # Other faults
    *("sideassert", "illegalmem", "illegalinstr", "misalignedaddress"),
    *("addressspace", "programcounter", "launchfailure", "hardwarestack", "uncorrectable"),
    *("gpuislost", "offthebus", *(f"xid{digit}" for digit in range(10)), "watchdogcaught"),
    *("operationtimeout", "timingout", "kernelimage", "notcompatible", "openfiles"),
    *("ancdata", "sharedmemory", "buserror", "spaceleft", "quotaexceeded", "outofrange"),
    *("resourcesrequested", "dataloaderworker", "mustmatch", "sizemismatch", "bemultiplied"),
    *("mat1and", "outofbounds", "execution_failed", "invalid_value", "mapping_error"),
    *("deviceordinal", "cuda-capable", "nvidiadriver", "driverversion"),
    *("segmentationfault", "sigsegv"),
)
_PAIRS = (
    *(("outof", "mem"), ("out-of", "mem"), ("out_of", "mem")),
    *(("alloc", "fail"), ("alloc", "error")),
    *((code, word) for code in ("137", "-9") for word in ("exit", "code", "status", "returned")),
    ("assertion", "failed"),
)
"""One of these, or two of a pair, is in every text in which the patterns here find something, once spaces and
line breaks are taken out."""


def may_hold_error(text: str) -> bool:
    """Tell in little time whether one of the patterns may find something, however a text was wrapped."""
    squeezed = "".join(text.lower().split())
    return any(map(squeezed.__contains__, _NEEDLES)) or any(
        first in squeezed and second in squeezed for first, second in _PAIRS
    )


def _failures(text: str) -> Iterator[re.Match[str]]:
    """Yield where a text says that an allocation failed, advice and settings apart."""
    for found in _FAILURE.finditer(text):
        before = text[max(0, found.start() - 100) : found.start()]
        if not (_ADVICE_BEFORE.search(before) or _ADVICE_AFTER.match(text, found.end())):
            yield found


def _allocation(joined: str, lines: str) -> tuple[Kind, int] | None:
    """Find an error that names what ran out, or any other sentence about a failed allocation.

    Returns:
        Its kind, and where it begins.
    """
    for pattern in _OOM_TEXTS:
        match = pattern.search(joined) or pattern.search(lines)
        if match is not None:
            return _kind_of(match[0], Kind.CUDA_OOM), match.start()
    for text in (joined, lines):
        for kind, pattern in _NAMED:
            match = pattern.search(text)
            if match is not None:
                return kind, match.start()
    for match in _failures(joined):
        around = joined[max(0, match.start() - 80) : match.end() + 40]
        otherwise = Kind.CUDA_OOM if _CUDA.search(around) else Kind.OTHER_FRAMEWORK_OOM
        return _kind_of(around, otherwise), match.start()
    return None


def match_text(joined: str, lines: str = "") -> Match | None:
    """Tell which out-of-memory error a piece of a log is; None if it is not one.

    Args:
        joined: its lines joined to one, for messages that were wrapped.
        lines: the same with its line breaks, for texts that must end a line.
    """
    is_own = _OWN_HEAD.search(joined) is not None
    if not is_own and _KILLED.search(joined):
        return Match(Kind.HOST_OOM_KILL, Strength.PROOF)
    found = _allocation(joined, lines)
    if found is not None:
        kind, start = found
        if kind in (Kind.CUDNN_ALLOC, Kind.CUBLAS_ALLOC):
            return Match(kind, Strength.LIBRARY)
        near = joined[max(0, start - _NEAR) : start + _NEAR]
        if not is_own and kind is not Kind.XPU_OOM and _OTHER_FRAMEWORK.search(near):
            kind = Kind.OTHER_FRAMEWORK_OOM
        return Match(kind, Strength.PROOF)
    if _CUT_HEAD.search(joined):
        return Match(_kind_of(joined, Kind.CUDA_OOM), Strength.PROOF)
    handle = _HANDLE_FAILED.search(joined) or _HANDLE_FAILED.search(lines)
    if handle is not None:
        return Match(_kind_of(handle[0], Kind.CUBLAS_ALLOC), Strength.HINT)
    if _SIGKILL.search(joined) or _SIGKILL.search(lines):
        return Match(Kind.HOST_OOM_KILL, Strength.HINT)
    return None

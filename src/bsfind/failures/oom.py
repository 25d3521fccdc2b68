"""Is this an out-of-memory error? By type first, then by a table of texts, each with its source.

Reading an exception needs no torch: types are recognised by name, so that the parent process and
`explain` can use the same table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from bsfind.failures.gpu_faults import ASSERTION, CRASH, ILLEGAL_ACCESS, causes


class FailureKind(Enum):
    """What an exception says about the batch size that raised it."""

    OUT_OF_MEMORY = "oom"
    """It did not fit."""
    SIZE_LIMIT = "size_limit"
    """A kernel cannot index so many elements: too large for another reason than memory."""
    OTHER = "other"
    """The user's code failed."""


@dataclass(frozen=True)
class OomText:
    """A text that stands for a failed allocation.

    Attributes:
        pattern: searched in the message, ignoring case.
        source: where the text comes from.
        conclusive: False for texts that other faults print too: they count as out of memory only
            when the device's memory was really gone.
    """

    pattern: str
    source: str
    conclusive: bool = True

    def matches(self, message: str) -> bool:
        """Tell whether the text occurs in `message`."""
        return re.search(self.pattern, message, re.IGNORECASE) is not None


HANDLE_FAILED = (
    r"(CUBLAS|CUDNN|CUSOLVER)_STATUS_NOT_INITIALIZED|(CUDNN|CUSOLVER)_STATUS_INTERNAL_ERROR"
)
EXECUTION_FAILED = r"(CUBLAS|CUDNN)_STATUS_EXECUTION_FAILED"

OOM_TEXTS = (
    OomText(
        r"(CUDA|HIP|XPU) out of memory(\.|$)",
        "c10/cuda/CUDACachingAllocator.cpp (torch 1.0-2.13); c10/xpu/XPUCachingAllocator.cpp",
    ),
    OomText(r"MPS backend out of memory", "aten/src/ATen/mps/MPSAllocator.mm"),
    OomText(r"would exceed allowed memory\. \(out of memory\)", "CUDAMallocAsyncAllocator.cpp"),
    OomText(
        r"(CUDA|HIP)( driver)? error: out of memory",
        "cudaGetErrorString(cudaErrorMemoryAllocation): allocations outside the pool (context, "
        "kernels, libraries), c10/cuda/CUDAException.cpp and driver_api.h",
    ),
    OomText(r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation", "CUDA driver and runtime"),
    OomText(
        r"(CUBLAS|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS)_STATUS_ALLOC_FAILED",
        "aten/src/ATen/cuda/Exceptions.h: a library's own allocation",
    ),
    OomText(r"CUFFT_ALLOC_FAILED", "aten/src/ATen/native/cuda/CuFFTUtils.h"),
    OomText(
        r"CUDNN_STATUS_(INTERNAL_ERROR_DEVICE_|INTERNAL_ERROR_HOST_)?ALLOC(ATION)?_FAILED",
        "cudnn.h, versions 8 and 9",
    ),
    OomText(
        r"unable to find an engine to execute this computation",
        "aten/src/ATen/native/cudnn/Conv_v8.cpp: every engine's workspace failed to be allocated "
        "(out-of-memory errors are swallowed while engines are tried)",
    ),
    OomText(
        r"Unable to find a valid cuDNN algorithm to run convolution|Not enough memory for workspace",
        "aten/src/ATen/native/cudnn/Conv_v7.cpp",
    ),
    OomText(
        r"NVML_SUCCESS == .{0,80}INTERNAL ASSERT FAILED at\s+\S*CUDACachingAllocator\.cpp",
        "c10/cuda/CUDACachingAllocator.cpp (torch 1.13-2.13): the message of an out-of-memory error asks "
        "NVML who else uses the card, and asserts that it answers",
    ),
    OomText(r"Cuda failure 2 'out of memory'", "NCCL's last error line"),
    OomText(
        r"DefaultCPUAllocator: (can't allocate memory|not enough memory)",
        "c10/core/impl/alloc_cpu.cpp: the host's memory",
    ),
    OomText(
        HANDLE_FAILED,
        "seen on a full card where a library could not make its handle; also the echo of an earlier "
        "device-side fault",
        conclusive=False,
    ),
    OomText(
        EXECUTION_FAILED,
        "seen on a full card where a library could not load a kernel; also the echo of such a fault",
        conclusive=False,
    ),
)
"""Texts of failed allocations; the order does not matter."""

SIZE_LIMIT_TEXTS = (
    r"invalid configuration argument",
    r"canUse32BitIndexMath",
    r"32-?bit (index|indexing)",
    r"INT_MAX",
    r"integer multiplication overflow",
    r"Storage size calculation overflowed",
    r"(must|should) (be|have) (less than|at most|fewer than) (2\^31|INT_MAX|2147483647)",
    r"Invalid buffer size",
)
"""Texts of kernels that cannot index so many elements (grid limits, 32-bit indices)."""

# Not "device-side assertions": the advice that ends every CUDA error, out of memory included.
KERNEL_ASSERTION = rf"Assertion .{{0,200}} failed|{ASSERTION}"
DEVICE_FAULT = re.compile(f"{KERNEL_ASSERTION}|{ILLEGAL_ACCESS}|{CRASH}", re.IGNORECASE | re.DOTALL)
"""Faults of a kernel, which libraries echo as failures of their own (cudaGetErrorString, CUDA 13)."""

BATCH_NORM_REFUSAL = "batch norm refuses a batch of one in training"
_BATCH_NORM = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")


def _is_oom_type(error: BaseException) -> bool:
    # torch.OutOfMemoryError is torch.cuda.OutOfMemoryError; RuntimeError before torch 1.13.
    return isinstance(error, MemoryError) or any(
        cls.__name__ == "OutOfMemoryError" and cls.__module__.split(".")[0] == "torch"
        for cls in type(error).__mro__
    )


def classify(error: BaseException, *, memory_exhausted: bool = False) -> FailureKind:
    """Tell what an exception of a trial means.

    An out-of-memory error that the user's code raised again as another one is still one: causes
    and contexts are followed.

    Args:
        error: the exception.
        memory_exhausted: the device had next to no memory left when it was raised; makes the
            inconclusive texts of the table count.
    """
    chain = list(causes(error))
    for link in chain:
        message = str(link)
        if _is_oom_type(link):
            return FailureKind.OUT_OF_MEMORY
        if DEVICE_FAULT.search(message):
            return FailureKind.OTHER
        if isinstance(link, (RuntimeError, OSError)) and any(
            text.matches(message) and (text.conclusive or memory_exhausted) for text in OOM_TEXTS
        ):
            return FailureKind.OUT_OF_MEMORY
    if any(
        isinstance(link, (RuntimeError, OverflowError))
        and any(re.search(pattern, str(link), re.IGNORECASE) for pattern in SIZE_LIMIT_TEXTS)
        for link in chain
    ):
        return FailureKind.SIZE_LIMIT
    return FailureKind.OTHER


_MISTAKES = (TypeError, NameError, AttributeError, ImportError, NotImplementedError, SyntaxError)


def may_depend_on_size(error: BaseException) -> bool:
    """Tell whether the code that raised may run at another batch size.

    A reshape, a group count, an assertion may; a missing argument or name, or an operator that has no
    kernel, does not.
    """
    return isinstance(error, Exception) and not isinstance(error, _MISTAKES)


def is_batch_norm_refusal(error: BaseException) -> bool:
    """Tell whether batch normalisation refused a batch of one sample in training.

    torch/nn/functional.py: `_verify_batch_size`, `_verify_spatial_size`.
    """
    return any(
        isinstance(link, ValueError) and _BATCH_NORM.search(str(link)) for link in causes(error)
    )


def first_sentence(message: str) -> str:
    """Return the beginning of an error text, without advice on settings and documentation."""
    text = " ".join(message.split())
    for end in (" Of the allocated memory", " If reserved", " Including non-PyTorch", " Process "):
        text = text.split(end)[0]
    return text[:300]

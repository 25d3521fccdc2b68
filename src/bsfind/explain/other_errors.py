"""Faults of other kinds than memory, which logs of training show: what each means, and its remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bsfind.failures.gpu_faults import CRASH, HARDWARE, ILLEGAL_ACCESS
from bsfind.failures.oom import DEVICE_FAULT, EXECUTION_FAILED, KERNEL_ASSERTION


@dataclass(frozen=True)
class OtherError:
    """A fault with its own remedy.

    Attributes:
        pattern: searched in the message, ignoring case.
        meaning: what it is, one sentence.
        remedy: what to do about it.
        command: the line to type; empty where there is none.
    """

    pattern: str
    meaning: str
    remedy: str
    command: str = ""


_SYNCHRONOUS = "run again with synchronous kernels: the traceback then ends at the line that failed"
_BLOCKING = "CUDA_LAUNCH_BLOCKING=1 python train.py"

OTHER_ERRORS = (
    OtherError(
        KERNEL_ASSERTION,
        "A kernel found a value out of range, most often a class label or token id that is not below "
        "the number of classes or embeddings; every later CUDA call fails, allocations too.",
        "check labels and ids against the layer's size; on the CPU the same step names the index",
        _BLOCKING,
    ),
    OtherError(
        ILLEGAL_ACCESS,
        "A kernel read or wrote outside its tensors: a bug or an index, not the amount of memory.",
        _SYNCHRONOUS,
        _BLOCKING,
    ),
    OtherError(
        rf"{CRASH}|{HARDWARE}|fallen off the bus|Xid \d+",
        "A kernel crashed or the GPU itself failed.",
        "look for Xid errors of the driver",
        "dmesg | grep -i xid",
    ),
    OtherError(
        r"watchdog caught collective|collective operation timeout|ran for \d+ milliseconds before timing out",
        "A rank waited in vain for another one: look at the rank that is missing, which may have failed "
        "earlier.",
        "find the first error of any rank",
        "TORCH_DISTRIBUTED_DEBUG=DETAIL NCCL_DEBUG=INFO torchrun train.py",
    ),
    OtherError(
        r"no kernel image is available|not compatible with the current PyTorch installation",
        "This build of PyTorch has no kernels for this GPU's architecture.",
        "install a build of PyTorch for the GPU's compute capability",
        "bsfind env",
    ),
    OtherError(
        r"too many open files|received 0 items of ancdata|unable to open shared memory object",
        "The process has too many open files: DataLoader workers keep one per tensor that they share.",
        "raise the limit, or share tensors by file name: "
        "torch.multiprocessing.set_sharing_strategy('file_system')",
        "ulimit -n 65536",
    ),
    OtherError(
        r"bus error|insufficient shared memory|No space left on device|disk quota exceeded",
        "Shared memory (/dev/shm) or a disk is full: the host's, not the GPU's.",
        "give the container more shared memory (Docker's shm-size), or use fewer DataLoader workers",
        "df -h /dev/shm",
    ),
    OtherError(
        r"out of resources?: shared memory|too many resources requested",
        "A kernel wants more shared memory or registers than a multiprocessor has: smaller blocks or "
        "fewer stages in the kernel, not a smaller batch.",
        "use a smaller block size or fewer stages in the kernel",
    ),
    OtherError(
        r"DataLoader worker .{0,30}(is killed by signal|exited unexpectedly)",
        "A DataLoader worker was killed. That alone does not say by whom: the host's out-of-memory "
        "killer, or a launcher that ended the job.",
        "see whether the kernel killed it",
        "dmesg | grep -i -E 'oom|killed process'",
    ),
    OtherError(
        r"must match the (existing )?size|size mismatch|shapes? cannot be multiplied|mat1 and mat2",
        "Shapes do not fit together.",
        "compare the shapes in the message with what the layer expects",
    ),
    OtherError(
        r"index out of range|out of bounds",
        "An index is outside its tensor.",
        "compare the largest index with the size of the dimension",
    ),
    OtherError(
        rf"{EXECUTION_FAILED}|CUBLAS_STATUS_(INVALID_VALUE|INTERNAL_ERROR)|CUDNN_STATUS_MAPPING_ERROR",
        "A library's kernel failed; memory is one of several causes.",
        _SYNCHRONOUS,
        _BLOCKING,
    ),
    OtherError(
        r"invalid device ordinal|no CUDA-capable device|driver (version )?is insufficient|"
        r"Found no NVIDIA driver|CUDA driver version",
        "The GPU or its driver is not there, or not visible to the process.",
        "see which GPUs the driver shows",
        "bsfind gpus",
    ),
    OtherError(
        r"segmentation fault|SIGSEGV",
        "The process crashed (segmentation fault).",
        "get the stack of the crash",
        "python -X faulthandler train.py",
    ),
)
"""From telling to vague: the first that occurs names the fault."""

_COMPILED = tuple((re.compile(entry.pattern, re.IGNORECASE), entry) for entry in OTHER_ERRORS)


def find_other_error(text: str) -> OtherError | None:
    """Return the most telling error of this table in a text; None if there is none."""
    return next((entry for pattern, entry in _COMPILED if pattern.search(text)), None)


def is_fault(text: str) -> bool:
    """Tell whether a kernel failed for another reason than memory."""
    return DEVICE_FAULT.search(text) is not None

"""Tells failures of the GPU, of a kernel and assertions in a kernel apart.

CUDA reports all of them as an error of the next call; the texts differ (cudaGetErrorString, CUDA 11-13).
Reading them needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bsfind.errors import BsfindError, GpuFaultError, NoGpuError, TargetError
from bsfind.failures.exceptions import plain

# `failures.oom` and `bsfind explain` read these texts too, in logs that may have cut them.
HARDWARE = (
    r"uncorrectable ECC error( encountered)?"  # 214
    r"|uncorrectable NVLink error detected[\w ]*|GPU is lost"  # 220
)
_UNUSABLE = (
    r"all CUDA-capable devices are busy or unavailable"  # 46
    r"|no CUDA-capable device is detected"  # 100
    r"|(?<=CUDA error: )unknown error"  # 999: after a reset, a suspend, a driver that crashed
)
_WATCHDOG = r"the launch timed out and was terminated"  # 702
ILLEGAL_ACCESS = r"(an )?illegal memory access( was encountered)?|misaligned address"  # 700, 716
CRASH = (
    r"an illegal instruction was encountered"  # 715
    r"|operation not supported on global/shared address space"  # 717
    r"|invalid program counter|unspecified launch failure|hardware stack error"  # 718, 719, 714
)
ASSERTION = r"device-side assert\b( triggered)?"  # 710

_LATE = "CUDA tells it late: with `CUDA_LAUNCH_BLOCKING=1` the traceback shows the call that did it"


def device_fault(error: BaseException, *, doing: str, traceback: str) -> BsfindError | None:
    """Return the error to report for a fault of the GPU or of a kernel; None for another error.

    Args:
        error: the exception; what it was raised from or during counts too.
        doing: what was running: `batch size 4 in fp32`.
        traceback: the traceback, for errors of the user's code.
    """
    # torch.AcceleratorError is a RuntimeError.
    for text in (str(link) for link in causes(error) if isinstance(link, RuntimeError)):
        if said := _first(f"{HARDWARE}|{_UNUSABLE}", text):
            return GpuFaultError(
                f"the GPU failed: {said}, {doing}",
                detail="The model is not to blame. What ran before is in the report.",
                hint="`nvidia-smi` and `dmesg | grep Xid` show more; a reset or a restart may help",
            )
        if said := _first(_WATCHDOG, text):
            return GpuFaultError(
                f"the GPU's watchdog ended a kernel: {said}, {doing}",
                detail="The driver allows a kernel some seconds on a GPU that drives a display. What ran "
                "before is in the report.",
                hint="use a GPU without a display, or stay below with `--max-batch-size`",
            )
        if said := _first(f"{ILLEGAL_ACCESS}|{CRASH}", text):
            return TargetError(
                f"a CUDA kernel failed: {said}, {doing}",
                detail=traceback,
                hint="the likely cause is a custom kernel of the model, or an index out of range; it can "
                f"also be the GPU (`dmesg | grep Xid`). {_LATE}",
            )
        if said := _first(ASSERTION, text):
            return TargetError(
                f"an assertion in a CUDA kernel failed: {said}, {doing}",
                detail=traceback,
                hint="mostly an index out of range (token ids, class labels): do the ranges of `--input` "
                f"fit the model? {_LATE}",
            )
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or during, innermost last."""
    seen: set[int] = set()
    current: BaseException | None = plain(error)
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def gone(error: BsfindError) -> BsfindError:
    """Return the error to report where the device had been opened before."""
    if not isinstance(error, NoGpuError):
        return error
    return GpuFaultError(
        f"the GPU is gone: {error.message}",
        detail="It was there when the search began. What ran before is in the report.",
        hint="`nvidia-smi` and `dmesg | grep Xid` show more; a reset or a restart may help",
    )


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.IGNORECASE)
    return match[0] if match else None

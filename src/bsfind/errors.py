"""The errors that bsfind reports to its user, each with its exit code.

BsfindError
├── BelowMinimumError      1   the answer is less than what was asked for
├── UsageError             2   command line, environment variables, configuration file
├── NoDeviceError          3   no usable GPU
│   ├── NoGpuError         3   torch sees no GPU at all
│   └── GpuFaultError      3   it failed or went away during the search
├── TargetError            4   the user's code failed
│   └── UntraceableError   4   it cannot be traced: it needs values, or a kernel of its own
├── ShortBatchError        4   the user's code delivered fewer samples than it was asked for
├── WorkerError            4   the process that ran the user's code died
├── TimeLimitError         5   the worker did not answer in time
└── InternalError         70   a bug in bsfind

Terminated, a BaseException like KeyboardInterrupt, is raised for SIGTERM and SIGHUP.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of every bsfind command."""

    OK = 0
    """A batch size is recommended; `check`: it fits."""
    DOES_NOT_FIT = 1
    """Ran to the end and the answer is no: nothing fits, or less than asked for."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    NO_DEVICE = 3
    """There is no usable GPU."""
    TARGET_FAILED = 4
    """The user's code failed, not for lack of memory, and no precision gave an answer."""
    STOPPED_EARLY = 5
    """A limit (time budget, trial timeout) ended the search; what ran by then may be recommended."""
    INTERNAL = 70
    """A bug in bsfind."""
    HUNG_UP = 129
    """SIGHUP: the terminal is gone."""
    INTERRUPTED = 130
    """Ctrl-C."""
    TERMINATED = 143
    """SIGTERM."""


class BsfindError(Exception):
    """An error with a message for the user.

    Args:
        message: what failed, one line without a full stop.
        detail: why: may have several lines (a traceback, say).
        hint: what to do next; names a flag or command that exists.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def without_frames(self) -> BsfindError:
        """Return the same error without its traceback, whose frames hold the tensors of the user's code."""
        return type(self)(self.message, detail=self.detail, hint=self.hint)


class BelowMinimumError(BsfindError):
    """The recommended batch size is less than what was asked for."""

    exit_code = ExitCode.DOES_NOT_FIT


class UsageError(BsfindError):
    """The command line, an environment variable or the configuration file is wrong.

    Attributes:
        limit: the largest number that the model takes, where a larger one was asked for.
    """

    exit_code = ExitCode.USAGE

    def __init__(
        self, message: str, *, detail: str = "", hint: str = "", limit: int | None = None
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.limit = limit

    def about(self, option: str) -> UsageError:
        """Return the error with the name of an option, and where it stands, in front of its message."""
        return UsageError(f"{option}: {self.message}", detail=self.detail, hint=self.hint)


class NoDeviceError(BsfindError):
    """There is no usable device for what was asked."""

    exit_code = ExitCode.NO_DEVICE


class NoGpuError(NoDeviceError):
    """Torch sees no GPU at all: a prediction is all that this machine can give."""


class GpuFaultError(NoDeviceError):
    """The GPU failed or went away during the search; the user's code is not to blame."""


class TargetError(BsfindError):
    """The user's code failed for another reason than memory."""

    exit_code = ExitCode.TARGET_FAILED


class UntraceableError(TargetError):
    """The user's code may run on a GPU, but cannot be traced without one."""


class ShortBatchError(BsfindError):
    """The user's code delivered fewer samples than the batch size that it was asked for.

    Attributes:
        delivered: the most that it delivers; None if it delivers larger batches for larger sizes.
    """

    exit_code = ExitCode.TARGET_FAILED

    def __init__(
        self, message: str, *, detail: str = "", hint: str = "", delivered: int | None = None
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.delivered = delivered


class WorkerError(BsfindError):
    """The process that ran the user's code died without an answer."""

    exit_code = ExitCode.TARGET_FAILED


class TimeLimitError(BsfindError):
    """The worker did not answer within the time it was given."""

    exit_code = ExitCode.STOPPED_EARLY


class InternalError(BsfindError):
    """A bug in bsfind."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: end as for Ctrl-C, with status 143 or 129."""

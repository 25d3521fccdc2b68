"""What bsfind's exit status means: part of the public contract."""

from enum import IntEnum

__all__ = ["ExitCode"]


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

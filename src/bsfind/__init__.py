"""Find the batch size that a PyTorch model should train with on a GPU.

From Python, in a notebook or a test:

    import bsfind

    report = bsfind.find("mypkg.models:Net", (3, 224, 224), gpu="rtx-4090")
    report.batch_size

Importing bsfind imports neither torch nor anything else: names are looked up when they are used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsfind.api import check, find
    from bsfind.errors import (
        BsfindError,
        NoDeviceError,
        TargetError,
        TimeLimitError,
        UsageError,
        WorkerError,
    )
    from bsfind.inputs import InputSpec
    from bsfind.python.report import Report
    from bsfind.results import PrecisionResult, Recommendation
    from bsfind.trial import Trial

__version__ = "0.1.0"

__all__ = [
    "BsfindError",
    "InputSpec",
    "NoDeviceError",
    "PrecisionResult",
    "Recommendation",
    "Report",
    "TargetError",
    "TimeLimitError",
    "Trial",
    "UsageError",
    "WorkerError",
    "__version__",
    "check",
    "find",
    "step",
]

_HOMES = {
    **dict.fromkeys(("check", "find"), "bsfind.api"),
    "Report": "bsfind.python.report",
    **dict.fromkeys(
        (
            *("BsfindError", "NoDeviceError", "TargetError", "TimeLimitError"),
            *("UsageError", "WorkerError"),
        ),
        "bsfind.errors",
    ),
    "InputSpec": "bsfind.inputs",
    "Trial": "bsfind.trial",
    **dict.fromkeys(("PrecisionResult", "Recommendation"), "bsfind.results"),
}
"""The modules of the public names (PEP 562)."""


def step() -> None:
    """Tell `bsfind launch` that a training loop without an optimizer of torch's has made a step.

    Anywhere else it does nothing.
    """
    probe = sys.modules.get("_bsfind_probe")
    if probe is not None:
        probe.step()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

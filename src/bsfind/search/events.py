"""What a search reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsfind.errors import NoGpuError
    from bsfind.records import Trial
    from bsfind.settings import DeviceChoice


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known while the search goes on.

    Attributes:
        precision: the precision that is searched.
        doing: `loading`, `trying`, `confirming`, `timing`, `defragmenting` or `inspecting`.
        batch_size: the batch size that is tried; None while the model is loaded.
        best: the largest batch size that ran.
        failed: the smallest batch size above `best` that did not run.
        trials: how many trials ran in this precision.
        out_of_memory: how many of them ran out of memory.
    """

    precision: str
    doing: str
    batch_size: int | None = None
    best: int | None = None
    failed: int | None = None
    trials: int = 0
    out_of_memory: int = 0


class Events:
    """Receives what happens in a search. This class ignores it; subclasses override what they need."""

    def progress(self, progress: Progress) -> None:
        """Called before each step."""

    def trial(self, precision: str, trial: Trial) -> None:
        """Called after each trial; the report is up to date then."""

    def output(self, line: str) -> None:
        """Called with every line that the user's code prints, in a thread of its own."""

    def waiting(self, message: str) -> None:
        """Called once if another bsfind measures on the GPU."""

    def no_gpu(self, error: NoGpuError) -> DeviceChoice | None:
        """Return the device to use where `auto` finds no GPU; None: there is no other one."""
        return None

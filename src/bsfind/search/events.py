"""What a search reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsfind.errors import NoGpuError
    from bsfind.settings import DeviceChoice
    from bsfind.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known while the search goes on.

    Attributes:
        precision: the precision that is searched; `fp32 at 512 tokens` where there are several lengths.
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

    @property
    def words(self) -> list[str]:
        """What is done and known, in a few words each, the most important first."""
        parts = [self.doing]
        if self.doing == "loading":
            parts = ["loading the model"]
        elif self.batch_size is not None:
            parts = [f"{self.doing} {self.batch_size:,}"]
        if self.best is not None and self.failed is not None:
            parts.append(f"{self.best:,} ran, {self.failed:,} did not")
        elif self.best is not None:
            parts.append(f"largest that ran {self.best:,}")
        elif self.failed is not None:
            parts.append(f"{self.failed:,} did not run")
        if self.trials:
            trials = f"{self.trials} trial{'s' if self.trials > 1 else ''}"
            if self.out_of_memory:
                trials += f", {self.out_of_memory} out of memory"
            parts.append(trials)
        return parts


class Events:
    """Receives what happens in a search. This class ignores it; subclasses override what they need."""

    def progress(self, progress: Progress) -> None:
        """Called before each step."""

    def trial(self, precision: str, trial: Trial) -> None:
        """Called after each trial, with its precision as in `Progress`; the report is up to date then."""

    def output(self, line: str) -> None:
        """Called with every line that the user's code prints, in a thread of its own."""

    def waiting(self, message: str) -> None:
        """Called once if another bsfind measures on the GPU."""

    def no_gpu(self, error: NoGpuError) -> DeviceChoice | None:
        """Return the device to use where `auto` finds no GPU; None: there is no other one."""
        return None

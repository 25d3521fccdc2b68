"""What really fits, answered by single fresh processes: the yardstick of the other benchmarks.

`ask` starts `python -m benchmarks.fresh`, which imports torch and builds the model once, and forks for every
batch size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.card import child_environment

from bsfind.settings import Workload

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Largest", "Runs", "ask"]

_LONGEST_S = 1800


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Does a batch size run? The answer is true or false.

    Attributes:
        batch_size: which.
        steps: for how many.
        limit_bytes: what the allocator may reserve; None: all that is free.
    """

    batch_size: int
    steps: int = 3
    limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Largest:
    """Which is the largest batch size that runs? The answer is 0 if none does.

    Attributes:
        near: where to begin.
        steps: of each trial.
        limit_bytes: what the allocator may reserve; None: all that is free.
        peak_bytes: what it may have reserved in the end, within the limit; None: all of it.
        is_steady: its allocator does not have to give cached memory back to go on, after two steps.
    """

    near: int
    steps: int = 3
    limit_bytes: int | None = None
    peak_bytes: int | None = None
    is_steady: bool = False


def ask(workload: Workload, precision: str, *questions: Runs | Largest) -> list[Any]:
    """Return the answers to some questions about a model.

    Raises:
        RuntimeError: a trial failed, and not for lack of memory.
        subprocess.TimeoutExpired: it takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answers.json")
        text = json.dumps(
            {
                "workload": workload.to_message(),
                "precision": precision,
                "questions": [
                    [type(question).__name__, asdict(question)] for question in questions
                ],
            }
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fresh", text, str(file)],
            check=False,
            capture_output=True,
            text=True,
            env=child_environment(),
            timeout=_LONGEST_S,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{workload.target} in {precision}:\n{done.stderr[-2000:]}")
        return json.loads(file.read_text())  # type: ignore[no-any-return]


def main() -> None:
    """Answer the questions in the first argument, in the file that the second one names."""
    from benchmarks.exact import largest_batch_size, runs_in_fresh_process

    request = json.loads(sys.argv[1])
    workload = Workload.from_json(request["workload"])
    sys.path.insert(0, workload.app_dir)
    import torch
    import torch._dynamo  # else each fork would: the first optimizer does
    from benchmarks import training

    torch.set_num_threads(1)  # threads would not survive the forks
    model = training.build(workload)
    answers: list[Any] = []
    for kind, fields in request["questions"]:
        question = {"Runs": Runs, "Largest": Largest}[kind](**fields)
        trial = _Trial(workload, request["precision"], model, question)
        if isinstance(question, Runs):
            answers.append(runs_in_fresh_process(trial, question.batch_size))
        else:
            answers.append(largest_batch_size(trial, question.near))
    Path(sys.argv[2]).write_text(json.dumps(answers))


class _Trial:
    """Trains at a batch size; to be called in a fork of its own each time."""

    def __init__(
        self, workload: Workload, precision: str, model: nn.Module, question: Runs | Largest
    ) -> None:
        self._workload, self._precision = workload, precision
        self._model, self._question = model, question

    def __call__(self, batch_size: int) -> bool:
        import torch
        from benchmarks import training

        question = self._question
        if question.limit_bytes is not None:
            training.limit_memory(question.limit_bytes)
        loaded = training.load(self._workload, self._precision, self._model)
        torch.cuda.empty_cache()  # as bsfind does: what building the model left behind
        torch.cuda.reset_peak_memory_stats()
        retries: list[int] = []

        def count_retries() -> None:
            retries.append(torch.cuda.memory_stats()["num_alloc_retries"])

        training.train(loaded, batch_size, question.steps, count_retries)
        if isinstance(question, Runs):
            return True
        if question.is_steady and retries[-1] > retries[1]:
            return False
        return (
            question.peak_bytes is None or torch.cuda.max_memory_reserved() <= question.peak_bytes
        )


if __name__ == "__main__":
    main()

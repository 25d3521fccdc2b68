"""The results: a JSON document, and a summary of it in Markdown, written again after every row.

Rows have a line each, so that two documents can be compared by line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.real_gpu.steps import Step, StepResult
from benchmarks.real_gpu.summary import summary

__all__ = ["Document"]

SCHEMA_VERSION = 1


class Document:
    """Results of a run.

    Args:
        path: of the JSON document; the summary's ends with `.md`.
        head: fields that describe the run.
        steps: all that were planned.

    Attributes:
        path: see above.
    """

    def __init__(self, path: Path, head: dict[str, Any], steps: tuple[Step, ...]) -> None:
        self.path = path
        self._head = {"schema_version": SCHEMA_VERSION, **head}
        self._steps = {step.name: step for step in steps}
        self._results: dict[str, dict[str, Any]] = {
            step.name: {"status": "not begun", "message": None, "seconds": 0.0, "figures": {}, "rows": []}
            for step in steps
        }  # fmt: skip

    def record(self, step: Step, result: StepResult) -> None:
        """Take in what a step has measured so far, and write."""
        try:
            figures = step.summarise(result.rows) if result.rows else {}
        except Exception as error:  # the rows are worth more than their figures
            figures = {"could not be computed": repr(error)}
        self._results[step.name] = {
            "status": result.status,
            "message": result.message,
            "seconds": result.seconds,
            "figures": figures,
            "rows": result.rows,
        }
        self.write()

    def write(self) -> None:
        """Write both files, each whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.path, self._text())
        _replace(self.path.with_suffix(".md"), summary(self._head, self._steps, self._results))

    def set(self, **fields: Any) -> None:
        """Change fields that describe the run."""
        self._head |= fields

    def statuses(self) -> dict[str, str]:
        """Return how each step ended."""
        return {name: result["status"] for name, result in self._results.items()}

    def _text(self) -> str:
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in self._head.items()]
        steps = []
        for name, result in self._results.items():
            fields = [
                f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items() if k != "rows"
            ]
            rows = ",\n".join(f"    {json.dumps(row)}" for row in result["rows"])
            fields.append(f'   "rows": [\n{rows}\n   ]' if rows else '   "rows": []')
            steps.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n  }")
        lines.append(' "steps": {\n' + ",\n".join(steps) + "\n }")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)

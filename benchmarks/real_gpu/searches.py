"""`bsfind run` on the GPU beside its predictions, for twelve models in fp32 and AMP, several at a time.

Each model has a process of its own (one_search.py) and a limit of memory, so that a large card takes no
longer than a small one. The last search has the whole card.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.card import ROOT, child_environment
from benchmarks.real_gpu.card_facts import Card, installed
from benchmarks.real_gpu.steps import LeftOutError, Options, Row, Step

from bsfind.units import GIB

__all__ = ["STEP"]

_MODELS = (
    *("resnet50", "gpt2", "lstm", "unet", "vit", "bert"),
    *("gru", "unet3d", "mobilenet", "swin", "audio", "t5"),
)
_NEEDS = {
    **dict.fromkeys(("resnet50", "vit", "mobilenet", "swin"), "timm"),
    **dict.fromkeys(("gpt2", "bert", "t5"), "transformers"),
}
"""The package that makes a model; the others are written out in zoo.py."""

_PRECISIONS = ("fp32", "amp")
_LIMIT = 4 * GIB
_STEPS, _SHORT_STEPS = 200, 5
_SHORT_MODELS, _SHORT_LIMIT = ("gru",), GIB // 2
_FREE_OF_OTHERS = 2 * GIB
"""With less in use, the context and the driver's own among it, no other process has much of the GPU."""

_LONGEST_S, _SHORTEST_S = 110.0, 20.0
_AT_ONCE = 6


@dataclass(frozen=True)
class _Search:
    model: str
    precisions: tuple[str, ...]
    limit: int | None

    def row(self, status: str, message: str | None = None) -> Row:
        """Return the row of a search that has no answer."""
        return {"model": self.model, "limit": self.limit, "status": status, "message": message}


class _Running:
    """A search that runs in a process of its own.

    Args:
        search: which.
        card: the GPU.
        options: of the step.
        folder: for its output.
    """

    def __init__(self, search: _Search, card: Card, options: Options, folder: Path) -> None:
        self.search = search
        request = {
            **dataclasses.asdict(search),
            "steps": _SHORT_STEPS if options.is_short else _STEPS,
            "seconds": min(_LONGEST_S, options.seconds_left - 3.0),
            "card": dataclasses.asdict(card),
        }
        self._errors = folder / f"{search.model}-{search.limit}.err"
        out = folder / f"{search.model}-{search.limit}.out"
        with out.open("wb") as rows, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "ignore", "-m", "benchmarks.real_gpu.one_search"),
                    json.dumps(request),
                ],
                cwd=ROOT,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=rows,
                stderr=errors,
            )
        self._rows = out.open("rb")
        self._pending = b""
        self.has_ended = False

    def new_rows(self) -> Iterator[Row]:
        """Yield what has been printed since; in the end, what went wrong."""
        code = self._process.poll()
        *lines, self._pending = (self._pending + self._rows.read()).split(b"\n")
        # Other lines are the model's library's.
        yield from (json.loads(line) for line in lines if line.startswith(b'{"id"'))
        self.has_ended = code is not None
        if code:
            message = self._errors.read_text(errors="replace")[-1500:]
            yield self.search.row("failed", message)

    def end(self) -> None:
        """Ask the process to end."""
        self._process.terminate()


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each model and precision, as the searches end.

    Raises:
        LeftOutError: what the command line imports is not installed.
    """
    packages = installed()
    if missing := [name for name in ("typer", "rich") if packages[name] is None]:
        raise LeftOutError(f"not installed: {', '.join(missing)}")
    waiting: list[_Search] = []
    for search in _planned(is_short=options.is_short):
        package = _NEEDS.get(search.model)
        if package is not None and packages[package] is None:
            yield search.row(f"left out: no {package}")
        elif search.limit is None and card.total_bytes - card.free_bytes > _FREE_OF_OTHERS:
            yield search.row("left out: other processes use the GPU")
        else:
            waiting.append(search)
    at_once = _searches_at_once(card)
    running: list[_Running] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and options.seconds_left > _SHORTEST_S:
                    # That of the whole card runs alone.
                    if len(running) >= (1 if waiting[0].limit is None else at_once):
                        break
                    running.append(_Running(waiting.pop(0), card, options, Path(folder)))
                if not running:
                    break
                time.sleep(0.2)
                for each in running:
                    yield from each.new_rows()
                running = [each for each in running if not each.has_ended]
        finally:
            for each in running:
                each.end()
    for search in waiting:
        yield search.row("left out: no time")


def _planned(*, is_short: bool) -> list[_Search]:
    if is_short:
        return [_Search(model, _PRECISIONS[-1:], _SHORT_LIMIT) for model in _SHORT_MODELS]
    limited = [_Search(model, _PRECISIONS, _LIMIT) for model in _MODELS]
    return [*limited, _Search(_MODELS[0], _PRECISIONS[-1:], None)]


def _searches_at_once(card: Card) -> int:
    """Return how many searches share the GPU, as memory and processors allow; a fake one is not shared."""
    if card.is_fake:
        return 1
    memory = card.free_bytes // (2 * _LIMIT)
    return max(1, min(_AT_ONCE, (os.cpu_count() or 2) // 2, memory))


def summarise(rows: list[Row]) -> Row:
    """Return how predicted and measured maxima and peaks compare, and what ran on."""
    found = [row for row in rows if row.get("largest")]
    inside = [row for row in found if row.get("prediction_largest") and row["failed"]]
    figures: Row = {
        "searches": len(found),
        "without an answer": sum("status" in row and not row.get("largest") for row in rows),
        "predicted maximum inside the measured bracket": f"{sum(map(_is_inside, inside))} of {len(inside)}",
    }
    errors = [abs(row["prediction_largest"] - row["largest"]) / row["largest"] for row in inside]
    if errors:
        figures["predicted maximum: error"] = _errors(errors)
    for name in ("allocated", "reserved"):
        pairs = [
            (trial[name], trial[f"predicted_{name}"])
            for row in found
            for trial in row.get("trials", ())
            if trial.get(f"predicted_{name}") is not None
        ]
        if pairs:
            same = sum(measured == predicted for measured, predicted in pairs)
            figures[f"peak {name}: equal"] = f"{same} of {len(pairs)}"
            figures[f"peak {name}: error"] = _errors([abs(p - m) / m for m, p in pairs])
    ran = [row for row in found if row.get("further_status")]
    failed = sum(row["further_status"] not in ("ok", "cut short") for row in ran)
    figures["recommended sizes that trained on"] = f"{len(ran) - failed} of {len(ran)}"
    if ran:
        figures["further steps"] = sum(row.get("further_steps", 0) for row in ran)
    return figures


def _is_inside(row: Row) -> bool:
    return bool(row["largest"] <= row["prediction_largest"] < row["failed"])


def _errors(errors: list[float]) -> str:
    return f"median {statistics.median(errors):.2%}, largest {max(errors):.2%}"


STEP = Step(
    name="searches",
    title="Searches, measured and predicted",
    measure=measure,
    summarise=summarise,
    columns=(
        *("model", "precision", "limit", "status", "largest", "failed", "prediction_largest"),
        *("recommended", "peak_allocated_bytes", "peak_reserved_bytes"),
        *("further_status", "further_steps", "further_retries", "search_seconds"),
    ),
    least_s=_SHORTEST_S,
    kept_share=0.42,
    most_s=240,
)

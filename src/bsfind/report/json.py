"""The report as JSON: the document that scripts read (schema in `schema.json`)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from importlib import resources
from typing import Any, TypeVar

from bsfind.inspect.inspection import InspectionReport
from bsfind.report.validation import validated
from bsfind.results import Report
from bsfind.search.compared_gpus import ComparedGpus

_Item = TypeVar("_Item", bound=Hashable)

_TO_ESCAPE = re.compile(
    r"(\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|\\ud[89a-f][0-9a-f]{2}|#(?=#\w*\[)"
)
"""In ASCII JSON: an escaped backslash or a pair of surrogates, which stay (group 1); a lone surrogate; the
beginning of a command of a CI runner (see `visible`)."""

_MOST_DIGITS = 20
"""From so many digits on an integer is larger than any that bsfind writes (64 bits)."""


def dumps(document: Any) -> str:
    r"""Return a document as indented JSON in ASCII, with a newline at its end.

    Lone surrogates, which stand for bytes that are not UTF-8 and which strict parsers refuse, become
    visible: the text `\udcff`.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(document, indent=2, allow_nan=False)
    escapes = {"#": r"\u0023"}
    return _TO_ESCAPE.sub(lambda f: f[1] or escapes.get(f[0], f"\\{f[0]}"), text) + "\n"


def to_json(report: Report | ComparedGpus | InspectionReport) -> str:
    """Return the JSON document of a report."""
    return dumps(report.to_json())


def read_report(content: bytes) -> Report:
    """Return the report that a JSON file holds, in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is not a report of this schema version; the message says what is wrong where.
    """

    def integer(text: str) -> float:
        return int(text) if len(text) < _MOST_DIGITS else math.inf

    try:
        document = json.loads(content, parse_int=integer, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not a text file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if isinstance(document, dict) and "cards" in document:
        raise ValueError("it compares GPUs: each of its `cards` is a report")
    report = Report.from_json(validated(document, schema()))
    twice = _repeated([(r.precision, r.remedy, r.seq_len) for r in report.results])
    if twice is not None:
        raise ValueError(f"`results` has {twice[0]} twice")
    return report


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = _repeated([name for name, _ in pairs])
    if twice is not None:
        raise ValueError(f"`{twice}` is there twice in one object")
    return dict(pairs)


def _repeated(items: Sequence[_Item]) -> _Item | None:
    """Return an item that is there more than once; None if there is none."""
    if len(set(items)) == len(items):
        return None
    return Counter(items).most_common(1)[0][0]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the report of `run` and `check`."""
    return _shipped("schema.json")


def inspection_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `inspect` finds out."""
    return _shipped("inspection_schema.json")


def gpus_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `run` with a list of GPUs finds out: a report of each."""
    document, report = _shipped("gpus_schema.json"), schema()
    card = {
        "description": "What `bsfind run` found out on one of the GPUs: its report, and the GPU.",
        **{name: report[name] for name in ("type", "additionalProperties")},
        "required": ["gpu", *report["required"]],
        "properties": {"gpu": {"$ref": "#/$defs/gpu"}, **report["properties"]},
    }
    return {**document, "$defs": {**document["$defs"], **report["$defs"], "card": card}}


SCHEMAS = {"report": schema, "gpus": gpus_schema, "inspection": inspection_schema}
"""The schemas by the names that `bsfind schema` takes."""


def _shipped(name: str) -> dict[str, Any]:
    text = (resources.files(__package__) / name).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document

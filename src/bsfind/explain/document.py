"""The explanation as a JSON document: sizes in bytes, null for what is not known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bsfind.explain.advice import Advice
from bsfind.explain.cause import Cause
from bsfind.explain.explanation import Error, Explanation
from bsfind.explain.figures import Figures

SCHEMA_VERSION = "1.0"


def document(explanation: Explanation) -> dict[str, Any]:
    """Return the document: the most telling error at the top, every one under `errors`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": explanation.kind.value,
        **_figures(explanation.figures),
        **_verdict(explanation.cause, explanation.advice),
        "errors": [_error(error) for error in explanation.errors],
        "lines": explanation.lines,
    }


def _error(error: Error) -> dict[str, Any]:
    account = asdict(error.account)
    return {
        "rank": error.source.rank,
        "source": error.source.name,
        "line": error.line,
        "occurrences": error.occurrences,
        "kind": error.kind.value,
        **_figures(error.figures),
        "account": {name: account[name] for name in sorted(account) if name.endswith("_bytes")},
        **_verdict(error.cause, error.advice),
        "message": error.message,
    }


def _figures(figures: Figures) -> dict[str, Any]:
    known = asdict(figures)
    del known["precision"]
    known["processes"] = [asdict(process) for process in figures.processes]
    return known


def _verdict(cause: Cause, advice: tuple[Advice, ...]) -> dict[str, Any]:
    return {
        "cause": cause.kind.value,
        "cause_is_likely": cause.likely,
        "cause_reason": cause.reason,
        "advice": [asdict(remedy) for remedy in advice],
    }

"""The figures of an accuracy benchmark: medians, percentiles, shares, by kind of model."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["BOUNDED_KINDS", "KINDS", "UNCOMPARED_KIND", "bounds", "summary"]

BOUNDED_KINDS = ("convolutional", "attention")
"""Kinds of models whose figures bsfind shows as an error bound."""

UNCOMPARED_KIND = "recurrent"
"""The fake cuDNN answers recurrent layers by the formula that the simulator has: equal by construction."""

KINDS = (*BOUNDED_KINDS, "other")


def summary(rows: Sequence[dict[str, Any]], searches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all rows, of each kind, and of the searches."""
    compared = [row for row in rows if row["status"] == "ok" and row["kind"] != UNCOMPARED_KIND]
    result: dict[str, Any] = {
        "runs": len(compared),
        "models": len({row["model"] for row in compared}),
        "families": len({row["family"] for row in compared}),
        "not_compared": dict(Counter(row["status"] for row in rows if row["status"] != "ok")),
    }
    if compared:
        result |= {"gpu": compared[0]["gpu"], "torch": compared[0]["torch"]}
        result["all"] = bounds(compared)
    for kind in KINDS:
        if some := [row for row in compared if row["kind"] == kind]:
            result[kind] = bounds(some)
    if done := [row for row in searches if row["status"] == "ok"]:
        errors = sorted(abs(row["predicted"] - row["real"]) / row["real"] for row in done)
        result["searches"] = {
            "searches": len(done),
            "exact": round(sum(error == 0 for error in errors) / len(errors), 4),
            "median": round(statistics.median(errors), 5),
            "p95": round(percentile(errors, 0.95), 5),
            "largest": round(errors[-1], 5),
            "too_large": sum(row["predicted"] > row["real"] for row in done),
        }
    return result


def bounds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how far predicted peaks are from real ones, as parts of these."""
    result: dict[str, Any] = {
        "runs": len(rows),
        "exact": round(sum(row["exact"] for row in rows) / len(rows), 4),
        "same_events": round(sum(row["same_events"] for row in rows) / len(rows), 4),
    }
    for name in ("allocated", "reserved"):
        # A prediction that finds no room for what ran is as wrong as can be.
        errors = sorted(
            1.0 if row[f"{name}_error"] is None else abs(row[f"{name}_error"]) for row in rows
        )
        result[name] = {
            "exact": round(sum(error == 0 for error in errors) / len(errors), 4),
            "median": round(statistics.median(errors), 5),
            "mean": round(statistics.fmean(errors), 5),
            "p95": round(percentile(errors, 0.95), 5),
            "largest": round(errors[-1], 5),
        }
    return result


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share of the others does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

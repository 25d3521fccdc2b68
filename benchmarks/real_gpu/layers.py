"""The operators that CUDA chooses for attention and other layers, and what they allocate.

Runs the cases of tests/simulation/layer_cases.py on the GPU, and on meta tensors that pose as it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator

from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.steps import Options, Row, Step
from tests.simulation.forks import in_fork
from tests.simulation.layer_cases import GROUPS, on_cuda, on_meta
from tests.simulation.operator_comparison import differences

from bsfind.simulation.kernels.call import load_rules

__all__ = ["STEP"]

_SLOW = "attention"
"""cuDNN compiles a kernel for each of its shapes."""

_GROUPS = ("composites", "batch_norm", "recurrent_layers", _SLOW)

_SHORT_GROUPS = ("composites",)


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each case: the operators on both sides, and the calls that allocate otherwise."""
    load_rules()
    warnings.simplefilter("ignore")
    groups = _SHORT_GROUPS if options.is_short else _GROUPS
    # In forks, and before this process has a CUDA context: CUDA's composites are replaced there.
    on_host = {group: in_fork(lambda g=group: on_meta(g, card.spec)) for group in groups}  # type: ignore[misc]
    for group, predicted in on_host.items():
        if predicted.get("status") == "error":
            yield {"group": group, "error": predicted["message"]}
            continue
        cases = list(GROUPS[group]())
        if group == _SLOW:  # where there is no time for all, it is for some of each kind
            random.Random(0).shuffle(cases)
        for case in on_cuda(cases):
            records = [record for record in case["records"] if _is_own(record["operator"])]
            wrong = [
                {"operator": record["operator"], "measured": measured, "predicted": expected}
                for record, measured, expected in differences(records, card.spec)
            ]
            row: Row = {
                "group": group,
                "case": case["case"],
                "same_operators": predicted.get(case["case"]) == case["operators"],
                "calls": len(records),
                "other_events": wrong,
            }
            if not row["same_operators"]:
                row |= {"measured": case["operators"], "predicted": predicted.get(case["case"])}
            yield row


def _is_own(operator: str) -> bool:
    """Tell whether a rule of the groups is about an operator; recurrent.py compares cuDNN's sizes."""
    return any(part in operator for part in ("attention", "softmax", "norm", "dropout"))


def summarise(rows: list[Row]) -> Row:
    """Return how many cases had the operators that bsfind says, and how many calls its events."""
    figures: Row = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        some = [row for row in rows if row["group"] == group and "case" in row]
        same = sum(row["same_operators"] for row in some)
        calls = sum(row["calls"] for row in some)
        wrong = sum(len(row["other_events"]) for row in some)
        figures[f"{group}: cases with the same operators"] = f"{same} of {len(some)}"
        figures[f"{group}: calls with the same allocations"] = f"{calls - wrong} of {calls}"
    return figures


STEP = Step(
    name="layers",
    title="Operators of attention and other layers",
    measure=measure,
    summarise=summarise,
    most_s=45,
)

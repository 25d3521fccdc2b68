"""Which backend CUDA chooses for `scaled_dot_product_attention`, and which one bsfind says. No kernel runs.

The calls are the cases of tests/simulation/layer_cases.py; CUDA's answer is `torch._fused_sdp_choice`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.steps import Options, Row, Step
from tests.simulation.layer_cases import attention
from torch.overrides import TorchFunctionMode

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.cuda_paths.attention_choice import (
    AttentionBackend,
    AttentionQuestion,
    choose_attention,
)

__all__ = ["STEP"]

_NONE = "none"


class _ChosenError(Exception):
    """Ends a case at its call of attention, with both answers."""

    def __init__(self, measured: str, predicted: str) -> None:
        super().__init__(measured, predicted)
        self.measured, self.predicted = measured, predicted


class _Listener(TorchFunctionMode):
    """Asks at the call of attention, and raises `_ChosenError`."""

    def __init__(self, gpu: GpuSpec) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value, *_ = args
        options = dict(kwargs or {})
        try:
            number = torch._fused_sdp_choice(query, key, value, **options)
            measured = AttentionBackend(number).name if number >= 0 else _NONE
        except RuntimeError:
            measured = _NONE
        options.pop("scale", None)
        question = AttentionQuestion(
            query=query,
            key=key,
            value=value,
            mask=options.pop("attn_mask", None),
            dropout=options.pop("dropout_p", 0.0),
            **options,
        )
        try:
            predicted = choose_attention(question, self._gpu).name
        except RuntimeError:
            predicted = _NONE
        raise _ChosenError(measured, predicted)


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each case."""
    warnings.simplefilter("ignore")
    torch.cuda.init()
    for name, case in attention():
        try:
            with _Listener(card.spec):
                case("cuda")
        except _ChosenError as chosen:
            yield {"case": name, "measured": chosen.measured, "predicted": chosen.predicted}
        except RuntimeError as error:
            yield {"case": name, "error": str(error)[:200]}
        finally:
            torch.use_deterministic_algorithms(False)


def summarise(rows: list[Row]) -> Row:
    """Return how many choices are the same, and which of the others there are."""
    known = [row for row in rows if "measured" in row]
    others = Counter(
        f"{row['measured']} on the GPU, {row['predicted']} predicted"
        for row in known
        if row["measured"] != row["predicted"]
    )
    same = len(known) - others.total()
    return {"same choice": f"{same} of {len(known)}", **others}


STEP = Step(
    name="attention",
    title="Backends of attention",
    measure=measure,
    summarise=summarise,
    most_s=30,
)

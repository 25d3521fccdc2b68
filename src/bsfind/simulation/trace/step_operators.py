"""Which operators a traced step consists of, as far as the accuracy of a prediction depends on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from bsfind.records import ModelKind
from bsfind.simulation.kernels.call import Call
from bsfind.simulation.trace.recorder import CALL, Entry

_FUSED_ATTENTION = "aten::_scaled_dot_product_"
_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")
_BATCHED_PRODUCTS = {"aten::bmm": ("self", "mat2"), "aten::baddbmm": ("batch1", "batch2")}


@dataclass(frozen=True, kw_only=True)
class StepOperators:
    """How often the forward passes of a trace call the operators that tell models apart.

    Attributes:
        convolutions: calls of `aten::convolution`.
        attentions: calls of the fused kernels of `scaled_dot_product_attention`, and softmaxes between
            two batched matrix products, by their shapes: attention that is written out.
        recurrent: calls of cuDNN's recurrent layers.
    """

    convolutions: int = 0
    attentions: int = 0
    recurrent: int = 0

    @property
    def kind(self) -> ModelKind:
        """What most of these calls are.

        What is harder to predict decides a tie, and cuDNN's recurrent layers decide wherever they
        occur: nothing is known of their workspaces.
        """
        if self.recurrent:
            return "recurrent"
        if not self.convolutions and not self.attentions:
            return "other"
        return "convolutional" if self.convolutions >= self.attentions else "attention"


def operators_of(entries: Iterable[Entry]) -> StepOperators:
    """Return the operators of a trace.

    Args:
        entries: of the recorder, of a trial.
    """
    convolutions = attentions = recurrent = 0
    products: set[tuple[int, ...]] = set()
    weights: Counter[tuple[int, ...]] = Counter()
    for entry in entries:
        if entry[0] != CALL:
            continue
        call: Call = entry[2]
        name = call.operator
        if name == "aten::convolution":
            convolutions += 1
        elif name == "aten::_cudnn_rnn":
            recurrent += 1
        elif name.startswith(_FUSED_ATTENTION) and not name.endswith("_backward"):
            attentions += 1
        elif name in _SOFTMAX:
            output = call.outputs[0]
            if output is not None and output.dim >= 3:
                shape = (math.prod(output.shape[:-2]), *output.shape[-2:])
                if shape in products or _turned(shape) in products:
                    weights[shape] += 1
        elif name in _BATCHED_PRODUCTS:
            for argument in _BATCHED_PRODUCTS[name]:
                shape = call.tensor(argument).shape
                attentions += weights.pop(shape, 0) + weights.pop(_turned(shape), 0)
            products.update(output.shape for output in call.outputs if output is not None)
    return StepOperators(convolutions=convolutions, attentions=attentions, recurrent=recurrent)


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    batch, rows, columns = shape
    return batch, columns, rows

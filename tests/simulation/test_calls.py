"""Calls as a dispatch mode sees them, described without values."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import TensorSpec
from bsfind.simulation.trace.calls import call_of, flat_tensors, spec_of

aten = torch.ops.aten


def test_arguments_have_their_names_and_defaults() -> None:
    x = torch.empty(2, 3, device="meta").t()
    result = aten.sum.dim_IntList(x, [0])
    call = call_of(aten.sum.dim_IntList, (x, [0]), {}, flat_tensors(result))
    assert (call.operator, call.overload) == ("aten::sum", "dim_IntList")
    assert call["self"] == TensorSpec((3, 2), (1, 3), torch.float32)
    assert call["dim"] == [0]
    assert call["keepdim"] is False
    assert call["dtype"] is None
    assert [output.shape for output in call.outputs if output] == [(2,)]


def test_lists_of_tensors_become_tuples_of_specs() -> None:
    x = torch.empty(2, device="meta")
    call = call_of(aten.index.Tensor, (x, [None, x]), None, [None])
    assert call["indices"] == (None, spec_of(x))
    assert call.outputs == (None,)


def test_keyword_arguments_count() -> None:
    x = torch.empty(2)
    call = call_of(aten.add.Tensor, (x,), {"other": x, "alpha": 2}, [x])
    assert call.tensor("other").on_gpu is False
    assert call["alpha"] == 2


def test_results_are_flattened() -> None:
    x, y = torch.empty(1), torch.empty(2)
    assert [t is None for t in flat_tensors((x, None, [y, x], 3))] == [False, True, False, False]
    assert flat_tensors(3) == []

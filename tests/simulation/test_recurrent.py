"""Recurrent layers on meta tensors go through cuDNN as on CUDA, and allocate what it does there."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.layer_cases import on_fake_gpu, on_meta
from tests.simulation.operator_comparison import differences
from tests.simulation.oracle import why_there_is_none
from tests.simulation.recurrent_sizes import with_given_sizes
from torch import nn

from bsfind.simulation.kernels.call import load_rules
from bsfind.simulation.kernels.recurrent import (
    RecurrentShape,
    temporary_bytes,
)
from bsfind.simulation.trace.cuda_paths.recurrent_choice import flatten_parameters

without_gpu = why_there_is_none()


@pytest.mark.parametrize(
    ("mode", "make"),
    [("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn_tanh", nn.RNN)],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_flat_buffer_holds_all_parameters(mode: str, make: Any, bidirectional: bool) -> None:
    layer = make(16, 8, 3, bidirectional=bidirectional)
    shape = RecurrentShape(
        mode=mode,
        input_size=16,
        hidden_size=8,
        proj_size=0,
        layers=3,
        directions=2 if bidirectional else 1,
    )
    assert shape.weight_elements == sum(parameter.numel() for parameter in layer.parameters())
    spans = [
        (offset, parameter.numel())
        for offset, parameter in zip(
            [offset for offsets in shape.offsets() for offset in offsets],
            layer.parameters(),
            strict=True,
        )
    ]
    end = 0
    for offset, count in sorted(spans):
        assert offset == end
        end += count
    assert end == shape.weight_elements


def test_projections_are_in_the_buffer() -> None:
    layer = nn.LSTM(16, 8, 2, proj_size=4)
    shape = RecurrentShape(
        mode="lstm", input_size=16, hidden_size=8, proj_size=4, layers=2, directions=1
    )
    assert shape.weight_elements == sum(parameter.numel() for parameter in layer.parameters())


def test_parameters_move_into_one_buffer() -> None:
    layer = nn.GRU(16, 8, 2, device="meta")
    flatten_parameters(layer)
    storages = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}
    assert len(storages) == 1
    shapes = {name: tuple(p.shape) for name, p in nn.GRU(16, 8, 2).named_parameters()}
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == shapes


def test_parameters_on_the_host_stay() -> None:
    layer = nn.GRU(16, 8, 2, device="meta")
    flatten_parameters(layer, is_on_gpu=lambda tensor: False)
    storages = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}
    assert len(storages) == len(list(layer.parameters()))


def test_no_reserve_without_training() -> None:
    shape = RecurrentShape(
        mode="lstm",
        input_size=16,
        hidden_size=8,
        proj_size=0,
        layers=1,
        directions=1,
        is_training=False,
    )
    assert temporary_bytes(shape)[1] == 0


@pytest.mark.gpu
@pytest.mark.skipif(without_gpu is not None, reason=str(without_gpu))
def test_as_cuda_does() -> None:
    """The order of events, the outputs and how long each block lives are PyTorch's.

    How much cuDNN asks for is not compared: both sides are given the same sizes.
    """
    load_rules()
    on_cuda = on_fake_gpu("recurrent_layers", "h100")
    on_host = on_meta("recurrent_layers", GPU_SPECS["h100"])
    assert {name: case["operators"] for name, case in on_cuda.items()} == on_host
    records = [
        record
        for case in on_cuda.values()
        for record in case["records"]
        if "_rnn" in record["operator"] or "_cell" in record["operator"]
    ]
    assert len(records) > 50
    with with_given_sizes():
        found = differences(records, GPU_SPECS["h100"])
    # The gradients of the weights are parts of one buffer, whose size a part does not tell.
    assert [d for d in found if _without_flat_gradient(d[1]) != _without_flat_gradient(d[2])] == []


def _without_flat_gradient(events: list[str]) -> list[str]:
    return ["+o3" if event.startswith("+o3:") else event for event in events]

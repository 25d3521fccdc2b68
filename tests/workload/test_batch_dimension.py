"""Layers that take the batch for the sequence are told, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bsfind.workload.model import watching_batch_dimension

BATCH, LENGTH = 4, 7


class Turned(nn.Module):
    """Transposes its input itself, as `batch_first=False` wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x.transpose(0, 1))


def encoder(*, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def noted(model: nn.Module, length: int = LENGTH) -> list[str]:
    notes: list[str] = []
    with watching_batch_dimension(model, BATCH, notes.append):
        model(torch.randn(BATCH, length, 8))
        model(torch.randn(BATCH, length, 8))
    return notes


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Sequential(nn.RNN(8, 8)), "`0` (RNN with `batch_first=False`)"),
        (lambda: nn.Sequential(nn.LSTM(8, 8)), "`0` (LSTM with `batch_first=False`)"),
        (lambda: nn.GRU(8, 8), "`GRU` (GRU with `batch_first=False`)"),
        (lambda: encoder(batch_first=False), "`layers.0.self_attn` (MultiheadAttention"),
    ],
)
def test_the_batch_in_place_of_the_sequence_is_told_once(
    make: Callable[[], nn.Module], name: str
) -> None:
    (note,) = noted(make())
    assert name in note
    assert f"gets [{BATCH}, {LENGTH}, 8]" in note


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(8, 8, batch_first=True),
        lambda: nn.GRU(8, 8, batch_first=True),
        lambda: encoder(batch_first=True),
        Turned,
    ],
)
def test_others_are_not(make: Callable[[], nn.Module]) -> None:
    assert noted(make()) == []


def test_nothing_is_told_where_both_have_one_size() -> None:
    assert noted(nn.LSTM(8, 8), BATCH) == []

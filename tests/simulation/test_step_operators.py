"""What kind of model it is: what decides how exact a prediction for it is."""

from __future__ import annotations

import pytest
from bsfind.workload.model_kind import kind_of
from torch import nn


class GPT2Attention(nn.Module):
    """As libraries name theirs."""


class Attn(nn.Module):
    """As others do."""


class Painting(nn.Module):
    """No attention in here, though some of its letters are."""


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (nn.Linear(2, 2), "other"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "convolutional"),
        (nn.ConvTranspose1d(3, 8, 3), "convolutional"),
        (nn.TransformerEncoderLayer(8, 2), "attention"),
        (nn.Sequential(nn.Conv2d(3, 8, 16), GPT2Attention()), "attention"),
        (nn.Sequential(Attn(), nn.Linear(2, 2)), "attention"),
        (nn.Sequential(Painting()), "other"),
        (nn.GRU(8, 8), "recurrent"),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.LSTM(8, 8), GPT2Attention()), "recurrent"),
    ],
)
def test_kinds(model: nn.Module, kind: str) -> None:
    assert kind_of(model) == kind

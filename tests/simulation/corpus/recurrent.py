"""Recurrent models: cuDNN's layers in every form, packed sequences, and cells in a loop."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LanguageModel(nn.Module):
    """A recurrent layer between an embedding and a vocabulary."""

    def __init__(
        self, cell: str = "LSTM", vocabulary: int = 5000, width: int = 200, layers: int = 2
    ) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(vocabulary, width), nn.Dropout(0.5)
        self.rnn = getattr(nn, cell)(width, width, layers, dropout=0.5, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.rnn(self.drop(self.embed(ids)))[0]))


class Tagger(nn.Module):
    """Bidirectional, time first, without biases, optionally with projections."""

    def __init__(self, cell: str = "LSTM", layers: int = 2, **settings: int) -> None:
        super().__init__()
        self.rnn = getattr(nn, cell)(
            64, 128, layers, bidirectional=True, bias=cell != "GRU", **settings
        )
        self.out = nn.Linear(2 * (settings.get("proj_size") or 128), 17)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x.transpose(0, 1))[0]).transpose(0, 1)


class LastState(nn.Module):
    """Classifies by the last hidden state."""

    def __init__(self, nonlinearity: str = "tanh") -> None:
        super().__init__()
        self.rnn = nn.RNN(40, 256, 2, nonlinearity=nonlinearity, batch_first=True)
        self.out = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[1][-1])


class Packed(nn.Module):
    """Sequences of different lengths, packed; lengths live on the host, as PyTorch wants them."""

    def __init__(self, cell: str = "LSTM") -> None:
        super().__init__()
        self.embed = nn.Embedding(3000, 96)
        self.rnn = getattr(nn, cell)(96, 160, batch_first=True, bidirectional=True)
        self.out = nn.Linear(320, 9)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        lengths = torch.arange(ids.shape[1], ids.shape[1] - ids.shape[0], -1)
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True)
        output, _ = self.rnn(packed)
        return self.out(pad_packed_sequence(output, batch_first=True)[0])


class Cells(nn.Module):
    """A cell, step by step, in Python."""

    def __init__(self, cell: str = "LSTMCell") -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(500, 128), getattr(nn, cell)(128, 256)
        self.out = nn.Linear(256, 500)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        state, outputs = None, []
        for time in range(x.shape[1]):
            state = self.cell(x[:, time], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(outputs, 1))


class Seq2Seq(nn.Module):
    """A GRU encoder, and a decoder that attends to it at every step."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(2000, width), nn.Embedding(2000, width)
        self.encode = nn.GRU(width, width, batch_first=True)
        self.decode = nn.GRUCell(2 * width, width)
        self.out = nn.Linear(2 * width, 2000)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        memory, state = self.encode(self.source(ids))
        state = state[0]
        loss = 0.0
        for time in range(labels.shape[1] - 1):
            weights = torch.bmm(memory, state.unsqueeze(2)).softmax(1)
            context = (weights * memory).sum(1)
            state = self.decode(torch.cat((self.target(labels[:, time]), context), 1), state)
            loss = loss + F.cross_entropy(
                self.out(torch.cat((state, context), 1)), labels[:, time + 1]
            )
        return loss / (labels.shape[1] - 1)


class Crf(nn.Module):
    """A BiLSTM tagger with a conditional random field: logsumexp over time."""

    def __init__(self, tags: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(3000, 100)
        self.rnn = nn.LSTM(100, 64, batch_first=True, bidirectional=True)
        self.emit = nn.Linear(128, tags)
        self.transition = nn.Parameter(torch.randn(tags, tags))

    def forward(self, ids: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        scores = self.emit(self.rnn(self.embed(ids))[0]).float()
        alpha = scores[:, 0]
        for time in range(1, ids.shape[1]):
            joined = alpha.unsqueeze(2) + self.transition + scores[:, time].unsqueeze(1)
            alpha = torch.logsumexp(joined, 1)
        gold = scores.gather(2, tags.unsqueeze(2)).squeeze(2).sum(1)
        gold = gold + self.transition[tags[:, :-1], tags[:, 1:]].sum(1)
        return (torch.logsumexp(alpha, 1) - gold).mean()


class ConvLstm(nn.Module):
    """A recurrent network of convolutions over frames."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.gates, self.width = nn.Conv2d(3 + width, 4 * width, 3, padding=1), width
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        n, length, _, height, width = frames.shape
        h = c = frames.new_zeros(n, self.width, height, width)
        for time in range(length):
            gates = self.gates(torch.cat((frames[:, time], h), 1))
            i, f, o, g = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


_case = partial(case, "recurrent", __name__, kind="recurrent")
_ids = "ids=35:int64:0..500"

CASES = (
    _case("lstm", "LanguageModel", _ids, loss="cross-entropy", batch_sizes=(8, 20)),
    _case(
        "gru", "LanguageModel", _ids, args={"cell": "GRU"}, loss="cross-entropy", batch_sizes=(8,)
    ),
    _case("rnn_tanh", "LastState", "60,40", batch_sizes=(16,)),
    _case("rnn_relu", "LastState", "60,40", args={"nonlinearity": "relu"}, precisions=("fp32",)),
    _case("bilstm", "Tagger", "50,64", batch_sizes=(8,)),
    _case("bigru_no_bias", "Tagger", "50,64", args={"cell": "GRU"}, batch_sizes=(8,)),
    _case("lstm_projected", "Tagger", "50,64", args={"proj_size": 48}, batch_sizes=(8,)),
    _case("lstm_bf16", "Tagger", "50,64", precisions=("bf16",), batch_sizes=(8,)),
    _case("packed_lstm", "Packed", "ids=40:int64:0..3000", batch_sizes=(6,)),
    _case(
        "packed_gru",
        "Packed",
        "ids=40:int64:0..3000",
        args={"cell": "GRU"},
        precisions=("fp32",),
        batch_sizes=(6,),
    ),
    _case("lstm_cells", "Cells", "ids=16:int64:0..500", batch_sizes=(16,)),
    _case("gru_cells", "Cells", "ids=16:int64:0..500", args={"cell": "GRUCell"}),
    _case(
        "rnn_cells", "Cells", "ids=16:int64:0..500", args={"cell": "RNNCell"}, precisions=("fp32",)
    ),
    _case("seq2seq", "Seq2Seq", "ids=20:int64:0..2000", "labels=12:int64:0..2000"),
    _case("crf", "Crf", "ids=20:int64:0..3000", "tags=20:int64:0..12"),
    _case("conv_lstm", "ConvLstm", "6,3,32,32", precisions=("fp32", "amp-bf16")),
    _case("lstm_inference", "LanguageModel", _ids, mode="infer", precisions=("fp32", "amp-fp16")),
)

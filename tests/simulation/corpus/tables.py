"""Recommenders and models of tables: many embeddings, small networks, large batches."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Dlrm(nn.Module):
    """Embedding tables and their pairwise interactions."""

    def __init__(self, tables: int = 13, width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(2000, width) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(13, 256), nn.ReLU(), nn.Linear(256, width))
        pairs = tables * (tables + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 512), nn.ReLU(), nn.Linear(512, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        d = self.bottom(dense)
        z = torch.stack([d] + [table(sparse[:, i]) for i, table in enumerate(self.tables)], 1)
        i, j = torch.tril_indices(z.shape[1], z.shape[1], -1, device=z.device)
        return self.top(torch.cat([d, (z @ z.transpose(1, 2))[:, i, j]], 1))


class Bags(nn.Module):
    """Embedding bags over sets of items."""

    def __init__(self, mode: str = "sum", sparse: bool = False) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20000, 64, mode=mode, sparse=sparse)
        self.user = nn.Embedding(5000, 64, sparse=sparse)

    def forward(self, items: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        return F.logsigmoid((self.bag(items) * self.user(user)).sum(-1))


class TwoTower(nn.Module):
    """Users and items, each the others' negatives: B x B scores."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(5000, width), nn.Embedding(20000, width)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, width)) for _ in range(2)
        )

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        u = F.normalize(self.towers[0](self.user(user)), dim=-1)
        v = F.normalize(self.towers[1](self.item(item)), dim=-1)
        return F.cross_entropy(u @ v.T / 0.05, torch.arange(len(u), device=u.device))


class DeepFm(nn.Module):
    """A factorisation machine beside a deep network, trained with binary cross-entropy."""

    def __init__(self, fields: int = 20, width: int = 16) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(50000, width), nn.Embedding(50000, 1)
        self.deep = nn.Sequential(
            *(nn.Linear(fields * width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(256, 1),
        )

    def forward(self, ids: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        cross = 0.5 * (x.sum(1).pow(2) - x.pow(2).sum(1)).sum(1, keepdim=True)
        logit = self.linear(ids).sum(1) + cross + self.deep(x.flatten(1))
        return F.binary_cross_entropy_with_logits(logit.squeeze(1), label)


class Interest(nn.Module):
    """Attention of a candidate over a history with a mask (DIN)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.item = nn.Embedding(10000, width, padding_idx=0)
        self.score = nn.Sequential(nn.Linear(4 * width, 64), nn.PReLU(), nn.Linear(64, 1))
        self.out = nn.Sequential(nn.Linear(2 * width, 64), nn.PReLU(64), nn.Linear(64, 1))

    def forward(self, history: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        h = self.item(history)
        c = self.item(candidate).unsqueeze(1).expand_as(h)
        score = self.score(torch.cat((h, c, h - c, h * c), -1)).squeeze(-1)
        score = score.masked_fill(history == 0, torch.finfo(score.dtype).min)
        pooled = torch.einsum("bl,bld->bd", score.softmax(-1), h)
        return torch.sigmoid(self.out(torch.cat((pooled, c[:, 0]), 1)))


class TableTransformer(nn.Module):
    """A token for every column (FT-Transformer)."""

    def __init__(self, columns: int = 24, width: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, width))
        self.bias = nn.Parameter(torch.randn(columns, width))
        self.token = nn.Parameter(torch.randn(width))
        layer = nn.TransformerEncoderLayer(width, 4, 128, batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(-1) * self.weight + self.bias
        x = torch.cat((self.token.expand(x.shape[0], 1, -1), x), 1)
        return self.out(F.relu(self.encode(x)[:, 0]))


def mlp() -> nn.Module:
    """A plain multi-layer perceptron."""
    return nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


class Residual(nn.Module):
    """Residual blocks with batch and layer normalisation and gated units."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.inp = nn.Linear(100, width)
        self.norms = nn.ModuleList((nn.BatchNorm1d(width), nn.LayerNorm(width)))
        self.gates = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.out = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for norm, gate in zip(self.norms, self.gates, strict=True):
            x = x + F.glu(gate(norm(x)), -1)
        return self.out(x)


_case = partial(case, "tables", __name__)

CASES = (
    _case("dlrm", "Dlrm", "dense=13", "sparse=13:int64:0..2000", batch_sizes=(256,)),
    _case(
        "embedding_bag",
        "Bags",
        "items=30:int64:0..20000",
        "user=:int64:0..5000",
        batch_sizes=(128,),
    ),
    _case(
        "embedding_bag_mean",
        "Bags",
        "items=30:int64:0..20000",
        "user=:int64:0..5000",
        args={"mode": "mean"},
        batch_sizes=(128,),
        precisions=("fp32",),
    ),
    _case(
        "embedding_bag_max",
        "Bags",
        "items=30:int64:0..20000",
        "user=:int64:0..5000",
        args={"mode": "max"},
        batch_sizes=(128,),
        precisions=("fp32",),
    ),
    _case(
        "sparse_embeddings",
        "Bags",
        "items=30:int64:0..20000",
        "user=:int64:0..5000",
        args={"sparse": True},
        optimizer="sparseadam",
        batch_sizes=(128,),
        precisions=("fp32",),
        branches_on_values=True,
    ),
    _case(
        "two_tower", "TwoTower", "user=:int64:0..5000", "item=:int64:0..20000", batch_sizes=(512,)
    ),
    _case("deep_fm", "DeepFm", "ids=20:int64:0..50000", "label=:float32", batch_sizes=(256,)),
    _case(
        "interest",
        "Interest",
        "history=50:int64:0..10000",
        "candidate=:int64:0..10000",
        batch_sizes=(64,),
    ),
    _case(
        "table_transformer",
        "TableTransformer",
        "24",
        loss="mse",
        batch_sizes=(64,),
        kind="attention",
    ),
    _case("mlp", "mlp", "784", loss="cross-entropy", batch_sizes=(64, 1000)),
    _case(
        "table_residual",
        "Residual",
        "100",
        loss="mse",
        batch_sizes=(300,),
        precisions=("fp32", "tf32", "bf16", "amp-fp16"),
    ),
)

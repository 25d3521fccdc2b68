"""Graphs and point clouds: gathers, scatters, sparse products."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


def random_graphs(batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Graphs of 200 nodes and 1600 edges, joined into one."""
    nodes = torch.randn(batch_size * 200, 64, device=device)
    first = torch.arange(batch_size, device=device).repeat_interleave(1600) * 200
    edges = torch.randint(0, 200, (2, batch_size * 1600), device=device) + first
    return nodes, edges


class Gcn(nn.Module):
    """Sums over neighbours by `index_add`, normalised by degree."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((64, 128), (128, 128), (128, 16)))

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        degree = torch.zeros(x.shape[0], device=x.device)
        degree.scatter_add_(0, target, torch.ones_like(target, dtype=degree.dtype))
        norm = degree.clamp(min=1).rsqrt()
        for index, layer in enumerate(self.layers):
            message = layer(x)[source] * (norm[source] * norm[target]).unsqueeze(1)
            x = torch.zeros(x.shape[0], message.shape[1], device=x.device, dtype=message.dtype)
            x = x.index_add(0, target, message)
            x = F.relu(x) if index < 2 else x
        return x


class Gat(nn.Module):
    """Attention over edges: a softmax by scatter."""

    def __init__(self, heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.heads, self.project = heads, nn.Linear(64, heads * width, bias=False)
        self.score = nn.Parameter(torch.randn(heads, 2 * width))
        self.out = nn.Linear(heads * width, 8)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        h = self.project(x).view(x.shape[0], self.heads, -1)
        pair = torch.cat((h[source], h[target]), -1)
        score = F.leaky_relu((pair * self.score).sum(-1), 0.2)
        index = target.unsqueeze(1).expand_as(score)
        largest = score.new_full((x.shape[0], self.heads), float("-inf"))
        largest = largest.scatter_reduce(0, index, score.detach(), "amax")
        weight = (score - largest[target]).exp()
        total = torch.zeros_like(largest).scatter_add(0, index, weight)
        weight = weight / total[target].clamp(min=1e-9)
        y = torch.zeros_like(h, dtype=weight.dtype)
        y = y.index_add(0, target, h[source].to(weight.dtype) * weight.unsqueeze(-1))
        return self.out(F.elu(y.flatten(1)))


class MessagePassing(nn.Module):
    """An MLP for every edge, a GRU cell for every node, a sum for every graph."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2 * width, 128), nn.ReLU(), nn.Linear(128, width))
        self.node, self.out = nn.GRUCell(width, width), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            message = self.edge(torch.cat((x[edges[0]], x[edges[1]]), 1))
            total = torch.zeros(x.shape[0], message.shape[1], device=x.device, dtype=message.dtype)
            total.index_add_(0, edges[1], message)
            x = self.node(total, x)
        return self.out(x.view(-1, 200, x.shape[1]).sum(1))


class DenseGraph(nn.Module):
    """A product with an adjacency matrix for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 128), nn.Linear(128, 16)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        adjacency = adjacency.softmax(-1)
        x = F.relu(torch.bmm(adjacency, self.first(x)))
        return torch.baddbmm(self.second(x), adjacency, self.second(x)).amax(1)


class PointNet(nn.Module):
    """Neighbours by distance (`cdist`, `topk`), gathered, and pooled over points (DGCNN)."""

    def __init__(self, neighbours: int = 16) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.edge = nn.Sequential(
            nn.Conv2d(6, 64, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)
        )
        self.point = nn.Sequential(
            nn.Conv1d(64, 256, 1), nn.BatchNorm1d(256), nn.ReLU(), nn.AdaptiveMaxPool1d(1)
        )
        self.out = nn.Linear(256, 40)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(points, points)
        nearest = distance.topk(self.neighbours, largest=False).indices
        n, count, _ = points.shape
        first = torch.arange(n, device=points.device).view(-1, 1, 1) * count
        near = points.reshape(n * count, -1)[(nearest + first).view(-1)]
        near = near.view(n, count, self.neighbours, -1)
        centre = points.unsqueeze(2).expand_as(near)
        edges = torch.cat((near - centre, centre), 3).permute(0, 3, 1, 2).contiguous()
        return self.out(self.point(self.edge(edges).max(-1).values).flatten(1))


_case = partial(case, "graphs", __name__)
_graphs = ":random_graphs"

CASES = (
    _case("gcn", "Gcn", batch_fn=_graphs),
    _case("gat", "Gat", batch_fn=_graphs),
    _case("message_passing", "MessagePassing", batch_fn=_graphs),
    _case("dense_graph", "DenseGraph", "x=100,32", "adjacency=100,100", batch_sizes=(8,)),
    _case(
        "point_cloud", "PointNet", "512,3", loss="cross-entropy", precisions=("fp32", "amp-bf16")
    ),
)

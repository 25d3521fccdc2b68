"""Models with shapes that depend on values, for the tests of steps with values."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class EverySecond(nn.Module):
    """Selects half of the positions, by a mask that is computed from activations."""

    def __init__(self):
        super().__init__()
        self.layer, self.selected = nn.Linear(8, 8), nn.Linear(8, 24)

    def forward(self, x):
        h = self.layer(x)
        position = torch.arange(x.shape[1], device=x.device, dtype=h.dtype)
        mask = (h[..., 0] * 0 + position) % 2 == 0
        out = h.new_zeros(*h.shape[:2], 24)
        out[mask] = self.selected(h[mask])
        return out


class TwoMasks(nn.Module):
    """Assigns by a mask that grows with the batch, and by one that does not, and indexes both backward."""

    def __init__(self):
        super().__init__()
        self.layer, self.many, self.few = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.layer(x)
        out = torch.zeros_like(h)
        many = h[..., 0] > 0
        out[many] = self.many(h[many])
        few = h[..., 0].flatten().exp().cumsum(0) < 30
        flat = out.flatten(0, 1).clone()
        flat[few] = self.few(h.flatten(0, 1)[few])
        return flat.view_as(h)


class Pairs(nn.Module):
    """Compares each sample with every other one, as contrastive learners do; lists them if asked to."""

    def __init__(self, reads_counts=False):
        super().__init__()
        self.layer, self.reads_counts = nn.Linear(8, 8), reads_counts

    def forward(self, x):
        h = self.layer(x)
        label = h[:, 0] * 0 + torch.arange(len(h), device=h.device)
        others = label[:, None] != label
        if self.reads_counts:
            return torch.zeros(others.sum().item(), device=h.device) + h.sum()
        return (h @ h.T)[others].view(len(h), -1)


class Experts(nn.Module):
    """Routes each token to two experts, one after another, or by counts that are read."""

    def __init__(self, reads_counts=False):
        super().__init__()
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 127), nn.GELU(), nn.Linear(127, 16)) for _ in range(4)
        )
        self.reads_counts = reads_counts

    def forward(self, x):
        tokens = x.reshape(-1, 16)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2)
        out = torch.zeros_like(tokens)
        if self.reads_counts:
            order = chosen.flatten().argsort()
            counts = torch.bincount(chosen.flatten(), minlength=4).tolist()
            rows = order // 2
            parts = [
                expert(part)
                for expert, part in zip(self.experts, tokens[rows].split(counts), strict=True)
            ]
            out = out.index_add(0, rows, torch.cat(parts) * weights.flatten()[order, None])
        else:
            for number, expert in enumerate(self.experts):
                rows, slot = torch.where(chosen == number)
                if rows.numel():
                    out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, slot, None])
        return out.view_as(x)


class Checkpointed(nn.Module):
    """Runs experts again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Experts() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        return x


class PerSample(nn.Module):
    """Selects the best of each sample, one after another."""

    def __init__(self):
        super().__init__()
        self.score, self.head = nn.Linear(8, 1), nn.Linear(8, 32)

    def forward(self, x):
        scores = self.score(x)[..., 0]
        threshold = scores.topk(3, dim=1).values[:, -1:]
        return torch.stack(
            [self.head(h[keep]) for h, keep in zip(x, scores >= threshold, strict=True)]
        )


_LIBRARY = torch.library.Library("bsfind_value_tests", "DEF")
_LIBRARY.define("only_on_cuda(Tensor x) -> Tensor")
_LIBRARY.impl("only_on_cuda", torch.empty_like, "Meta")


class OnlyOnCuda(nn.Module):
    """Selects by what a kernel computes that the CPU does not have."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        h = self.layer(x)
        mask = torch.ops.bsfind_value_tests.only_on_cuda(h.detach()) > 0
        return F.gelu(h[mask])


class Permuted(nn.Module):
    """Selects by a table whose rows a list of Python's numbers reorders."""

    def __init__(self):
        super().__init__()
        self.layer, self.selected = nn.Linear(8, 8), nn.Linear(8, 24)

    def forward(self, x):
        h = self.layer(x)
        table = torch.tensor([0.0, 1.0, 1.0, 1.0], device=x.device)[[3, 0, 2, 0]]
        return self.selected(h[..., :4][h[..., :4] * 0 + table > 0.5].view(-1, 2).repeat(1, 4))

"""Models that speak of CUDA themselves, and models whose course small tensors decide."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class HardCoded(nn.Module):
    """`.cuda()`, `device="cuda"`, `torch.cuda.*` inside the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(128, 128)
        self.table = torch.randn(50, 128)  # no buffer: moved by hand

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_cuda
        assert x.device.type == "cuda"
        position = torch.arange(x.shape[0], device="cuda") % 50
        h = self.net(x) + self.table.cuda()[position]
        noise = torch.cuda.FloatTensor(h.shape).normal_()
        if torch.cuda.is_available():
            h = h + 0.1 * noise
        mask = torch.ones(h.shape[0], 1).to(x.device, non_blocking=True)
        return h * mask.to(h)


class BuiltOnGpu(nn.Module):
    """A constructor that puts its parts on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.first = nn.Linear(128, 512).cuda()
        self.second = nn.Linear(512, 64, device="cuda")
        self.scale = nn.Parameter(torch.ones(64, device=self.device))
        self.bias = torch.zeros(64).to(self.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x))) * self.scale + self.bias


class MovedLate(nn.Module):
    """A part that is made, and moved, in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = nn.Linear(64, 256), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.net(x)
        if self.scale is None:
            self.scale = torch.linspace(0, 1, h.shape[-1]).to(h.device)
            self.extra = nn.LayerNorm(h.shape[-1]).to(h.device)
        return self.extra(h) * self.scale


class LazyLayers(nn.Module):
    """Layers that learn their sizes from the first batch; called once to have any."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.LazyConv2d(32, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten()),
            nn.LazyLinear(10),
        )
        self.net(torch.zeros(2, 3, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class MaskSkipping(nn.Module):
    """Drops a mask that masks nothing, as libraries of transformers do (`mask.all()`)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(1000, width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask: torch.Tensor | None = torch.ones_like(ids, dtype=torch.bool)
        q, k, v = self.qkv(self.embed(ids)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        if bool(mask.all()):
            mask = None
        bias = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).flatten(2).mean(1))


class LongestSequence(nn.Module):
    """Cuts its input to the longest length in the batch (`lengths.max().item()`)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(1000, width), nn.Linear(width, width)

    def longest(self, lengths: torch.Tensor) -> int:
        return int(lengths.max().item())

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        longest = self.longest(lengths)
        h = self.net(self.embed(ids[:, :longest]))
        steps = torch.arange(longest, device=ids.device)
        mask = steps[None, :] < lengths[:, None]
        return (h * mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1).clamp(min=1)


class LongestWrittenOut(LongestSequence):
    """The same for the lengths of `sentences`."""

    def longest(self, lengths: torch.Tensor) -> int:
        lengths.max()
        return 64


def sentences(batch_size: int, device: torch.device) -> dict[str, Any]:
    """Token ids, and lengths that are constants."""
    ids = torch.randint(0, 1000, (batch_size, 80), device=device)
    lengths = torch.arange(batch_size, device=device) * 5 + 20
    return {"ids": ids, "lengths": lengths.clamp(max=64)}


class Counted(nn.Module):
    """A counter in a buffer decides what happens: a warm-up, `if step % 2`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 512), nn.Linear(64, 512)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step += 1
        h = self.first(x)
        if self.step.item() > 1:
            h = h + self.second(x)
        return h


class Cropped(nn.Module):
    """A random number of the host's decides a size, with a fixed seed."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 64, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        size = int(torch.randint(40, 64, (1,), generator=generator))
        return F.interpolate(self.net(x[..., :size, :size]), (64, 64), mode="bilinear")


class Checked(nn.Module):
    """Looks for values that are not finite, and branches on the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(128, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.net(x)
        if not torch.isfinite(h).all():
            h = torch.nan_to_num(h)
        return h.relu().mean()


class Selected(nn.Module):
    """Positions of a mask that is constant: `nonzero` of known values."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[1], device=x.device)
        kept = (steps % 3 == 0).nonzero().squeeze(1)
        return self.net(x[:, kept])


_case = partial(case, "gpu_code", __name__)

CASES = (
    _case("hard_coded_cuda", "HardCoded", "128", batch_sizes=(64,)),
    _case("built_on_gpu", "BuiltOnGpu", "128", batch_sizes=(64,), builds_on_gpu=True),
    _case("moved_late", "MovedLate", "64", batch_sizes=(64,), precisions=("fp32", "amp-fp16")),
    _case("lazy_layers", "LazyLayers", "3,32,32", kind="convolutional"),
    _case(
        "mask_skipping",
        "MaskSkipping",
        "ids=60:int64:0..1000",
        kind="attention",
        branches_on_values=True,
    ),
    _case(
        "longest_sequence",
        "LongestSequence",
        written_out="LongestWrittenOut",
        batch_fn=":sentences",
        batch_sizes=(16,),
        branches_on_values=True,
    ),
    _case(
        "counted", "Counted", "64", batch_sizes=(64,), branches_on_values=True, precisions=("fp32",)
    ),
    _case(
        "cropped",
        "Cropped",
        "3,64,64",
        loss="mean",
        precisions=("fp32",),
        kind="convolutional",
    ),
    _case("checked", "Checked", "128", batch_sizes=(64,), branches_on_values=True),
    _case(
        "selected",
        "Selected",
        "90,64",
        loss="mean",
        branches_on_values=True,
        precisions=("fp32",),
    ),
)

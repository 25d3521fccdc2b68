"""Models whose failures, caches and libraries are not all their own fault."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

CACHE: dict[Any, Tensor] = {}


def mask_of(x: Tensor) -> Tensor:
    return torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device).triu(1)


@functools.lru_cache(maxsize=8)
def cached_mask(length: int, device: torch.device) -> Tensor:
    return torch.full((length, length), float("-inf"), device=device).triu(1)


class Masked(nn.Module):
    """A mask that is made anew in each step; subclasses keep it somewhere."""

    kept: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def mask(self, x: Tensor) -> Tensor:
        return mask_of(x)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, attn_mask=self.mask(x), need_weights=False)[0]
        return out


class MaskOnModel(Masked):
    def mask(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = mask_of(x)
        return self.kept


class MaskOnClass(Masked):
    def mask(self, x: Tensor) -> Tensor:
        if MaskOnClass.kept is None:
            MaskOnClass.kept = mask_of(x)
        return MaskOnClass.kept


class MaskOfFunction(Masked):
    def mask(self, x: Tensor) -> Tensor:
        return cached_mask(x.shape[1], x.device)


class MaskOfBatch(Masked):
    """One for each batch size, and a lookup table whose values are read."""

    def mask(self, x: Tensor) -> Tensor:
        if "table" not in CACHE:
            CACHE["table"] = torch.tensor([3, 1, 2], device=x.device)
        if CACHE["table"].max().item() != 3:
            raise ValueError("the table has lost its values")
        if x.shape not in CACHE:
            CACHE[x.shape] = mask_of(x).expand(2 * x.shape[0], -1, -1).contiguous()
        return CACHE[x.shape]


class WrongShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 20), nn.Linear(21, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


class WrongAttention(nn.Module):
    """Refused in the middle of one of bsfind's own kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(-1, 1, 4, 5)
        return nn.functional.scaled_dot_product_attention(y, y[..., :3], y)


class ChangedInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).exp()
        z = y * 1
        y += 1
        return z + y


class Endless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward(self.first(x))


class Grouped(nn.Module):
    """A product for each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.experts = nn.Parameter(torch.randn(4, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).repeat(8, 1)
        ends = torch.arange(1, 5, dtype=torch.int32, device=x.device) * (y.shape[0] // 4)
        return torch._grouped_mm(y, self.experts, ends)  # here


class AsksLibraries(nn.Module):
    """What libraries ask of a CUDA build, at import and at first use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        native: Any = torch._C
        assert native._cuda_getCurrentRawStream(0) == 0
        assert native._cuda_getDevice() == 0
        assert not native._cuda_isCurrentStreamCapturing()
        assert isinstance(native._CudaDeviceProperties, type)
        assert not hasattr(native, "nothing_of_this_name")
        assert tuple(map(int, str(torch.version.cuda).split("."))) >= (12, 4)
        assert (torch.backends.cudnn.version() or 0) >= 90000
        assert torch.backends.cuda.is_built()
        assert torch.cuda.nccl.version() >= (2, 20)
        assert torch.cuda.memory.max_memory_allocated() >= torch.cuda.memory.memory_allocated() > 0
        assert not isinstance(x, torch.cuda.CUDAGraph)
        assert torch.cuda.current_stream().cuda_stream == 0
        torch.cuda.memory._record_memory_history()
        with torch.cuda.nvtx.range("first"):
            return self.first(x)  # type: ignore[no-any-return]


class Captures(AsksLibraries):
    def forward(self, x: Tensor) -> Tensor:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):  # captured here
            return self.first(x)  # type: ignore[no-any-return]


class TakesStream(AsksLibraries):
    def forward(self, x: Tensor) -> Tensor:
        native: Any = torch._C
        native._cuda_beginAllocateCurrentStreamToPool(0, 1)  # pool here
        return self.first(x)  # type: ignore[no-any-return]


class Counts(nn.Module):
    """A confusion matrix, as torchmetrics updates it in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.first(x)
        pairs = scores.argmax(1) * 10 + scores.argmin(1)
        matrix = torch.bincount(pairs, minlength=100).reshape(10, 10)
        return scores * matrix.float().diagonal()


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def parallel() -> nn.Module:
    return nn.DataParallel(convolutions())


def parallel_inside() -> nn.Module:
    first, *rest = convolutions()
    model = nn.Sequential(nn.DataParallel(first), *rest)
    assert "0.module.weight" in model.state_dict()
    return model


class ParallelFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = convolutions()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.parallel.data_parallel(self.inner, x)
        return out


def step_inside(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model.module(x).mean()
    return out


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out: Tensor = self.layer(packed)[1][0]
        return out


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x).sum((1, 2)) + y  # type: ignore[no-any-return]


def lengths_on_cpu(batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(batch_size, 5, 8, device=device), torch.full((batch_size,), 5)


def all_on_cpu(batch_size: int, _device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(batch_size, 5, 8), torch.full((batch_size,), 5)

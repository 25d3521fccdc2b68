"""Context memory: what a process holds outside PyTorch's allocator, with lazy and with eager loading.

After each use of a library, the memory of the device that is neither free nor reserved by the allocator.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.steps import Options, Row, Step
from tests.simulation.forks import in_fork
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bsfind.devices import nvml
from bsfind.simulation.gpus.context_memory import context_bytes
from bsfind.units import MIB

__all__ = ["STEP", "Outside"]


_SETTLES_S = 3.0
_PAUSE_S = 0.2


def _settled_free_bytes(card: Card) -> int | None:
    """Return the free memory once it stays: that of a process that has ended may come back later."""
    free = nvml.free_bytes(card.uuid, card.total_bytes)
    deadline = time.monotonic() + _SETTLES_S
    while time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
        before, free = free, nvml.free_bytes(card.uuid, card.total_bytes)
        if before == free:
            break
    return free


class Outside:
    """Memory of this process outside PyTorch's allocator, in relation to when this was made.

    Must be made before the CUDA context. Other processes that take or free memory meanwhile change it.

    Args:
        card: the GPU.
    """

    def __init__(self, card: Card) -> None:
        self._card = card
        self._free_before = _settled_free_bytes(card)

    def now(self) -> dict[str, int | None]:
        """Return bytes: by NVML and by CUDA (None without NVML), and what the allocator has reserved."""
        torch.cuda.synchronize()
        reserved = torch.cuda.memory_reserved()
        free_by_nvml = nvml.free_bytes(self._card.uuid, self._card.total_bytes)
        free_by_cuda = torch.cuda.mem_get_info()[0]
        before = self._free_before
        return {
            "outside_bytes": None
            if before is None or free_by_nvml is None
            else before - free_by_nvml - reserved,
            "outside_by_cuda_bytes": None if before is None else before - free_by_cuda - reserved,
            "used_by_cuda_bytes": self._card.total_bytes - free_by_cuda,
            "reserved_bytes": reserved,
        }


def _matmul(dtype: torch.dtype) -> None:
    x = torch.ones(512, 512, device="cuda", dtype=dtype, requires_grad=True)
    (x @ x).sum().backward()


def _convolution(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1).to("cuda", dtype)
    layer(torch.ones(8, 64, 56, 56, device="cuda", dtype=dtype)).sum().backward()


def _attention(dtype: torch.dtype) -> None:
    x = torch.ones(2, 4, 256, 64, device="cuda", dtype=dtype, requires_grad=True)
    F.scaled_dot_product_attention(x, x, x).sum().backward()


def _batch_norm() -> None:
    layer = nn.BatchNorm2d(64).cuda()
    layer(torch.ones(8, 64, 56, 56, device="cuda")).sum().backward()


def _recurrent() -> None:
    layer = nn.LSTM(256, 256, 2).cuda()
    layer(torch.ones(16, 8, 256, device="cuda"))[0].sum().backward()


def _optimizer() -> None:
    layer = nn.Linear(256, 256).cuda()
    optimizer = torch.optim.AdamW(layer.parameters())
    F.cross_entropy(
        layer(torch.ones(8, 256, device="cuda")), torch.zeros(8, dtype=torch.long, device="cuda")
    ).backward()
    optimizer.step()


_USES: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("context", lambda: torch.zeros((), device="cuda")),
    ("cuBLAS float32", lambda: _matmul(torch.float32)),
    ("cuBLAS float16", lambda: _matmul(torch.float16)),
    ("cuBLAS bfloat16", lambda: _matmul(torch.bfloat16)),
    ("cuDNN convolution float32", lambda: _convolution(torch.float32)),
    ("cuDNN convolution float16", lambda: _convolution(torch.float16)),
    ("batch norm", _batch_norm),
    ("attention float16", lambda: _attention(torch.float16)),
    ("attention float32", lambda: _attention(torch.float32)),
    ("LSTM", _recurrent),
    ("AdamW", _optimizer),
)


_SHORT_USES = ("context", "cuBLAS float32", "cuDNN convolution float32", "LSTM")


def _measured(card: Card, loading: str, options: Options) -> dict[str, Any]:
    os.environ["CUDA_MODULE_LOADING"] = loading
    outside = Outside(card)
    stages = []
    for name, use in _USES:
        if options.is_short and name not in _SHORT_USES:
            continue
        stage: dict[str, Any] = {"after": name}
        try:
            use()
        except RuntimeError as error:
            stage["error"] = str(error)[:300]
        stages.append(stage | outside.now())
    return {"stages": stages}


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each stage of each way to load modules."""
    for loading in ("LAZY", "EAGER"):
        predicted = context_bytes(card.catalogue_entry, lazy=loading == "LAZY")
        answer = in_fork(lambda loading=loading: _measured(card, loading, options))  # type: ignore[misc]
        if answer.get("status") == "error":
            yield {"loading": loading, "error": answer["message"]}
            continue
        for stage in answer["stages"]:
            yield {"loading": loading, **stage, "predicted_bytes": predicted}


def summarise(rows: list[Row]) -> Row:
    """Return the memory after the first and the last use, against what bsfind assumes for a training."""
    figures: Row = {}
    for loading in ("LAZY", "EAGER"):
        known = [row for row in rows if row["loading"] == loading and "outside_bytes" in row]
        if known and known[-1]["outside_bytes"] is not None:
            first, last = known[0]["outside_bytes"], known[-1]["outside_bytes"]
            figures[f"{loading.lower()}: context alone, MiB"] = round(first / MIB)
            figures[f"{loading.lower()}: after all libraries, MiB"] = round(last / MIB)
            figures[f"{loading.lower()}: predicted, MiB"] = round(known[0]["predicted_bytes"] / MIB)
    return figures


STEP = Step(
    name="context",
    title="Context memory",
    measure=measure,
    summarise=summarise,
    columns=(
        *("loading", "after", "outside_bytes", "outside_by_cuda_bytes", "reserved_bytes"),
        "predicted_bytes",
    ),
    most_s=60,
)

"""Memory outside the pool: in the range of what people have read on real cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsfind.simulation.gpus.catalogue import find_gpu, known_gpus
from bsfind.simulation.gpus.context_memory import context_bytes, loads_lazily
from bsfind.units import MIB


@pytest.mark.parametrize(
    ("gpu", "low", "high"),
    [
        # Readings in MiB, of processes that may have loaded little: the lowest is no lower bound.
        ("t4", 128, 300),
        ("rtx-3090", 297, 554),
        ("rtx-4090", 297, 554),
        ("rtx-5090", 307, 554),
        ("a100-sxm4-40gb", 422, 502),
        ("rtx-6000-ada", 317, 554),
        ("h100-sxm5-80gb", 400, 616),
    ],
)
def test_lazily_loaded(gpu: str, low: int, high: int) -> None:
    assert low * MIB <= context_bytes(find_gpu(gpu)) <= high * MIB


def test_eagerly_loaded() -> None:
    size = context_bytes(find_gpu("rtx-3090"), lazy=False)
    assert 1500 * MIB <= size <= 1700 * MIB


def test_the_page_has_what_is_modelled() -> None:
    page = Path(__file__).parents[2] / "docs" / "context-memory.md"
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[1].partition(" ")[0] in ("lazy", "eager")]
    assert len(rows) == 7
    for cards, loading, _, modelled in rows:
        found = [
            context_bytes(find_gpu(card), lazy=loading.startswith("lazy")) // MIB
            for card in cards.split(", ")
        ]
        assert [int(size) for size in modelled.split(", ")] == found


def test_more_threads_hold_more() -> None:
    small, large = find_gpu("rtx-3060"), find_gpu("rtx-4090")
    assert context_bytes(small) < context_bytes(large)


def test_every_known_cuda_gpu_has_a_sensible_context() -> None:
    for gpu in known_gpus():
        if gpu.capability is None:
            continue
        size = context_bytes(gpu)
        assert size % (2 * MIB) == 0, gpu.key
        assert 100 * MIB < size < 1024 * MIB, gpu.key


@pytest.mark.parametrize(
    ("variable", "cuda", "lazy"),
    [
        (None, "12.8", True),
        (None, None, True),
        (None, "11.7", True),
        (None, "11.6", False),
        (None, "10.2", False),
        ("LAZY", "13.0", True),
        ("EAGER", "13.0", False),
        ("eager", None, False),
        ("LAZY", "11.3", False),
    ],
)
def test_when_kernels_are_loaded(variable: str | None, cuda: str | None, lazy: bool) -> None:
    environment = {} if variable is None else {"CUDA_MODULE_LOADING": variable}
    assert loads_lazily(environment, cuda) == lazy

"""The steps in their order: the cheap and valuable first, what takes all the time that there is last."""

from __future__ import annotations

from benchmarks.real_gpu import (
    attention,
    benchmark_mode,
    context,
    convolutions,
    gpu_tests,
    layers,
    nccl,
    recurrent,
    searches,
    traces,
)

__all__ = ["STEPS"]

STEPS = (
    context.STEP,
    nccl.STEP,
    attention.STEP,
    recurrent.STEP,
    layers.STEP,
    convolutions.STEP,
    traces.STEP,
    benchmark_mode.STEP,
    searches.STEP,
    gpu_tests.STEP,
)

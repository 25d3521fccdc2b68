"""`torch.backends.cudnn.benchmark`: what the first and the second call of a convolution take, on and off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

import torch
from benchmarks.convolution_samples import Sample, problems_of, workspace_of
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.convolutions import layers
from benchmarks.real_gpu.steps import Options, Row, Step
from tests.simulation.forks import in_fork

from bsfind.simulation.kernels.convolution_workspace import workspace_bytes
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem
from bsfind.units import MIB

__all__ = ["STEP"]

_LAYERS, _SHORT_LAYERS = 16, 1
_MOST_ELEMENTS = 1 << 26


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each pass of some layers: bytes of two calls, with the setting off and on.

    Each mode has a process of its own: PyTorch keeps the plan that it chose first for a shape
    (`benchmark_cache` of aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.6-2.13).
    """
    count = _SHORT_LAYERS if options.is_short else _LAYERS
    cases = islice(layers(2, _MOST_ELEMENTS, is_short=options.is_short), count)
    problems = [problem for case in cases for problem in problems_of(case)]
    off = in_fork(lambda: {"calls": list(_measured(problems, benchmark=False))})
    if off.get("status") == "error":
        raise RuntimeError(off["message"])
    timing = dataclasses.replace(card.spec, cudnn_benchmark=True)
    for problem, without, with_it in zip(
        problems, off["calls"], _measured(problems, benchmark=True), strict=True
    ):
        yield {
            "sample": Sample("", problem, 0).row[:-1],
            "off": without,
            "on": with_it,
            "predicted_off": workspace_bytes(problem, card.spec),
            "predicted_on": workspace_bytes(problem, timing),
        }


def _measured(
    problems: list[ConvolutionProblem], *, benchmark: bool
) -> Iterator[list[int | None] | None]:
    """Yield for each pass the bytes of the first and the second call; None where cuDNN does not run it."""
    torch.backends.cudnn.benchmark = benchmark
    torch.cuda.init()
    small = torch.ones(4, 4, device="cuda")
    small @ small  # so that cuBLAS has its workspace
    for problem in problems:
        try:
            yield [workspace_of(problem), workspace_of(problem)]
        except RuntimeError:  # no engine of cuDNN can run it
            yield None


def summarise(rows: list[Row]) -> Row:
    """Return how much larger the workspaces of the first call are with the setting."""
    both = [row for row in rows if row.get("on") and row.get("off") and row["on"][0] is not None]
    if not both:
        return {}
    figures: Row = {"passes": len(both)}
    for name, index in (("first", 0), ("second", 1)):
        figures[f"{name} call, off: sum of workspaces, MiB"] = _mib(
            row["off"][index] for row in both
        )
        figures[f"{name} call, on: sum of workspaces, MiB"] = _mib(row["on"][index] for row in both)
        figures[f"{name} call, on: largest, MiB"] = round(
            max(row["on"][index] for row in both) / MIB
        )
    for mode in ("off", "on"):
        sizes = (row[f"predicted_{mode}"] for row in both)
        figures[f"second call, {mode}: predicted sum, MiB"] = _mib(sizes)
    return figures


def _mib(sizes: Iterator[int]) -> int:
    return round(sum(sizes) / MIB)


STEP = Step(
    name="benchmark_mode",
    title="`torch.backends.cudnn.benchmark`",
    measure=measure,
    summarise=summarise,
    most_s=25,
)

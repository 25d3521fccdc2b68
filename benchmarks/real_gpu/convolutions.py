"""Workspaces of convolutions: what the allocator hands out beside the result, against what bsfind says.

A row has the fields of a line of the samples (`Sample.row` of convolution_samples.py), what bsfind says on
this machine (where it can, it asks cuDNN), and what its fitted trees say, which serve machines without cuDNN.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import torch
from benchmarks.convolution_layers import Case, drawn_cases, read_layers
from benchmarks.convolution_samples import measured
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.steps import Options, Row, Step

from bsfind.simulation.kernels.convolution_workspace import workspace_bytes, workspaces_source
from bsfind.simulation.kernels.cudnn_workspace import fitted_workspace_bytes
from bsfind.units import MIB

__all__ = ["STEP", "is_right", "layers"]

_LAYERS, _SHORT_LAYERS = 200, 4
_MOST_ELEMENTS, _SHORT_ELEMENTS = 1 << 28, 1 << 22
"""Of x, y and some of the weights together: larger layers would take most of the time."""


def layers(seed: int, most_elements: int, *, is_short: bool) -> Iterator[Case]:
    """Yield layers of published networks, and layers like them, without end.

    Args:
        seed: the same one gives the same layers.
        most_elements: of x, y and some of the weights together.
        is_short: only float32, for which cuDNN compiles nothing on the fake GPU, and small layers.
    """
    known = [layer for some in read_layers().values() for layer in some]
    for case in drawn_cases(random.Random(seed), known):
        if is_short and (
            case.dtype != "float32" or case.batch * case.layer.elements > _SHORT_ELEMENTS
        ):
            continue
        if case.batch * case.layer.elements <= most_elements:
            yield case


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each pass of each layer that PyTorch runs in cuDNN."""
    torch.cuda.init()
    small = torch.ones(4, 4, device="cuda")
    small @ small  # so that cuBLAS has its workspace
    count = _SHORT_LAYERS if options.is_short else _LAYERS
    cases = islice(layers(1, _MOST_ELEMENTS, is_short=options.is_short), count)
    for sample in measured(card.name, cases):
        yield {
            "sample": sample.row,
            "predicted": workspace_bytes(sample.problem, card.spec),
            "by_trees": fitted_workspace_bytes(sample.problem, card.spec),
        }
    yield {"predicted by": workspaces_source(card.spec)}


def is_right(measured_bytes: int, predicted_bytes: int) -> bool:
    """Tell whether a prediction is within 1 % or 1 MiB, as the tests of the rules count."""
    return abs(predicted_bytes - measured_bytes) <= max(measured_bytes // 100, MIB)


def summarise(rows: list[Row]) -> Row:
    """Return the share of workspaces that are right, by pass and dtype, and how far off the others are."""
    figures: Row = {}
    for row in rows:
        figures |= {name: value for name, value in row.items() if name == "predicted by"}
    known = [row for row in rows if "sample" in row]
    for source, key in (("predicted", "predicted"), ("by the trees", "by_trees")):
        groups: dict[str, list[bool]] = defaultdict(list)
        over = under = total = 0
        for row in known:
            kind, dtype, *_, truth = row["sample"]
            for group in ("all", kind, dtype):
                groups[group].append(is_right(truth, row[key]))
            over += max(0, row[key] - truth)
            under += max(0, truth - row[key])
            total += truth
        for group, found in groups.items():
            figures[f"{source}, {group}: within 1 % or 1 MiB"] = f"{sum(found)} of {len(found)}"
        if total:
            figures[f"{source}: too much, of all bytes"] = f"{over / total:.1%}"
            figures[f"{source}: too little, of all bytes"] = f"{under / total:.1%}"
    return figures


STEP = Step(
    name="convolutions",
    title="Workspaces of convolutions",
    measure=measure,
    summarise=summarise,
    most_s=45,
)

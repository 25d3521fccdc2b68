"""Workspaces and reserves of cuDNN's recurrent layers, and the random states of its dropout.

The shapes vary one size at a time, so that formulas can be fitted to the answers.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.allocations import scratch_bytes
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.steps import Options, Row, Step

from bsfind.simulation.kernels.recurrent import (
    MODES,
    RecurrentShape,
    cudnn_dropout_state_bytes,
    temporary_bytes,
)

__all__ = ["STEP"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_BASE: dict[str, Any] = {
    "mode": "lstm", "input_size": 256, "hidden_size": 256, "proj_size": 0, "layers": 2, "directions": 1,
    "length": 32, "batch": 16,
}  # fmt: skip

_CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"batch": n} for n in (1, 2, 8, 15, 33, 64, 100, 256)),
    *({"length": n} for n in (1, 2, 16, 35, 100, 333)),
    *({"hidden_size": n} for n in (8, 64, 100, 128, 192, 384, 512, 650, 1024)),
    *({"input_size": n} for n in (16, 64, 100, 512, 1024)),
    *({"layers": n} for n in (1, 3, 4, 6)),
    *({"directions": 2, "layers": n} for n in (1, 2, 3)),
    {"directions": 2, "hidden_size": 512, "batch": 64},
    {"hidden_size": 650, "input_size": 650, "length": 35, "batch": 20},
    {"hidden_size": 1024, "layers": 1, "batch": 128, "length": 64},
    {"hidden_size": 512, "layers": 4, "batch": 128, "length": 100},
)


def _shapes(is_short: bool) -> Iterator[tuple[str, RecurrentShape]]:
    """Yield dtype names and shapes, LSTM in float32 first."""
    for dtype in _DTYPES:
        for mode in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            changes = _CHANGES[:3] if is_short else _CHANGES
            if mode.startswith("rnn") or dtype == "bfloat16":
                changes = changes[::4]
            for change in changes:
                yield dtype, _shape(dtype, mode=mode, **change)
            if mode == "lstm":
                yield dtype, _shape(dtype, mode=mode, proj_size=64)
            yield dtype, _shape(dtype, mode=mode, is_training=False)


def _shape(dtype: str, **changes: Any) -> RecurrentShape:
    return RecurrentShape(element_size=_DTYPES[dtype].itemsize, **(_BASE | changes))


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield a row for each shape, and the size of the dropout states."""
    device = torch.device("cuda", 0)
    states = torch._cudnn_init_dropout_state(0.5, True, 1, dtype=torch.uint8, device=device)
    yield {
        "what": "dropout states",
        "measured_bytes": states.numel(),
        "predicted_bytes": cudnn_dropout_state_bytes(card.spec),
    }
    for dtype, shape in _shapes(options.is_short):
        row = {"what": "layer", "dtype": dtype, **dataclasses.asdict(shape)}
        try:
            row |= _measured(shape, _DTYPES[dtype])
        except RuntimeError as error:
            row["error"] = str(error)[:200]
        row["predicted_workspace"], row["predicted_reserve"] = temporary_bytes(shape)
        yield row


def _measured(shape: RecurrentShape, dtype: torch.dtype) -> Row:
    """Return what a forward and a backward pass ask for: bytes of workspaces, and of the reserve."""
    new = {"device": "cuda", "dtype": dtype}
    directions = shape.layers * shape.directions
    x = torch.zeros(shape.length, shape.batch, shape.input_size, **new)  # type: ignore[call-overload]
    hx = torch.zeros(directions, shape.batch, shape.output_size, **new)  # type: ignore[call-overload]
    cx = torch.zeros(directions, shape.batch, shape.hidden_size, **new)  # type: ignore[call-overload]
    flat = torch.zeros(shape.weight_elements, **new)  # type: ignore[call-overload]
    weights = _parameters(shape, flat)
    mode = MODES.index(shape.mode)
    state = cx if shape.mode == "lstm" else None
    numbers = (
        mode,
        shape.hidden_size,
        shape.proj_size,
        shape.layers,
        False,
        0.0,
        shape.is_training,
    )
    rest = (shape.directions == 2, [], None)
    stride = len(weights) // directions

    def forward() -> Any:
        return torch.ops.aten._cudnn_rnn(x, weights, stride, flat, hx, state, *numbers, *rest)

    workspace, results = scratch_bytes(forward)
    output, _, _, reserve, weight_buffer = results
    row = {"workspace": workspace, "reserve": reserve.numel() * reserve.element_size()}
    if not shape.is_training:
        return row
    mask = [True, True, shape.mode == "lstm", True]

    def backward() -> Any:
        return torch.ops.aten._cudnn_rnn_backward(
            *(x, weights, stride, weight_buffer, hx, state, output, torch.ones_like(output)),
            *(None, None, *numbers, *rest, reserve, mask),
        )

    # Beside the workspace: gradients that are not given, in zeros, and one copy of the output's.
    row["backward_scratch"], _ = scratch_bytes(backward)
    return row


def _parameters(shape: RecurrentShape, flat: torch.Tensor) -> list[torch.Tensor]:
    """Return the parameters as views of the flat buffer, in the order of `nn.RNNBase`."""
    parameters = []
    for index, offsets in enumerate(shape.offsets()):
        layer = index // shape.directions
        rows = shape.gates * shape.hidden_size
        of_input, of_state, of_projection = shape.layer_weights(layer)
        sizes = [(rows, of_input // rows), (rows, of_state // rows), (rows,), (rows,)]
        if of_projection:
            sizes.append((shape.proj_size, shape.hidden_size))
        for offset, size in zip(offsets, sizes, strict=True):
            count = torch.Size(size).numel()
            parameters.append(flat[offset : offset + count].view(size))
    return parameters


def summarise(rows: list[Row]) -> Row:
    """Return the ratios of predicted and measured sizes."""
    layers = [row for row in rows if row["what"] == "layer" and "workspace" in row]
    figures: Row = {
        "shapes": len(layers),
        "shapes that failed": sum("error" in row for row in rows),
    }
    for name in ("workspace", "reserve"):
        ratios = [row[f"predicted_{name}"] / row[name] for row in layers if row[name]]
        figures[f"{name}: equal"] = sum(row[f"predicted_{name}"] == row[name] for row in layers)
        if ratios:
            figures[f"{name}: predicted / measured"] = (
                f"{min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}"
            )
    for row in rows:
        if row["what"] == "dropout states":
            figures["dropout states: measured, bytes"] = row["measured_bytes"]
            figures["dropout states: predicted, bytes"] = row["predicted_bytes"]
    return figures


STEP = Step(
    name="recurrent",
    title="cuDNN's recurrent layers",
    measure=measure,
    summarise=summarise,
    most_s=40,
)

r"""How exactly bsfind knows the workspaces of cuDNN's convolutions, measured on the fake GPU.

    export FAKE_GPU=h100
    sh tests/fakegpu/run.sh .venv-fakegpu python benchmarks/convolution_workspaces.py layers layers.json
    sh tests/fakegpu/run.sh .venv-fakegpu python benchmarks/convolution_workspaces.py sample \
        --layers layers.json --count 60000 samples-h100.jsonl
    python benchmarks/convolution_workspaces.py evaluate samples-*.jsonl
    python benchmarks/convolution_workspaces.py table tests/simulation/data/convolution_workspaces.jsonl.gz \
        samples-*.jsonl

`sample` runs single convolutions, forward and backward, on the GPU that is there, and writes what
the caching allocator saw: a line of JSON for each pass. It draws shapes at random, such as vision,
audio and volumetric models have, or, with `--layers`, from a file of layers of real networks that the
command `layers` has written, the large ones more often. With `--models` it runs all layers of the
held-out models instead, at a few batch sizes, and with `--depthwise` depthwise layers in channels
last, which are few otherwise: cuDNN compiles most kernels for them. `evaluate` compares
held-out samples with bsfind's model, and writes benchmarks/results/convolution_workspaces.json. Held out
are one in nine of the drawn layers, by a hash of them, and the layers of whole models
(`HELD_OUT_MODELS`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem
from bsfind.simulation.kernels.cudnn_workspace import workspace_bytes

sys.path.insert(0, str(Path(__file__).parent))
from convolution_shapes import Shape, drawn_depthwise, drawn_layers, drawn_shapes, held_out_layers
from network_layers import KINDS, network_layers

# One in so many of the drawn layers is for the evaluation only.
HELD_OUT = 9
RESULT = Path(__file__).parent / "results" / "convolution_workspaces.json"
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
GPUS = {
    "h100": GpuSpec(capability=(9, 0), sm_count=132, max_threads_per_sm=2048, torch_version=(2, 13)),
    "a100": GpuSpec(capability=(8, 0), sm_count=108, max_threads_per_sm=2048, torch_version=(2, 13)),
    "rtx3090": GpuSpec(capability=(8, 6), sm_count=82, max_threads_per_sm=1536, torch_version=(2, 13)),
    "rtx4090": GpuSpec(capability=(8, 9), sm_count=128, max_threads_per_sm=1536, torch_version=(2, 13)),
    "t4": GpuSpec(capability=(7, 5), sm_count=40, max_threads_per_sm=1024, torch_version=(2, 13)),
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What cuDNN asked for once."""

    gpu: str
    model: str
    problem: ConvolutionProblem
    workspace: int


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a file."""
    with path.open() as lines:
        for line in lines:
            fields = json.loads(line)
            gpu, workspace, model = (
                fields.pop("gpu"),
                fields.pop("workspace"),
                fields.pop("model", ""),
            )
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            fields["dtype"] = TYPES[fields["dtype"]]
            yield Sample(gpu, model, ConvolutionProblem(**fields), workspace)


def is_held_out(sample: Sample) -> bool:
    """Tell whether a sample is for the evaluation only.

    All passes, types, batch sizes, layouts and GPUs of a layer are held out together.
    """
    return bool(sample.model) or zlib.crc32(repr(layer_of(sample)).encode()) % HELD_OUT == 0


def layer_of(sample: Sample) -> tuple[Any, ...]:
    """Return the shapes of a sample without batch, pass, type, memory format and GPU."""
    p = sample.problem
    return (p.channels, p.size, p.out_channels, p.kernel, p.stride, p.padding, p.dilation, p.groups)


def _scratch_bytes(run: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]]) -> int:
    """Return the bytes that a call asks for beside its result."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    kept = run()
    stats = torch.cuda.memory_stats()
    del kept
    result = stats["requested_bytes.all.current"] - before
    return int(stats["requested_bytes.all.peak"] - before - result)


def _problems(
    shape: Shape, dtype: str, channels_last: bool, batch: int
) -> Iterator[ConvolutionProblem]:
    one = len(shape.size) == 1  # PyTorch makes it two-dimensional

    def two(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
        return (fill, *values) if one else values

    for kind in ("forward", "input_gradient", "weight_gradient"):
        yield ConvolutionProblem(
            kind=kind,  # type: ignore[arg-type]
            dtype=TYPES[dtype],
            channels_last=channels_last,
            batch=batch,
            channels=shape.channels,
            size=two(shape.size, 1),
            out_channels=shape.out_channels,
            kernel=two(shape.kernel, 1),
            stride=two(shape.stride, 1),
            padding=two(shape.padding, 0),
            dilation=two(shape.dilation, 1),
            groups=shape.groups,
        )


def _measure(problem: ConvolutionProblem) -> int | None:
    """Return the workspace of a convolution on the GPU; None where PyTorch does not use cuDNN."""
    p = problem
    layout = torch.contiguous_format
    if p.channels_last:
        layout = torch.channels_last if len(p.size) == 2 else torch.channels_last_3d
    new = lambda *shape: torch.empty(shape, dtype=p.dtype, device="cuda", memory_format=layout)  # noqa: E731
    x, y = new(p.batch, p.channels, *p.size), new(p.batch, p.out_channels, *p.out_size)
    w = new(p.out_channels, p.group_channels, *p.kernel)
    padding, stride, dilation = list(p.padding), list(p.stride), list(p.dilation)
    backend = torch._C._select_conv_backend(
        x, w, None, stride, padding, dilation, False, [0] * len(p.size), p.groups
    )
    if backend != torch._C._ConvBackend.Cudnn:
        return None
    if p.kind == "forward":
        workspace = _scratch_bytes(
            lambda: torch.ops.aten.cudnn_convolution(
                x, w, padding, stride, dilation, p.groups, False, False, True
            )
        )
    else:
        mask = [p.kind == "input_gradient", p.kind == "weight_gradient", False]
        workspace = _scratch_bytes(
            lambda: torch.ops.aten.convolution_backward(
                y, x, w, None, stride, padding, dilation, False, [0] * len(p.size), p.groups, mask
            )
        )
    return workspace


def _cases(
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, Shape, str, bool, int]]:
    """Yield (model, shape, type, channels_last, batch)."""
    if arguments.models:
        for model, shapes in held_out_layers().items():
            batches = (1, 2, 4) if model == "unet3d" else (4, 16, 64)
            for shape, batch, dtype in product(shapes, batches, ("float32", "float16")):
                yield model, shape, dtype, False, batch
                if len(shape.size) > 1:
                    yield model, shape, dtype, True, batch
        return
    chance = random.Random(arguments.seed)
    drawn = (
        drawn_layers(chance, read_layers(arguments.layers))
        if arguments.layers
        else drawn_shapes(chance)
    )
    if arguments.depthwise:
        drawn = drawn_depthwise(chance, read_layers(arguments.layers))
    for case in islice(drawn, arguments.count):
        yield "", *case


def read_layers(path: Path) -> list[Shape]:
    """Return the layers that the command `layers` has written."""
    rows = json.loads(path.read_text())
    return [Shape(*(tuple(v) if isinstance(v, list) else v for v in row)) for row in rows]


def layers(arguments: argparse.Namespace) -> None:
    """Write the layers of many networks."""
    rows = network_layers(arguments.seed, arguments.seconds, arguments.kinds or KINDS)
    arguments.target.write_text(json.dumps(rows, separators=(",", ":")))


def sample(arguments: argparse.Namespace) -> None:
    """Run convolutions on the GPU and write what they took."""
    gpu = os.environ["FAKE_GPU"]
    limit = torch.cuda.get_device_properties(0).total_memory / 6
    end = time.monotonic() + arguments.seconds
    with arguments.target.open("a") as target:
        for model, shape, dtype, channels_last, batch in _cases(arguments):
            if time.monotonic() > end:
                break
            for problem in _problems(shape, dtype, channels_last and len(shape.size) > 1, batch):
                elements = batch * (
                    problem.channels * problem.pixels + problem.out_channels * problem.out_pixels
                )
                if min(problem.out_size) < 1 or elements * problem.element_size > limit:
                    break
                workspace = _measure(problem)
                if workspace is not None:
                    fields = asdict(problem) | {"dtype": dtype, "gpu": gpu, "workspace": workspace}
                    if model:
                        fields["model"] = model
                    target.write(json.dumps(fields) + "\n")


def _block(size: int) -> int:
    return -(-size // 512) * 512


def _quantile(errors: list[tuple[float, float]], share: float) -> float:
    """Return the error below which a share of the weight is, of (error, weight)."""
    total, reached = sum(weight for _, weight in errors), 0.0
    for error, weight in sorted(errors):
        reached += weight
        if reached >= share * total:
            return round(error, 6)
    return 0.0


def summary(samples: Iterable[Sample]) -> dict[str, Any]:
    """Compare samples with the model.

    Relative errors are of the larger of the two sizes, and weighted by it.
    """
    errors: list[tuple[float, float]] = []
    exact = near = count = 0
    difference = truth = 0.0
    for each in samples:
        predicted = workspace_bytes(each.problem, GPUS[each.gpu])
        count += 1
        exact += _block(predicted) == _block(each.workspace)
        near += abs(predicted - each.workspace) <= max(each.workspace // 100, 1 << 20)
        larger = max(predicted, each.workspace, 1)
        errors.append((abs(predicted - each.workspace) / larger, larger))
        difference += predicted - each.workspace
        truth += each.workspace
    if not count:
        return {"samples": 0}
    return {
        "samples": count,
        "exact": round(exact / count, 4),
        "within_1_percent_or_1_mib": round(near / count, 4),
        "median_error": _quantile(errors, 0.5),
        "90th_percentile_error": _quantile(errors, 0.9),
        "95th_percentile_error": _quantile(errors, 0.95),
        "bias_of_the_sum": round(difference / truth, 4) if truth else 0.0,
    }


def evaluate(arguments: argparse.Namespace) -> None:
    """Compare held-out samples with the model."""
    drawn: dict[str, list[Sample]] = defaultdict(list)
    models: dict[str, list[Sample]] = defaultdict(list)
    for path in arguments.samples:
        for each in read_samples(path):
            if not is_held_out(each):
                continue
            width = "float32" if each.problem.dtype == torch.float32 else "half"
            layout = "channels_last" if each.problem.channels_last else "contiguous"
            if each.model:
                models[f"{each.gpu} {each.model}"].append(each)
            else:
                drawn[f"{each.gpu} {each.problem.kind}"].append(each)
                drawn[f"{each.gpu} {each.problem.kind} {width} {layout}"].append(each)
    result = {
        "drawn": {key: summary(value) for key, value in sorted(drawn.items())},
        "models": {key: summary(value) for key, value in sorted(models.items())},
    }
    for part in result.values():
        for key, numbers in part.items():
            print(f"{key:52}", *(f"{value:9.4g}" for value in numbers.values()))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def table(arguments: argparse.Namespace) -> None:
    """Write some held-out samples as the table that the tests read."""
    chance = random.Random(7)
    by_gpu: dict[str, list[Sample]] = defaultdict(list)
    for path in arguments.samples:
        for each in read_samples(path):
            if is_held_out(each):
                by_gpu[each.gpu].append(each)
    with gzip.GzipFile(arguments.target, "wb", mtime=0) as target:
        for gpu, samples in sorted(by_gpu.items()):
            for is_layer in (True, False):
                some = [each for each in samples if bool(each.model) == is_layer]
                for each in chance.sample(some, min(arguments.count, len(some))):
                    fields = asdict(each.problem).values()
                    row = [
                        str(f).removeprefix("torch.") if isinstance(f, torch.dtype) else f
                        for f in fields
                    ]
                    row = [gpu, *row, each.workspace]
                    target.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")


def main() -> None:
    """Sample, evaluate, or write a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("sample")
    command.add_argument("target", type=Path)
    command.add_argument("--count", type=int, default=10_000)
    command.add_argument("--seconds", type=float, default=math.inf)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--layers", type=Path, help="file of layers of real networks")
    command.add_argument("--depthwise", action="store_true", help="only these, channels last")
    command.add_argument("--models", action="store_true", help="the layers of the held-out models")
    command.set_defaults(run=sample)
    command = commands.add_parser("layers")
    command.add_argument("target", type=Path)
    command.add_argument("--seconds", type=float, default=180.0)
    command.add_argument("--seed", type=int, default=3)
    command.add_argument("--kinds", nargs="*", choices=KINDS, help="of layers written by hand")
    command.set_defaults(run=layers)
    command = commands.add_parser("evaluate")
    command.add_argument("samples", type=Path, nargs="+")
    command.set_defaults(run=evaluate)
    command = commands.add_parser("table")
    command.add_argument("target", type=Path)
    command.add_argument("samples", type=Path, nargs="+")
    command.add_argument("--count", type=int, default=160)
    command.set_defaults(run=table)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

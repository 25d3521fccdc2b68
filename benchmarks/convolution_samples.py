"""What workspaces cuDNN asks for, sampled on the fake GPU: `make cudnn-samples`.

    python -m benchmarks.convolution_samples [--gpus h100 t4] [--chunks 40] [--draws 2000]

Writes benchmarks/samples/GPU/, which git ignores: `models.jsonl.gz` with the layers of the held-out models,
then chunks `000.jsonl.gz`, `001.jsonl.gz`, ... of so many drawn layers each, with a line for each pass that
PyTorch runs in cuDNN. What is in a chunk follows from its number alone; chunks that are there are kept, so
that the command can be stopped at any time and goes on where it was.

The workspace is what PyTorch's allocator handed out beside the result: the real cuDNN ranks its engines
and makes the plan of the first, on a description of the GPU (tests/fakegpu/README.md).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from benchmarks.allocations import scratch_bytes
from benchmarks.convolution_layers import HELD_OUT, Case, Layer, drawn_cases, read_layers
from tests import fakegpu
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "benchmarks" / "samples"
VENV = Path(os.environ.get("BSFIND_FAKEGPU_VENV", ROOT / ".venv-fakegpu"))
MODELS = "models.jsonl.gz"
MADE_WITH = "made_with.json"
# One in so many of the drawn layers is for the evaluation only.
HELD_OUT_SHARE = 9


@dataclass(frozen=True)
class Sample:
    """What cuDNN asked for once: `model` is that of a held-out layer, else empty."""

    gpu: str
    problem: ConvolutionProblem
    workspace: int
    model: str = ""

    @property
    def layer(self) -> tuple[Any, ...]:
        """Its shapes, without batch, pass, type, memory format and GPU."""
        p = self.problem
        return (
            *(p.channels, p.size, p.out_channels, p.kernel),
            *(p.stride, p.padding, p.dilation, p.groups),
        )

    @property
    def is_held_out(self) -> bool:
        """Whether no tree may be fitted to it, nor to any other sample of its layer."""
        return bool(self.model) or zlib.crc32(repr(self.layer).encode()) % HELD_OUT_SHARE == 0

    @property
    def row(self) -> list[Any]:
        """What a line of a file says of it."""
        kind, dtype, *rest = astuple(self.problem)
        fields = [kind, str(dtype).removeprefix("torch."), *rest, self.workspace]
        return [*fields, self.model] if self.model else fields


def sample_of(gpu: str, row: list[Any]) -> Sample:
    """Return what a line of a file says."""
    fields = [tuple(each) if isinstance(each, list) else each for each in row]
    names = ConvolutionProblem.__dataclass_fields__
    problem = dict(zip(names, fields, strict=False)) | {"dtype": getattr(torch, fields[1])}
    return Sample(gpu, ConvolutionProblem(**problem), *fields[len(names) :])


def sample_files(gpu: str) -> list[Path]:
    """Return the files that there are of a GPU's samples, that of the held-out models first."""
    return sorted((SAMPLES / gpu).glob("*.jsonl.gz"), key=lambda file: (file.name != MODELS, file))


def read_samples(gpu: str) -> Iterator[Sample]:
    """Yield the samples of a GPU."""
    for path in sample_files(gpu):
        with gzip.open(path, "rt") as lines:
            yield from (sample_of(gpu, json.loads(line)) for line in lines)


def problems_of(case: Case) -> Iterator[ConvolutionProblem]:
    """Yield the three passes of a layer; a one-dimensional one has a height of 1, as in PyTorch."""
    layer, dtype, channels_last, batch = case
    if len(layer.size) == 1:
        fill = (("size", 1), ("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
        layer = layer._replace(**{name: (n, *getattr(layer, name)) for name, n in fill})
    for kind in ("forward", "input_gradient", "weight_gradient"):
        yield ConvolutionProblem(
            kind=kind, dtype=getattr(torch, dtype), channels_last=channels_last, batch=batch,
            **layer._asdict(),
        )  # type: ignore[arg-type] # fmt: skip


def workspace_of(p: ConvolutionProblem) -> int | None:
    """Return the workspace of a convolution on the GPU; None where PyTorch does not use cuDNN."""
    layout = torch.contiguous_format
    if p.channels_last:
        layout = torch.channels_last if len(p.size) == 2 else torch.channels_last_3d

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=p.dtype, device="cuda", memory_format=layout)

    x, y = new(p.batch, p.channels, *p.size), new(p.batch, p.out_channels, *p.out_size)
    w = new(p.out_channels, p.group_channels, *p.kernel)
    numbers: tuple[Any, ...] = (list(p.stride), list(p.padding), list(p.dilation))
    zero = [0] * len(p.size)
    backend = torch._C._select_conv_backend(x, w, None, *numbers, False, zero, p.groups)
    if backend != torch._C._ConvBackend.Cudnn:
        return None
    if p.kind == "forward":
        stride, padding, dilation = numbers
        flags = (torch.backends.cudnn.benchmark, False, True)  # benchmark, deterministic, TF32
        return scratch_bytes(
            lambda: torch.ops.aten.cudnn_convolution(
                x, w, padding, stride, dilation, p.groups, *flags
            )
        )[0]
    mask = [p.kind == "input_gradient", p.kind == "weight_gradient", False]
    return scratch_bytes(
        lambda: torch.ops.aten.convolution_backward(
            y, x, w, None, *numbers, False, zero, p.groups, mask
        )
    )[0]


def measured(gpu: str, cases: Iterable[Case], model: str = "") -> Iterator[Sample]:
    """Run the passes of layers that are not too large for the GPU."""
    limit = torch.cuda.get_device_properties(0).total_memory / 6
    for case in cases:
        if min(case.layer.out_size) < 1:
            continue
        for problem in problems_of(case):
            elements = case.batch * (
                problem.channels * problem.pixels + problem.out_channels * problem.out_pixels
            )
            if elements * problem.element_size > limit:
                break
            with contextlib.suppress(
                RuntimeError
            ):  # no engine of cuDNN can run it, or there is no room
                workspace = workspace_of(problem)
                if workspace is not None:
                    yield Sample(gpu, problem, workspace, model)


def _write(path: Path, samples: Iterable[Sample]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as target:
        for sample in samples:
            target.write(json.dumps(sample.row, separators=(",", ":")).encode() + b"\n")
    partial.replace(path)


def _held_out_cases(chance: random.Random, layers: list[Layer]) -> Iterator[Case]:
    for layer, dtype, last in product(layers, ("float32", "float16"), (False, True)):
        if not last or len(layer.size) > 1:
            batches = (1, 2, 4) if len(layer.size) == 3 else (4, 16, 64)
            yield Case(layer, dtype, last, chance.choice(batches))


def sample(gpu: str, chunks: range, draws: int) -> None:
    """Write the files that are lacking, on the fake GPU of this process."""
    recorded = read_layers()
    folder = SAMPLES / gpu
    folder.mkdir(parents=True, exist_ok=True)
    made_with = {
        "torch": str(torch.__version__),
        "cudnn": torch.backends.cudnn.version(),
        "since": datetime.date.today().isoformat(),
    }
    if not (folder / MADE_WITH).exists():
        (folder / MADE_WITH).write_text(json.dumps(made_with) + "\n")
    if not (folder / MODELS).exists():
        models = {
            name.removeprefix(HELD_OUT): some for name, some in recorded.items() if HELD_OUT in name
        }
        chance = random.Random(0)
        _write(
            folder / MODELS,
            (
                found
                for model, layers in models.items()
                for found in measured(gpu, _held_out_cases(chance, layers), model)
            ),
        )
    layers = [each for name, some in recorded.items() if HELD_OUT not in name for each in some]
    for chunk in chunks:
        path = folder / f"{chunk:03}.jsonl.gz"
        if not path.exists():
            _write(path, measured(gpu, islice(drawn_cases(random.Random(chunk), layers), draws)))
            print(path.relative_to(ROOT), path.stat().st_size, flush=True)


def main() -> None:
    """Start a process for each GPU and some of its chunks, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", nargs="*", default=list(GPU_SPECS), choices=GPU_SPECS)
    parser.add_argument("--chunks", type=int, default=50)
    parser.add_argument("--draws", type=int, default=2000, help="of a chunk")
    parser.add_argument("--from", type=int, default=None, dest="first", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first is not None:  # this process is on the fake GPU
        (gpu,) = arguments.gpus
        sample(gpu, range(arguments.first, arguments.chunks), arguments.draws)
        return
    with tempfile.TemporaryDirectory() as folder:
        quick = Path(folder) / "libnvrtc.so.13"
        source = Path(__file__).with_name("quick_plans.c")
        flags = ("-shared", "-fPIC", "-O1", f"-Wl,-soname,{quick.name}")
        subprocess.run(["gcc", *flags, "-o", quick, source], check=True)
        some = 3  # chunks of a GPU before it is the next one's turn
        for first, gpu in product(range(0, arguments.chunks, some), arguments.gpus):
            variables = fakegpu.environment(VENV, gpu=gpu)
            variables["FAKE_CUDNN_NVRTC"] = str(quick)
            variables["LD_PRELOAD"] = f"{quick} {variables['LD_PRELOAD']}"
            variables["TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT"] = "100"  # plans are not asked for twice
            last = min(first + some, arguments.chunks)
            options = ["--gpus", gpu, "--from", str(first), "--chunks", str(last)]
            subprocess.run(
                [VENV / "bin" / "python", "-m", "benchmarks.convolution_samples", *options,
                 "--draws", str(arguments.draws)],
                env=variables, cwd=ROOT, check=True,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

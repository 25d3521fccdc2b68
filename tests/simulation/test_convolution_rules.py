"""Convolutions: the implementation that is chosen, the order of allocations, cuDNN's workspaces."""

import dataclasses
import gzip
import json
import struct
import zipfile
from itertools import product
from pathlib import Path

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.simulation.kernels import convolution as rules
from bsfind.simulation.kernels import cudnn_engines
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec
from bsfind.simulation.kernels.convolution_backend import (
    Convolution,
    output_memory_format,
    select_backend,
    view_as_2d,
)
from bsfind.simulation.kernels.cudnn_engines import CUDNN_VERSION, MANIFEST, MULTIPROCESSORS
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem, copies
from bsfind.simulation.kernels.cudnn_workspace import FAMILIES, SPLIT_BASES, fitted_workspace_bytes
from bsfind.simulation.torch_releases import cuda_and_cudnn

DATA = Path(__file__).parent / "data"
ARCHIVE = zipfile.ZipFile(Path(rules.__file__).with_name(cudnn_engines.DATA_FILE))
# What cuDNN asked for in every call when the events were recorded (FAKE_CUDNN_WORKSPACE).
WORKSPACE = 123456
CASES = [json.loads(line) for line in (DATA / "convolution_events.jsonl").read_text().splitlines()]
BACKENDS = {
    "Cudnn": "cudnn", "CudnnTranspose": "cudnn_transpose", "CudaDepthwise2d": "depthwise_2d",
    "CudaDepthwise3d": "depthwise_3d", "Empty": "empty", "Slow2d": "slow_2d",
    "SlowDilated2d": "slow_dilated", "SlowDilated3d": "slow_dilated",
    "SlowTranspose2d": "slow_transpose_2d", "SlowTranspose3d": "slow_transpose_3d",
}  # fmt: skip


def spec(fields):
    if fields is None:
        return None
    shape, stride, dtype = fields
    return TensorSpec(tuple(shape), tuple(stride), getattr(torch, dtype))


def call_of(case, backward):
    numbers = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    arguments = {name: case[name] for name in numbers}
    arguments |= {name: spec(case[name]) for name in ("input", "weight")}
    arguments["cudnn_enabled"] = case["cudnn"]
    if backward:
        arguments |= {"grad_output": spec(case["grad_output"]), "output_mask": case["mask"]}
        outputs = tuple(spec(fields) for fields in case["gradients"])
        return Call("aten::convolution_backward", "default", arguments, outputs)
    arguments["bias"] = spec(case["bias"])
    return Call("aten::convolution", "default", arguments, (spec(case["output"]),))


def events(rule, call, gpu):
    """Return the bytes that are taken, and negative those that are given back, in order."""
    trace = KernelTrace(call)
    rule(call, gpu, trace)
    sizes, out = {}, []
    for kind, which, nbytes in trace.finish():
        if kind == "output":
            out.append(call.outputs[which].nbytes)
        elif kind in ("scratch", "optional"):
            sizes[which] = nbytes
            out.append(nbytes)
        elif kind == "free":
            out.append(-sizes[which])
    return [size for size in out if size]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_backend_is_the_one_that_torch_selects(case):
    x, w = spec(case["input"]), spec(case["weight"])
    numbers = Convolution.of(call_of(case, backward=False), w.dim - 2)
    if w.dim == 3:
        contiguous = TensorSpec(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1), x.dtype)
        x, w = view_as_2d(contiguous), view_as_2d(w)
    chosen = select_backend(x, w, numbers, GPU_SPECS["h100"], case["cudnn"])
    assert chosen.value == BACKENDS[case["backend"]]


def test_bfloat16_before_ampere_goes_without_cudnn():
    x = TensorSpec((4, 32, 28, 28), (25088, 784, 28, 1), torch.bfloat16)
    w = TensorSpec((64, 32, 3, 3), (288, 9, 3, 1), torch.bfloat16)
    case = CASES[0]
    numbers = Convolution.of(call_of(case, backward=False), 2)
    assert select_backend(x, w, numbers, GPU_SPECS["a100"], True).value == "cudnn"
    assert select_backend(x, w, numbers, GPU_SPECS["t4"], True).value == "slow_2d"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_events_are_those_of_the_allocator(case, backward, monkeypatch):
    monkeypatch.setattr(rules, "workspace_bytes", lambda problem, gpu: WORKSPACE)
    rule = rules.convolution_backward if backward else rules.convolution
    truth = [size for size in case["backward" if backward else "forward"] if size]
    got = events(rule, call_of(case, backward), GPU_SPECS["h100"])
    if case["backend"].startswith("Slow"):
        # Small transients differ in order; what counts is how much there is at once.
        assert highest(got) == pytest.approx(highest(truth), rel=0.01)
        assert sum(got) == sum(truth)
    elif case["backend"] == "Cudnn" and case["input"][2] == "float64":
        # cuDNN's kernels for float64 have no workspace, but the fake one gives all the same.
        assert [size for size in got if abs(size) != WORKSPACE] == [
            size for size in truth if abs(size) != WORKSPACE
        ]
    else:
        assert got == truth


def highest(sizes):
    now = top = 0
    for size in sizes:
        now += size
        top = max(top, now)
    return top


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_memory_format_of_the_output(case):
    x, w, y = (spec(case[name]) for name in ("input", "weight", "output"))
    if w.dim > 3 and case["backend"].startswith("Cudnn"):
        assert y.is_contiguous(output_memory_format(x, w))


def read_workspaces():
    with gzip.open(DATA / "convolution_workspaces.jsonl.gz", "rt") as lines:
        for line in lines:
            (
                gpu,
                kind,
                dtype,
                last,
                batch,
                c,
                size,
                k,
                kernel,
                stride,
                padding,
                dilation,
                groups,
                truth,
            ) = json.loads(line)
            problem = ConvolutionProblem(
                kind=kind,
                dtype=getattr(torch, dtype),
                channels_last=last,
                batch=batch,
                channels=c,
                size=tuple(size),
                out_channels=k,
                kernel=tuple(kernel),
                stride=tuple(stride),
                padding=tuple(padding),
                dilation=tuple(dilation),
                groups=groups,
            )
            yield gpu, problem, truth


@pytest.mark.parametrize("gpu", GPU_SPECS)
def test_workspaces_of_layers_that_no_tree_was_fitted_to(gpu):
    exact = count = over = truths = under = 0
    for name, problem, truth in read_workspaces():
        if name != gpu:
            continue
        predicted = fitted_workspace_bytes(problem, GPU_SPECS[gpu])
        count += 1
        exact += abs(predicted - truth) <= max(truth // 100, 1 << 20)
        over += max(0, predicted - truth)
        under += max(0, truth - predicted)
        truths += truth
    assert count > 200
    assert exact / count > 0.8
    assert over < 0.2 * truths
    assert under < 0.3 * truths


@pytest.mark.parametrize("gpu", GPU_SPECS)
def test_a_cautious_answer_covers_more(gpu):
    cautious = dataclasses.replace(GPU_SPECS[gpu], is_cautious=True)
    median = covers = more = count = 0
    for name, call, truth in read_workspaces():
        if name == gpu:
            usual = fitted_workspace_bytes(call, GPU_SPECS[gpu])
            larger = fitted_workspace_bytes(call, cautious)
            assert larger >= usual
            least = truth - max(truth // 100, 1 << 20)
            count, more = count + 1, more + (larger > usual)
            median, covers = median + (usual >= least), covers + (larger >= least)
    assert 0.02 * count < more < 0.5 * count
    assert median < covers
    assert covers > 0.9 * count


def problem(**changes):
    fields = {
        "kind": "forward", "dtype": torch.float16, "channels_last": False, "batch": 32, "channels": 64,
        "size": (56, 56), "out_channels": 64, "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1),
        "dilation": (1, 1), "groups": 1,
    }  # fmt: skip
    return ConvolutionProblem(**(fields | changes))


def test_contiguous_tensors_are_copied_and_channels_last_ones_are_not():
    plain = fitted_workspace_bytes(problem(), GPU_SPECS["h100"])
    x = 32 * 64 * 56 * 56 * 2
    assert plain == pytest.approx(2 * x + 64 * 64 * 9 * 2, abs=512)
    assert fitted_workspace_bytes(problem(channels_last=True), GPU_SPECS["h100"]) < 1 << 20


WHOLE = {"dtype": torch.float32, "padding": (0, 0)}
MEASURED = [  # what cuDNN 9.20 asked for on a T4, RTX 4090 and H100
    ("fft tiles", 215023616, WHOLE | {"batch": 16, "channels": 1536, "size": (4, 4),
     "out_channels": 16, "kernel": (4, 4)}),
    ("fft tiles", 1347379200, {"dtype": torch.float32, "kind": "input_gradient", "batch": 5,
     "channels": 180, "size": (128, 128), "out_channels": 1620}),
    ("fft", 181534720, WHOLE | {"batch": 24, "channels": 1280, "size": (11, 11), "out_channels": 32,
     "kernel": (10, 10)}),
    ("fft", 60096512, WHOLE | {"batch": 29, "channels": 256, "size": (16, 5), "out_channels": 64,
     "kernel": (16, 5)}),
    ("fft tiles and x+w", 23766528, WHOLE | {"batch": 6, "channels": 768, "size": (4, 4),
     "out_channels": 1, "kernel": (4, 4), "channels_last": True}),
    ("winograd weights", 60216576, {"dtype": torch.float32, "kind": "input_gradient", "batch": 1,
     "channels": 1344, "size": (32, 32), "out_channels": 448}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "truth", "changes"), MEASURED)
def test_formulas_are_exact(family, truth, changes):
    call = problem(**changes)
    assert 0 <= truth - FAMILIES[family](call, copies(call)) < 1 << 14


def test_kernels_as_large_as_the_image_need_no_partial_results():
    # A classifier made of a convolution: 4096 x 512 x 7 x 7 weights in float32 are 411 MB.
    classifier = problem(
        kind="weight_gradient", dtype=torch.float32, batch=16, channels=512, size=(7, 7),
        out_channels=4096, kernel=(7, 7), padding=(0, 0),
    )  # fmt: skip
    assert fitted_workspace_bytes(classifier, GPU_SPECS["h100"]) < 1 << 24


def test_the_trees_are_those_of_the_version_of_cudnn_that_is_modelled():
    manifest = json.loads(ARCHIVE.read(MANIFEST))
    assert manifest["cudnn"] == CUDNN_VERSION
    assert manifest["torch"].startswith("2.13.0")
    assert set(manifest["gpus"]) == set(MULTIPROCESSORS) == set(GPU_SPECS)
    assert {name: gpu.sm_count for name, gpu in GPU_SPECS.items()} == MULTIPROCESSORS
    assert cuda_and_cudnn((2, 13))[1] == CUDNN_VERSION


def test_the_archive_has_the_trees_that_are_asked_for():
    passes = ("forward", "input_gradient", "weight_gradient")
    keys = [
        " ".join(p) for p in product(passes, ("float32", "half"), ("contiguous", "channels_last"))
    ]
    needed = {f"{gpu}/{key}" for gpu in GPU_SPECS for key in ("grid", *keys)} | {MANIFEST}
    names = set(ARCHIVE.namelist())
    assert needed <= names
    assert {name.removesuffix(" depthwise") for name in names} == needed


@pytest.mark.parametrize("gpu", GPU_SPECS)
def test_members_of_the_archive_are_read_to_the_end(gpu):
    grid = json.loads(ARCHIVE.read(f"{gpu}/grid"))
    assert len(grid["borders"]) == len(cudnn_engines.features(problem(), MULTIPROCESSORS[gpu]))
    known = {*FAMILIES, *SPLIT_BASES, "needed and more", "bytes", "share of x+w+y"}
    assert {family for family, _ in grid["labels"]} <= known
    for name in ARCHIVE.namelist():
        if name.startswith(f"{gpu}/") and not name.endswith("grid"):
            packed = ARCHIVE.read(name)
            answers, trees = struct.unpack_from("<II", packed)
            leaves = struct.unpack_from(f"<{trees}I", packed, 8)
            assert len(packed) == 8 + 4 * trees + 5 * answers + sum(5 * n - 2 for n in leaves)


def test_double_and_empty_take_nothing():
    assert fitted_workspace_bytes(problem(dtype=torch.float64), GPU_SPECS["h100"]) == 0
    assert fitted_workspace_bytes(problem(batch=0), GPU_SPECS["h100"]) == 0


@pytest.mark.parametrize("capability", [(5, 2), (7, 0), (8, 7), (10, 0), (12, 0)])
def test_every_gpu_has_an_answer(capability):
    gpu = GpuSpec(
        capability=capability, sm_count=50, max_threads_per_sm=2048, torch_version=(2, 13)
    )
    for kind in ("forward", "input_gradient", "weight_gradient"):
        assert fitted_workspace_bytes(problem(kind=kind), gpu) >= 0

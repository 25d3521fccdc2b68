"""Record what single convolutions allocate on the fake GPU: data/convolution_events.jsonl.

    FAKE_CUDNN= FAKE_CUDNN_WORKSPACE=123456 FAKE_GPU=h100 sh tests/fakegpu/run.sh .venv-fakegpu \
        python tests/simulation/record_convolutions.py tests/simulation/data/convolution_events.jsonl

The fake cuDNN asks for the same workspace in every call, so that the events show where it is taken.
"""

import json
import sys
from pathlib import Path

import torch

aten = torch.ops.aten

# name: shapes of input and weight, stride, padding, and what else is not usual.
CASES = {
    "contiguous": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {}),
    "channels-last input": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"x": "last"}),
    "channels-last input and weight": (
        (4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"x": "last", "w": "last", "dtype": "float16"}),
    "channels-last input, contiguous gradient": (
        (4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"x": "last", "y": "contiguous"}),
    "channels-last gradient": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"y": "last"}),
    "channels-last weight": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"w": "last"}),
    "transposed memory": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"x": "swapped"}),
    "expanded gradient": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"y": "expanded"}),
    "no input gradient": ((8, 3, 64, 64), (16, 3, 7, 7), 2, 3, {"mask": (0, 1, 0), "bias": False}),
    "no weight gradient": ((8, 16, 64, 64), (32, 16, 3, 3), 1, 1, {"mask": (1, 0, 0), "x": "swapped"}),
    "pointwise": ((8, 64, 32, 32), (128, 64, 1, 1), 1, 0, {"dtype": "float16"}),
    "grouped": ((8, 64, 32, 32), (128, 16, 3, 3), 1, 1, {"groups": 4, "dtype": "bfloat16"}),
    "dilated": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 4, {"dilation": 4}),
    "1d": ((4, 32, 1000), (64, 32, 5), 1, 2, {}),
    "1d transposed memory": ((4, 32, 1000), (64, 32, 5), 1, 2, {"x": "swapped"}),
    "1d dilated half": ((4, 32, 1000), (64, 32, 3), 1, 4, {"dilation": 4, "dtype": "float16"}),
    "depthwise": ((4, 64, 28, 28), (64, 1, 3, 3), 1, 1, {"groups": 64}),
    "depthwise channels-last": ((4, 64, 28, 28), (64, 1, 3, 3), 1, 1, {"groups": 64, "x": "last"}),
    "depthwise channels-last gradient": (
        (4, 64, 28, 28), (64, 1, 3, 3), 1, 1, {"groups": 64, "y": "last"}),
    "depthwise bfloat16": ((4, 64, 28, 28), (64, 1, 3, 3), 1, 1, {"groups": 64, "dtype": "bfloat16"}),
    "depthwise float16 7x7": (
        (4, 64, 28, 28), (64, 1, 7, 7), 1, 3, {"groups": 64, "dtype": "float16"}),
    "depthwise float16 stride 2 small": (
        (4, 64, 28, 28), (64, 1, 3, 3), 2, 1, {"groups": 64, "dtype": "float16"}),
    "depthwise multiplier": ((4, 64, 28, 28), (128, 1, 3, 3), 1, 1, {"groups": 64}),
    "depthwise 3d": ((2, 16, 8, 28, 28), (16, 1, 3, 3, 3), 1, 1, {"groups": 16}),
    "depthwise 1d": ((2, 16, 1000), (16, 1, 3), 1, 1, {"groups": 16}),
    "transposed": ((4, 64, 28, 28), (64, 32, 2, 2), 2, 0, {"transposed": True}),
    "transposed channels-last": (
        (4, 64, 28, 28), (64, 32, 2, 2), 2, 0, {"transposed": True, "x": "last"}),
    "transposed output padding": (
        (4, 64, 28, 28), (64, 32, 3, 3), 2, 1, {"transposed": True, "extra": 1, "dtype": "float16"}),
    "transposed 1d": ((4, 64, 280), (64, 32, 4), 2, 1, {"transposed": True}),
    "transposed grouped": ((4, 64, 28, 28), (64, 8, 4, 4), 2, 1, {"transposed": True, "groups": 4}),
    "3d": ((2, 16, 8, 28, 28), (32, 16, 3, 3, 3), 1, 1, {}),
    "3d half": ((2, 16, 8, 28, 28), (32, 16, 3, 3, 3), 1, 1, {"dtype": "float16"}),
    "3d channels-last": ((2, 16, 8, 28, 28), (32, 16, 3, 3, 3), 1, 1, {"x": "last"}),
    "transposed 3d": (
        (2, 32, 8, 14, 14), (32, 16, 2, 2, 2), 2, 0, {"transposed": True, "dtype": "bfloat16"}),
    "double": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"dtype": "float64"}),
    "big output padding": (
        (4, 64, 28, 28), (64, 32, 2, 2), 1, 0, {"transposed": True, "dilation": 2, "extra": 1}),
    "empty": ((0, 32, 28, 28), (64, 32, 3, 3), 1, 1, {}),
    "columns": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 1, {"cudnn": False}),
    "columns pointwise": ((4, 32, 28, 28), (64, 32, 1, 1), 1, 0, {"cudnn": False}),
    "columns dilated": ((4, 32, 28, 28), (64, 32, 3, 3), 1, 2, {"cudnn": False, "dilation": 2}),
    "columns 3d": ((2, 16, 8, 28, 28), (32, 16, 3, 3, 3), 1, 1, {"cudnn": False}),
    "columns transposed": (
        (4, 64, 28, 28), (64, 32, 2, 2), 2, 0, {"cudnn": False, "transposed": True}),
    "columns transposed no bias": (
        (4, 64, 28, 28), (64, 32, 2, 2), 2, 0,
        {"cudnn": False, "transposed": True, "bias": False, "mask": (1, 1, 0)}),
}  # fmt: skip


def events(run):
    """Return the bytes that a call takes, negative what it gives back, and its result."""
    torch.cuda.memory._record_memory_history(enabled=None)
    torch.cuda.memory._record_memory_history(max_entries=10_000, context=None)
    result = run()
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    signs = {"alloc": 1, "free_completed": -1}
    return [signs[e["action"]] * e["size"] for e in trace if e["action"] in signs], result


def spec(tensor):
    if tensor is None:
        return None
    return [list(tensor.shape), list(tensor.stride()), str(tensor.dtype).removeprefix("torch.")]


def make(shape, dtype, form):
    new = {"device": "cuda", "dtype": getattr(torch, dtype)}
    if form == "last":
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return torch.empty(shape, **new).to(memory_format=last)
    if form == "swapped":
        return torch.empty((shape[0], shape[2], shape[1], *shape[3:]), **new).transpose(1, 2)
    if form == "expanded":
        return torch.empty([1] * len(shape), **new).expand(shape)
    return torch.empty(shape, **new)


def record(name):
    x_shape, w_shape, stride, padding, other = CASES[name]
    count, dtype = len(x_shape) - 2, other.get("dtype", "float32")
    stride, padding = [stride] * count, [padding] * count
    dilation, extra = [other.get("dilation", 1)] * count, [other.get("extra", 0)] * count
    transposed, groups = other.get("transposed", False), other.get("groups", 1)
    mask = [bool(wanted) for wanted in other.get("mask", (1, 1, 1))]
    x, w = make(x_shape, dtype, other.get("x")), make(w_shape, dtype, other.get("w"))
    channels = w.shape[1] * groups if transposed else w.shape[0]
    bias = make((channels,), dtype, None) if other.get("bias", True) else None
    numbers = (stride, padding, dilation, transposed, extra, groups)
    with torch.backends.cudnn.flags(enabled=other.get("cudnn", True)):
        backend = torch._C._select_conv_backend(x, w, bias, *numbers)
        forward, y = events(lambda: aten.convolution(x, w, bias, *numbers))
        gradient = make(y.shape, dtype, other["y"]) if "y" in other else torch.empty_like(y)
        backward, gradients = events(
            lambda: aten.convolution_backward(gradient, x, w, [channels], *numbers, mask)
        )
    return {
        "name": name, "cudnn": other.get("cudnn", True), "backend": str(backend).rpartition(".")[2],
        "input": spec(x), "weight": spec(w), "bias": spec(bias), "output": spec(y),
        "grad_output": spec(gradient), "stride": stride, "padding": padding, "dilation": dilation,
        "transposed": transposed, "output_padding": extra, "groups": groups, "mask": mask,
        "forward": forward, "backward": backward, "gradients": [spec(t) for t in gradients],
    }  # fmt: skip


if __name__ == "__main__":
    small = torch.empty(4, 4, device="cuda")
    small @ small  # so that cuBLAS has its workspace
    with Path(sys.argv[1]).open("w") as target:
        for case in CASES:
            target.write(json.dumps(record(case)) + "\n")

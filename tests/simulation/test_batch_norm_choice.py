"""Batch norm on meta tensors takes the kernels that CUDA takes, and allocates what they allocate."""

from __future__ import annotations

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.layer_cases import on_fake_gpu, on_meta
from tests.simulation.operator_comparison import differences
from tests.simulation.oracle import why_there_is_none

from bsfind.simulation.kernels.call import load_rules
from bsfind.simulation.trace.cuda_paths.batch_norm_choice import runs_on_cudnn

without_gpu = why_there_is_none()


def on_cudnn(*shape: int, dtype: torch.dtype = torch.float32, training: bool = True) -> bool:
    x = torch.empty(shape, dtype=dtype, device="meta")
    weight, bias, mean, var = (torch.empty(shape[1], device="meta") for _ in range(4))
    return runs_on_cudnn(x, weight, bias, mean, var, training)


def test_cudnn_takes_images_in_float_and_half() -> None:
    assert on_cudnn(4, 8, 9, 9)
    assert on_cudnn(4, 8, 9, 9, dtype=torch.float16)
    assert not on_cudnn(4, 8, 9, 9, dtype=torch.bfloat16)


def test_cudnn_takes_no_vectors_and_no_huge_batches() -> None:
    assert not on_cudnn(4, 8)
    assert on_cudnn(65536, 2, 1)
    assert not on_cudnn(65536, 2, 1, training=False)


def test_cudnn_wants_weights_and_statistics() -> None:
    x, weight = torch.empty(4, 8, 9, device="meta"), torch.empty(8, device="meta")
    assert not runs_on_cudnn(x, None, None, weight, weight, True)
    assert runs_on_cudnn(x, weight, weight, None, None, True)
    assert not runs_on_cudnn(x, weight, weight, None, None, False)


def test_cudnn_can_be_turned_off() -> None:
    with torch.backends.cudnn.flags(enabled=False):
        assert not on_cudnn(4, 8, 9, 9)


@pytest.mark.gpu
@pytest.mark.skipif(without_gpu is not None, reason=str(without_gpu))
def test_as_cuda_does() -> None:
    load_rules()
    on_cuda = on_fake_gpu("batch_norm", "a100")
    on_host = on_meta("batch_norm", GPU_SPECS["a100"])
    assert {name: case["operators"] for name, case in on_cuda.items()} == on_host
    records = [
        record
        for case in on_cuda.values()
        for record in case["records"]
        if "batch_norm" in record["operator"]
    ]
    assert len(records) > 50
    assert differences(records, GPU_SPECS["a100"]) == []

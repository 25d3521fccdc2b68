"""Attention on meta tensors takes the kernels that CUDA takes, and allocates what they allocate."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.exhaustive import exhaustive
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.layer_cases import on_fake_gpu, on_meta
from tests.simulation.operator_comparison import differences
from tests.simulation.oracle import why_there_is_none
from torch.nn.attention import SDPBackend, sdpa_kernel

from bsfind.simulation.kernels.call import load_rules
from bsfind.simulation.trace.cuda_paths.attention_choice import (
    AttentionBackend,
    AttentionQuestion,
    choose_attention,
)

MATH, FLASH = AttentionBackend.MATH, AttentionBackend.FLASH
EFFICIENT, CUDNN = AttentionBackend.EFFICIENT, AttentionBackend.CUDNN

without_gpu = why_there_is_none()


def question(
    *shape: int, dtype: torch.dtype = torch.float16, **options: object
) -> AttentionQuestion:
    tensors = [torch.empty(shape, dtype=dtype, device="meta", requires_grad=True) for _ in range(3)]
    query, key, value = tensors
    return AttentionQuestion(query=query, key=key, value=value, **options)  # type: ignore[arg-type]


# The order of preference is torch's: 2.6 prefers cuDNN last.
@pytest.mark.parametrize(
    ("gpu", "dtype", "features", "chosen"),
    [
        pytest.param("h100", torch.bfloat16, 64, CUDNN, marks=pytest.mark.one_torch),
        pytest.param("h100", torch.bfloat16, 256, CUDNN, marks=pytest.mark.one_torch),
        ("h100", torch.bfloat16, 20, FLASH),
        ("h100", torch.float32, 64, EFFICIENT),
        ("h100", torch.float32, 33, MATH),
        ("a100", torch.bfloat16, 64, FLASH),
        ("a100", torch.bfloat16, 200, FLASH),
        ("rtx4090", torch.bfloat16, 200, EFFICIENT),
        ("rtx4090", torch.bfloat16, 232, FLASH),
        ("a100", torch.bfloat16, 264, EFFICIENT),
        ("t4", torch.float16, 64, EFFICIENT),
        ("t4", torch.bfloat16, 64, MATH),
        ("t4", torch.float32, 33, EFFICIENT),
        ("a100", torch.float64, 64, MATH),
    ],
)
def test_dtype_width_and_gpu_choose(
    gpu: str, dtype: torch.dtype, features: int, chosen: AttentionBackend
) -> None:
    asked = question(2, 4, 32, features, dtype=dtype)
    assert choose_attention(asked, GPU_SPECS[gpu]) == chosen


def test_a_mask_rules_out_flash_attention() -> None:
    mask = torch.empty(32, 32, dtype=torch.bool, device="meta")
    assert choose_attention(question(2, 4, 32, 64, mask=mask), GPU_SPECS["a100"]) == EFFICIENT


@pytest.mark.one_torch
def test_a_mask_does_not_rule_out_cudnn() -> None:
    mask = torch.empty(32, 32, dtype=torch.bool, device="meta")
    assert choose_attention(question(2, 4, 32, 64, mask=mask), GPU_SPECS["h100"]) == CUDNN


@pytest.mark.one_torch
def test_dropout_must_suit_cudnn() -> None:
    assert choose_attention(question(2, 4, 32, 64, dropout=0.1), GPU_SPECS["h100"]) == FLASH
    assert choose_attention(question(2, 4, 32, 64, dropout=0.125), GPU_SPECS["h100"]) == CUDNN


def test_three_dimensions_are_the_formula_s() -> None:
    assert choose_attention(question(8, 32, 64), GPU_SPECS["a100"]) == MATH


def test_the_user_chooses() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert choose_attention(question(2, 4, 32, 64), GPU_SPECS["a100"]) == MATH
    with sdpa_kernel(
        [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True
    ):
        assert choose_attention(question(2, 4, 32, 64), GPU_SPECS["h100"]) == EFFICIENT
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        choose_attention(question(2, 4, 32, 64), GPU_SPECS["t4"])


def test_older_torch_does_not_prefer_cudnn() -> None:
    older = dataclasses.replace(GPU_SPECS["h100"], torch_version=(2, 9))
    assert choose_attention(question(2, 4, 32, 64), older) == FLASH


@pytest.mark.gpu
@pytest.mark.skipif(without_gpu is not None, reason=str(without_gpu))
@pytest.mark.parametrize("gpu", ["h100", exhaustive("rtx4090"), exhaustive("t4")])
def test_as_cuda_does(gpu: str) -> None:
    """The operators, and what attention's own allocate; cuDNN's plans are left out: they are slow."""
    load_rules()
    on_cuda = on_fake_gpu("attention", gpu)
    on_host = on_meta("attention", GPU_SPECS[gpu])
    assert {name: case["operators"] for name, case in on_cuda.items()} == on_host
    records = [
        record
        for case in on_cuda.values()
        for record in case["records"]
        if "attention" in record["operator"] or "softmax" in record["operator"]
        if "cudnn" not in record["operator"]
    ]
    assert len(records) > 50
    assert differences(records, GPU_SPECS[gpu]) == []


@pytest.mark.gpu
@pytest.mark.skipif(without_gpu is not None, reason=str(without_gpu))
def test_composites_as_cuda_does() -> None:
    on_cuda = on_fake_gpu("composites", "a100")
    assert {name: case["operators"] for name, case in on_cuda.items()} == on_meta(
        "composites", GPU_SPECS["a100"]
    )

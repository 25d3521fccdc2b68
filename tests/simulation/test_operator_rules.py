"""The rules of operators against what CUDA's host code allocates, on the fake GPU."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest
import torch
from tests import fakegpu
from tests.exhaustive import exhaustive
from tests.gpu.gpu import FAKE_VENV, ROOT, printed_on_fake_gpu
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.operator_comparison import differences

from bsfind.simulation.kernels.call import Call, KernelTrace, TensorSpec, load_rules, rule_for

needs_fake_gpu = pytest.mark.skipif(
    not fakegpu.available(FAKE_VENV), reason=f"no fake GPU: `make setup` builds it ({FAKE_VENV})"
)

NOT_MODELLED = {
    # Results whose size depends on values.
    "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
    # Statistics, rare in training.
    "aten::multinomial", "aten::histc", "aten::median",
    # cuSOLVER and MAGMA.
    "aten::_linalg_svd", "aten::linalg_pinv", "aten::cholesky_solve", "aten::linalg_lu_solve",
    "aten::linalg_matrix_exp", "aten::linalg_inv_ex", "aten::_linalg_solve_ex", "aten::_linalg_det",
    "aten::_linalg_slogdet", "aten::_linalg_eigh", "aten::linalg_qr", "aten::linalg_lstsq",
    "aten::cholesky_inverse", "aten::_linalg_check_errors", "aten::lu_unpack",
    "aten::linalg_cholesky_ex", "aten::linalg_lu_factor_ex", "aten::linalg_solve_triangular",
    "aten::_linalg_eigvals",
}  # fmt: skip
"""Operators with scratch memory for which there is no rule, or no exact one."""


def probed(gpu: str, *arguments: str) -> list[dict[str, Any]]:
    """Return what operators allocate on a GPU."""
    printed = printed_on_fake_gpu("tests/simulation/operator_probe.py", *arguments, gpu=gpu)
    return [json.loads(line) for line in printed.splitlines()]


def check(records: list[dict[str, Any]], gpu: str) -> None:
    load_rules()
    found = [
        (record, seen, expected)
        for record, seen, expected in differences(records, GPU_SPECS[gpu])
        if record["operator"] not in NOT_MODELLED
    ]
    counts = Counter(record["operator"] for record, _, _ in found)
    assert not found, f"{dict(counts)}\nfirst: {found[0]}"


@needs_fake_gpu
@pytest.mark.gpu
def test_operators_allocate_what_the_rules_say() -> None:
    records = probed("h100", "--every=53")
    assert len(records) > 800
    check(records, "h100")


@needs_fake_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("gpu", [exhaustive("a100"), exhaustive("rtx3090"), "t4"])
def test_rules_know_the_gpu(gpu: str) -> None:
    groups = ("reductions", "normalization", "embedding", "indexing", "matmul", "grouped_products")
    check(probed(gpu, "--every=37", *groups), gpu)


@pytest.mark.parametrize("version", [(2, 6), (2, 9), (2, 11), (2, 12), (2, 14)])
def test_rules_know_other_versions_of_torch(version: tuple[int, int]) -> None:
    """Recorded calls that these versions answered otherwise than 2.13."""
    name = ".".join(map(str, version))
    lines = (ROOT / "tests/simulation/data/other_torch_operators.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["torch"] == name]
    load_rules()
    assert len(records) > 5
    assert len(differences(records, GPU_SPECS["h100"])) == len(records)
    target = dataclasses.replace(GPU_SPECS["h100"], torch_version=version)
    assert differences(records, target) == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((2, 6), ["+LT", "cublas", "-LT"]),
        ((2, 9), ["cublas", "cublaslt"]),
        ((2, 11), ["cublas", "cublaslt"]),
        ((2, 13), ["cublas"]),
    ],
)
def test_a_bias_that_cublaslt_adds_takes_the_workspaces_of_the_version(
    version: tuple[int, int], expected: list[str]
) -> None:
    """As the first product of a thread was seen to do in these versions."""
    bias, matrix = (
        TensorSpec((64,), (1,), torch.float32),
        TensorSpec((64, 64), (64, 1), torch.float32),
    )
    arguments = {"self": bias, "mat1": matrix, "mat2": matrix, "beta": 1, "alpha": 1}
    call = Call("aten::addmm", "default", arguments, (matrix,))
    trace = KernelTrace(call)
    load_rules()
    rule = rule_for(call.operator, call.overload)
    assert rule is not None
    rule(call, dataclasses.replace(GPU_SPECS["h100"], torch_version=version), trace)
    words = {"scratch": "+LT", "free": "-LT"}
    events = [words.get(kind, key) for kind, key, _ in trace.finish() if kind != "output"]
    assert events == expected


def test_embeddings_of_few_words_are_added_by_atomics_where_that_is_so() -> None:
    """Since torch 2.11 (its kernel is not in 2.10), and not where all must be deterministic."""
    call = Call(
        "aten::embedding_dense_backward",
        "default",
        {
            "grad_output": TensorSpec((20000, 64), (64, 1), torch.float32),
            "indices": TensorSpec((20000,), (1,), torch.int64),
            "num_weights": 100,
            "scale_grad_by_freq": False,
        },
        (TensorSpec((100, 64), (64, 1), torch.float32),),
    )
    load_rules()
    partial_sums = (20000 // 10 + 100) * 64 * 4

    def sizes(**changes: Any) -> list[int]:
        trace = KernelTrace(call)
        rule = rule_for(call.operator, call.overload)
        assert rule is not None
        rule(call, dataclasses.replace(GPU_SPECS["h100"], **changes), trace)
        return [nbytes for _, _, nbytes in trace.finish()]

    assert partial_sums not in sizes(torch_version=(2, 13))
    assert partial_sums not in sizes(torch_version=(2, 11))
    assert partial_sums in sizes(torch_version=(2, 10))
    assert partial_sums in sizes(torch_version=(2, 13), deterministic=True)

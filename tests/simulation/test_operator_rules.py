"""The rules of operators against what CUDA's host code allocates, on the fake GPU."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from typing import Any

import pytest
from tests import fakegpu
from tests.gpu.gpu import FAKE_VENV, ROOT
from tests.simulation.operator_comparison import TARGETS, differences

from bsfind.simulation.operators.registry import load_rules

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
    variables = fakegpu.environment(FAKE_VENV, gpu=gpu, cudnn=False)
    process = subprocess.run(
        [str(FAKE_VENV / "bin" / "python"), "tests/simulation/operator_probe.py", *arguments],
        cwd=ROOT,
        env={**variables, "PYTHONPATH": f"{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def check(records: list[dict[str, Any]], gpu: str) -> None:
    load_rules()
    found = [
        (record, seen, expected)
        for record, seen, expected in differences(records, TARGETS[gpu])
        if record["operator"] not in NOT_MODELLED
    ]
    counts = Counter(record["operator"] for record, _, _ in found)
    assert not found, f"{dict(counts)}\nfirst: {found[0]}"


@needs_fake_gpu
@pytest.mark.gpu
def test_operators_allocate_what_the_rules_say() -> None:
    records = probed("h100", "--every=23")
    assert len(records) > 2000
    check(records, "h100")


@needs_fake_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("gpu", ["a100", "rtx3090", "t4"])
def test_rules_know_the_gpu(gpu: str) -> None:
    groups = ("reductions", "normalization", "embedding", "indexing", "matmul", "grouped_products")
    check(probed(gpu, "--every=37", *groups), gpu)

"""`bsfind env --share`: what it measures of a GPU, and what it says where that does not work."""

from __future__ import annotations

import json

import pytest

from bsfind.units import MIB
from tests.gpu.gpu import Gpu


def test_the_memory_outside_the_allocator_is_measured(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind("env", "--share", "--json", overhead="778MiB", nccl_memory="98MiB")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["context_bytes"] == 778 * MIB
    assert facts["libraries_bytes"] == 778 * MIB
    assert facts["nccl_bytes"] == (778 + 98) * MIB
    assert "missing" not in facts


def test_the_block(gpu: Gpu) -> None:
    done = gpu.bsfind("env", "--share")
    assert done.code == 0, done.err
    first, *lines, last = done.out.splitlines()
    assert (first, last) == ("```text", "```")
    assert lines[0].startswith("card: NVIDIA ")
    labels = [line.partition(":")[0].strip() for line in lines]
    assert {"with one kernel", "after cuBLAS and cuDNN", "NCCL, a group of one rank"} <= {*labels}
    assert "issue tracker" in done.err


def test_without_nvml_the_block_says_what_was_not_measured(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind("env", "--share", nvml=False)
    assert done.code == 0, done.err
    assert "after cuBLAS and cuDNN: not measured" in done.out
    assert "driver: not found" in done.out


@pytest.mark.parametrize("kind", ["segv", "launch-failure"])
def test_what_was_found_before_a_fault_is_kept(fake_gpu: Gpu, kind: str) -> None:
    done = fake_gpu.bsfind("env", "--share", fail=f"{kind}:1")
    assert done.code == 0, done.err
    assert "with one kernel: 300.0 MiB" in done.out
    assert "after cuBLAS and cuDNN: not measured" in done.out
    assert ("missing: the measurement ended with signal 11" in done.out) == (kind == "segv")


def test_without_a_gpu(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind("env", "--share", count=0)
    assert done.code == 3
    assert "missing: no usable GPU was found" in done.out
    assert "torch 2" in done.out

"""`bsfind inspect` on a machine that has a GPU: what it simulates is what that GPU counts."""

from __future__ import annotations

from tests.gpu.gpu import LIMIT, MODELS, Gpu

MODEL = f"{MODELS}/well_behaved.py:Classifier"
OPTIONS = (
    *("--input", "input_ids=64:int64:0..1000", "--input", "labels=:int64:0..2"),
    *("--batch-size", "64", "--memory-limit", LIMIT, "--json"),
)


def test_the_gpu_of_the_machine_is_simulated(fake_gpu: Gpu) -> None:
    inspected = fake_gpu.bsfind("inspect", MODEL, *OPTIONS)
    assert inspected.code == 0, inspected.err
    measured = fake_gpu.bsfind("check", MODEL, *OPTIONS)
    assert measured.code == 0, measured.err
    found = inspected.report
    assert found["simulated"] is True
    assert found["stands_for"] == measured.report["device"]["name"]
    assert found["device"]["capacity_bytes"] == measured.report["device"]["capacity_bytes"]
    for result, other in zip(found["results"], measured.report["results"], strict=True):
        (trial,) = other["trials"]
        assert result["composition"]["allocated_bytes"] == trial["peak_allocated_bytes"]
        assert result["composition"]["peak_reserved_bytes"] == trial["peak_reserved_bytes"]


def test_a_card_that_nobody_knows_cannot_be_inspected(fake_gpu: Gpu) -> None:
    unknown = {"FAKE_GPU_NAME": "NVIDIA Mystery 9000"}
    done = fake_gpu.bsfind("inspect", MODEL, *OPTIONS, variables=unknown)
    assert done.code == 3
    assert "NVIDIA Mystery 9000" in done.err
    assert "--gpu" in done.err

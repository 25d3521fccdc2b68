"""`make real-gpu` on the fake GPU, in its short form: on hardware it has to work at the first try."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gpu.gpu import FAKE_VENV
from tests.simulation.allocator_traces import (
    Addresses,
    RecordedMemory,
    allocator_for,
    load,
    replay,
    result_of,
)
from tests.simulation.oracle import why_there_is_none

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(why_there_is_none() is not None, reason=str(why_there_is_none())),
]


@pytest.mark.timeout(320)
def test_the_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    monkeypatch.setenv("BSFIND_FAKEGPU_VENV", str(FAKE_VENV))
    # It takes some 45 s of processor time; the budget is for machines under load.
    options = ("--results", str(tmp_path), "--gpu", "a100", "--seconds", "280")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.real_gpu", *options],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("*.json")
    assert file.name.startswith("real_gpu_fake_nvidia_a100")
    assert file.with_suffix(".md").read_text().startswith("# Fake GPU, no hardware: NVIDIA A100")
    found = json.loads(file.read_text())
    assert found["card"]["is_fake"] is True
    assert found["is_short"] is True
    assert found["versions"]["torch"].startswith("2.")
    steps = found["steps"]
    assert {name: step["status"] for name, step in steps.items()} == dict.fromkeys(steps, "ok")
    rows = {name: step["rows"] for name, step in steps.items()}
    assert [row for some in rows.values() for row in some if "error" in row] == []

    context = {row["after"]: row for row in rows["context"] if row["loading"] == "LAZY"}
    assert context["context"]["outside_bytes"] > 100 << 20
    taken = rows["nccl"][-1]["outside_bytes"] - rows["nccl"][0]["outside_bytes"]
    assert taken == 544 << 20  # the fake NCCL's
    layers = [row for row in rows["recurrent"] if row["what"] == "layer"]
    assert all(row["workspace"] > 0 for row in layers)
    assert all((row["reserve"] > 0) == row["is_training"] for row in layers)
    assert all(row["same_operators"] for row in rows["layers"])
    assert {row["sample"][0] for row in rows["convolutions"][:-1]} == {
        *("forward", "input_gradient", "weight_gradient"),
    }
    assert all(row["on"][0] >= row["off"][0] for row in rows["benchmark_mode"])
    (search,) = rows["searches"]
    assert search["largest"] < search["failed"]
    assert search["recommended"] <= search["largest"]
    assert search["further_status"] == "ok"
    assert search["further_steps"] == 5
    assert all(trial["predicted_allocated"] == trial["allocated"] for trial in search["trials"])
    assert search["largest"] <= search["prediction_largest"] < search["failed"]
    assert [row["outcome"] for row in rows["tests"]] == ["passed"]

    for row in rows["traces"]:
        trace = load(tmp_path / row["file"])
        memory = RecordedMemory(trace["segments"])
        allocator = allocator_for(trace, memory)
        assert replay(allocator, trace["events"], [], Addresses()) == []
        assert result_of(allocator, trace) == trace["result"]
        assert (row["other_addresses"], row["same_result"]) == (0, True)
    assert {row["trace"] for row in rows["traces"]} == {"requests", "unet-tight"}


def test_a_trace_that_differs_is_told(tmp_path: Path) -> None:
    data = Path(__file__).parent / "data"
    trace = load(data / "torch213-default.json.gz")
    first = next(event for event in trace["events"] if len(event) == 3 and event[0] > 1 << 20)
    segments = [[first[2], 1]]
    with pytest.raises(AssertionError, match="where PyTorch took 1"):
        replay(allocator_for(trace, RecordedMemory(segments)), trace["events"], [], Addresses())

"""What a launched command becomes, and what a run of it says about a batch size."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import command_line
from example_report import example_report
from jsonschema import Draft202012Validator
from launch_records import LIMIT, OOM, a_run, a_step, launch, outcome, raised, record, told

from bsfind.errors import ExitCode, GpuFaultError, TargetError, TimeLimitError, UsageError
from bsfind.launch.outcome import trains_the_same
from bsfind.launch.placeholders import check, fill, names_of, trackers_off
from bsfind.launch.ranks import PROBE
from bsfind.launch.records import read_record
from bsfind.option_fields import arguments_of
from bsfind.report.diff import compare
from bsfind.report.json import read_report, schema, to_json
from bsfind.report.markup import to_markdown
from bsfind.results import Report
from bsfind.search.request import launch_settings_from
from bsfind.settings import Launch

# ------------------------------------------------------------------------------------ the command


def test_placeholders_are_filled_and_other_braces_stay() -> None:
    asked = launch(
        *("train.py", "--bs={batch_size}", '{"a": 1}', "{variant}", "x{variant}"),
        set_env=(("BS", "{batch_size}"), ("WHAT", "{variant}")),
        variants=(("plain", ""), ("amp", "--bf16 --name 'a b'")),
    )
    plain, amp = (fill(asked, name, 12, None) for name in names_of(asked))
    assert plain.arguments[1:] == ["train.py", "--bs=12", '{"a": 1}', "x"]
    assert amp.arguments[1:] == [
        *("train.py", "--bs=12", '{"a": 1}', "--bf16", "--name", "a b"),
        "x--bf16 --name 'a b'",
    ]
    assert plain.variables == {"BS": "12", "WHAT": ""}
    assert plain.as_typed.startswith("BS=12 WHAT='' ")


def test_a_file_is_copied_and_the_copy_named_in_its_place(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("batch: {batch_size}\nother: {x: 1}\n")
    asked = launch("train.py", f"--config={config}", substitute=(str(config),))
    check(asked)
    folder = tmp_path / "copies"
    folder.mkdir()
    path = Path(fill(asked, "command", 7, folder).arguments[2].removeprefix("--config="))
    assert path != config
    assert path.name == "config.yaml"
    assert path.read_text() == "batch: 7\nother: {x: 1}\n"
    assert "{batch_size}" in config.read_text()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (launch("train.py"), "there is no `{batch_size}`"),
        (launch("{batch_size}", variants=(("a", "x"),)), "`--variant` changes nothing"),
        (launch("{batch_size}", "{variant}"), "`{variant}` stands for nothing"),
        (launch("{batch_size}", "{variant}", variants=(("a", ""), ("a", "x"))), "same name twice"),
        (Launch(command=("no-such-program", "{batch_size}")), "no program `no-such-program`"),
        (launch("{batch_size}", substitute=("no-such-file",)), "cannot be read"),
        (launch("{batch_size}", substitute=(__file__,)), "does not name this file"),
    ],
)
def test_a_command_that_makes_no_sense(asked: Launch, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(asked)


def test_trackers_that_the_user_sets_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert trackers_off(launch("{batch_size}"))["WANDB_MODE"] == "disabled"
    asked = launch("{batch_size}", set_env=(("WANDB_MODE", "online"),))
    assert "WANDB_MODE" not in trackers_off(asked)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE" not in trackers_off(launch("{batch_size}"))


def test_the_command_line_that_asks_for_the_same_again() -> None:
    options = {
        **{"max_batch_size": 96, "set_env": (("BS", "{batch_size}"),)},
        **{"variant": (("amp", "--bf16 --x 'a b'"),), "memory_limit": 8 << 30},
    }
    settings = launch_settings_from((sys.executable, "train.py", "{variant}"), options)
    assert arguments_of(settings) == [
        *("launch", "--max-batch-size", "96", "--set-env", "BS={batch_size}"),
        *("--variant", "amp=--bf16 --x 'a b'", "--memory-limit", "8GiB"),
        *("--", sys.executable, "train.py", "{variant}"),
    ]


def test_the_command_line_without_a_placeholder() -> None:
    done = command_line("launch", "--", sys.executable, "train.py")
    assert done.code == ExitCode.USAGE
    assert "there is no `{batch_size}`" in done.stderr


def test_a_machine_without_a_gpu() -> None:
    code = "from bsfind.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "launch", "--", sys.executable, "{batch_size}"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.NO_DEVICE
    assert "a command is measured on a GPU" in done.stderr


# ------------------------------------------------------------------------------------ the records


def test_a_record_without_the_key_is_none() -> None:
    assert read_record(json.dumps(told()).encode(), "secret") is not None
    assert read_record(json.dumps(told()).encode(), "other") is None
    for line in (b"", b"[]", b"{}", b"\xff", json.dumps({**told(), "more": 1}).encode()):
        assert read_record(line, "secret") is None


# ------------------------------------------------------------------------------------ what it says


def test_a_run_that_made_its_steps() -> None:
    trial = outcome(a_run(record())).trial
    assert (trial.status, trial.steps, trial.peak_reserved_bytes) == ("ok", 3, 1000)
    assert (trial.step_time_s, trial.samples_per_s) == (0.5, 128.0)


@pytest.mark.parametrize(
    "more", [{"optimizers": 2}, {"steps": [a_step(i, backwards=4) for i in range(3)]}]
)
def test_samples_of_several_backward_passes_are_not_known(more: dict[str, Any]) -> None:
    trial = outcome(a_run(record(**more))).trial
    assert trial.status == "ok"
    assert trial.step_time_s == 0.5
    assert trial.samples_per_s is None


def test_an_error_that_the_command_caught_counts() -> None:
    trial = outcome(a_run(record(status="oom", message=OOM, out_of_memory=[OOM]))).trial
    assert trial.status == "oom"
    assert "went on after" in trial.message
    assert "Process 7" not in trial.message


@pytest.mark.parametrize(
    "more",
    [
        {"errors": raised("torch.OutOfMemoryError", "builtins.RuntimeError", message=OOM)},
        {"errors": raised("mine.Failed", message="no"), "out_of_memory": [OOM]},
        {
            "errors": raised(
                "builtins.RuntimeError", message="CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
            )
        },
    ],
)
def test_out_of_memory(more: dict[str, Any]) -> None:
    assert outcome(a_run(record(status="failed", **more))).trial.status == "oom"


def test_a_crash_that_other_sizes_may_not_have() -> None:
    errors = raised("builtins.ValueError", message="64 is no good")
    found = outcome(a_run(record(status="failed", errors=errors), said="Traceback …"))
    assert found.trial.error_kind == "refused"
    assert found.refusal.message == "the command failed: ValueError: 64 is no good, batch size 64"
    assert found.refusal.detail == "Traceback …"


@pytest.mark.parametrize("kind", ["builtins.TypeError", "builtins.ModuleNotFoundError"])
def test_a_crash_at_every_size(kind: str) -> None:
    errors = raised(kind, message="no")
    with pytest.raises(TargetError, match="the command failed"):
        outcome(a_run(record(status="failed", errors=errors)))


def test_a_crash_that_only_the_log_tells() -> None:
    found = outcome(a_run(status=1, said="Traceback\nValueError: bad batch\n"))
    assert found.refusal.message == "the command failed: ValueError: bad batch, batch size 64"
    with pytest.raises(TargetError, match="NameError"):
        outcome(a_run(status=1, said="NameError: name 'x' is not defined"))
    with pytest.raises(TargetError, match="SIGKILL"):
        outcome(a_run(status=-9))
    with pytest.raises(TargetError, match="status 2"):
        outcome(a_run(status=2, said="usage: train.py [-h]"))
    assert outcome(a_run(status=1, said=f"torch.OutOfMemoryError: {OOM}")).trial.status == "oom"


def test_a_fault_of_the_gpu_is_told_as_one() -> None:
    errors = raised(
        "builtins.RuntimeError", message="CUDA error: uncorrectable ECC error encountered"
    )
    with pytest.raises(GpuFaultError):
        outcome(a_run(record(status="failed", errors=errors)))


def test_a_short_training_is_a_whole_one() -> None:
    ended = record(status="ended", steps=[a_step(0), a_step(1)])
    trial = outcome(a_run(ended, status=0)).trial
    assert (trial.status, trial.steps) == ("ok", 2)


def test_a_data_set_that_is_shorter_than_a_batch() -> None:
    without_step = record(status="ended", steps=[], loaders=[[64, 50], [16, 900]])
    trial = outcome(a_run(without_step, status=0)).trial
    assert (trial.error_kind, trial.delivered_batch_size) == ("short_batch", 50)
    assert trial.message == "the data set has 50 samples, the batch size is 64: no step"
    assert outcome(a_run(record(loaders=[[64, 50]]))).trial.error_kind == "short_batch"
    assert outcome(a_run(record(loaders=[[64, 64], [64, 50]]))).trial.status == "ok"


def test_a_command_that_ends_without_a_step() -> None:
    found = outcome(a_run(record(status="ended", steps=[]), status=0))
    assert found.trial.error_kind == "refused"
    assert "without an optimizer step" in found.refusal.message
    with pytest.raises(TargetError, match="no process of it has used CUDA"):
        outcome(a_run(status=0))


def test_a_command_that_trains_on_the_host() -> None:
    with pytest.raises(TargetError, match="does not use CUDA"):
        outcome(a_run(record(steps=[], on_host=3, device=None)))
    nothing = [
        a_step(i, peak_reserved_bytes=0) for i in range(3)
    ]  # an optimizer has looked for CUDA
    with pytest.raises(TargetError, match="has made 3 optimizer steps without"):
        outcome(a_run(record(steps=nothing)))


def test_a_command_that_takes_too_long() -> None:
    with pytest.raises(TimeLimitError, match="has not made its steps after 1 min"):
        outcome(a_run(late=True))


def test_memory_that_grows_with_every_step() -> None:
    steps = [a_step(i, held_bytes=i << 20) for i in range(20)]
    assert outcome(a_run(record(steps=steps))).trial.error_kind == "leak"
    level = [a_step(i, held_bytes=min(i, 3) << 20) for i in range(20)]
    assert outcome(a_run(record(steps=level))).trial.status == "ok"


def test_more_memory_than_was_allowed() -> None:
    steps = [a_step(i, peak_reserved_bytes=2 * LIMIT) for i in range(3)]
    trial = outcome(a_run(record(steps=steps))).trial
    assert trial.status == "oom"
    assert "sets a limit of its own" in trial.message


def test_steps_that_ask_for_the_same_memory() -> None:
    more = record(steps=[a_step(i, requested_bytes=i) for i in range(3)])
    assert trains_the_same(record(), record())
    assert not trains_the_same(record(), more)


# ------------------------------------------------------------------------------------ the probe


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(PROBE), str(folder)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_probe_lets_the_users_own_sitecustomize_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.mine = __name__\n")
    code = "import sys, sitecustomize; print(sys.mine, sitecustomize.__file__, sys.path)"
    done = python(code, tmp_path, BSFIND_PROBE="{}")
    assert done.stdout.startswith(f"sitecustomize {tmp_path}"), done.stderr
    assert str(PROBE) not in done.stdout


def test_the_probe_loads_nothing_before_torch(tmp_path: Path) -> None:
    code = "import sys; print(*sys.modules)"
    without, watched = (
        set(python(code, tmp_path, **more).stdout.split()) for more in ({}, {"BSFIND_PROBE": "{}"})
    )
    assert "sitecustomize" in watched
    assert watched <= without


def test_step_does_nothing_elsewhere() -> None:
    import bsfind

    bsfind.step()


# ------------------------------------------------------------------------------------ the report


def launched_report(**variants: str) -> Report:
    report = example_report()
    names = list(variants) or ["command"]
    rows = zip(report.results, names, strict=False)
    results = tuple(dataclasses.replace(result, precision=name) for result, name in rows)
    assert report.recommendation is not None
    told = {
        **{"command": ["python", "train.py", "{batch_size}"], "set_env": {}, "substitute": []},
        **{"variants": variants, "listen": None, "variables": {}, "logs": "/tmp/logs"},
    }
    recommendation = dataclasses.replace(report.recommendation, precision=names[-1], check="train")
    return dataclasses.replace(
        report, launch=told, workload={}, model=None, results=results, recommendation=recommendation
    )


def test_the_report_of_a_command() -> None:
    report = launched_report(fp32="", amp="--bf16")
    document = json.loads(to_json(report))
    Draft202012Validator(schema()).validate(document)
    assert document["workload"] is None
    assert [row["variant"] for row in document["results"]] == ["fp32", "amp"]
    assert {row["precision"] for row in document["results"]} == {"launched"}
    assert read_report(to_json(report).encode()) == report


def test_the_screen_of_a_command() -> None:
    text = to_markdown(launched_report(fp32="", amp="--bf16"))
    assert text.startswith("**bsfind** · python train.py '{batch\\_size}' · training")
    assert "| variant |" in text
    assert "(variant amp)" in text
    alone = to_markdown(launched_report())
    assert "Train with batch size 392:" in alone
    assert "vs fp32" not in alone


def test_two_reports_of_other_commands_are_told_apart() -> None:
    old, new = launched_report(amp=""), launched_report(amp="--bf16")
    assert any("different commands" in text for text in compare(old, new, 0.0).warnings)

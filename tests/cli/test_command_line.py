"""The command line through real processes, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.processes import MODELS, ROOT, bsfind
from tests.exhaustive import exhaustive

from bsfind import __version__
from bsfind.simulation.gpus.catalogue import known_gpus
from bsfind.units import format_bytes

NET = f"{MODELS}/well_behaved.py:ConvNet"
IMAGES = ("--input-shape", "3,32,32")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run"], ["Missing argument"]),
        (["run", "models", *IMAGES], ["`models` is not `MODULE:ATTRIBUTE`"]),
        (["run", "models.Net", *IMAGES], ["write it like `models:Net`"]),
        (["run", "net.py", *IMAGES], ["write `net.py:Net`"]),
        (["run", NET, *IMAGES, "--seq-len", "128"], ["`--seq-len`", "no meaning"]),
        (["run", NET, "--input-shape", "3x32x32"], ["write `3,32,32`"]),
        (["run", NET, "--input", "3,4"], ["has no name", "input_ids=128:int64:0..30522"]),
        (["run", NET, "--input", "x=3:int65"], ["is not a dtype"]),
        (
            ["run", NET, *IMAGES, "--input", "x=3", "--input", "x=4"],
            ["`--input x=…` is given twice"],
        ),
        (["run", NET, *IMAGES, "--batch-fn", "a:b"], ["`--batch-fn` cannot be combined"]),
        (["run", NET, *IMAGES, "--precision", "fp32,fp8"], ["`fp8` is not a precision"]),
        (["run", NET, *IMAGES, "--memory-limit", "8G"], ["ambiguous", "`8GiB`", "`8GB`"]),
        (["run", NET, *IMAGES, "--headroom", "0.05"], ["write `5%`"]),
        (["run", NET, *IMAGES, "--tolerance", "3"], ["must be less than 100%"]),
        (["run", NET, *IMAGES, "--trial-timeout", "0"], ["not a duration from 1ms to 8760h"]),
        (["run", NET, *IMAGES, "--device", "gpu"], ["`gpu` is not a device"]),
        (
            ["run", NET, *IMAGES, "--gpu", "4091"],
            ["is not a GPU that bsfind knows", "`bsfind gpus`"],
        ),
        (
            ["check", NET, *IMAGES, "-b", "8", "--gpu", "3080"],
            ["can be several GPUs", "`rtx-3080-12gb`"],
        ),
        (["run", NET, *IMAGES, "--gpu", "4090", "--device", "cuda"], ["`--gpu` names a simulated"]),
        (["run", NET, *IMAGES, "--loss", "crossentropy"], ["not one of auto, cross-entropy, mse"]),
        (["run", NET, *IMAGES, "--model-arg", "width"], ["is not `KEY=VALUE`"]),
        (["run", NET, *IMAGES, "--min-batch-size", "9", "--max-batch-size", "8"], ["is above"]),
        (
            ["run", NET, *IMAGES, "--multiple-of", "9", "--max-batch-size", "8"],
            ["no multiple of 9"],
        ),
        (["run", NET, *IMAGES, "--mode", "infer", "--grad-checkpoint"], ["no meaning"]),
        (["run", NET, *IMAGES, "--export", "report.pdf"], ["end it in .json"]),
        (["run", NET, *IMAGES, "--export", "no/such/folder/r.json"], ["there is no folder"]),
        (
            ["run", NET, *IMAGES, "--gpu", "1GiB", "--app-dir", "no/folder"],
            ["`--app-dir`: there is no folder"],
        ),
        (["run", NET, *IMAGES, "--json", "--quiet"], ["exclude each other"]),
        (["run", NET, *IMAGES, "--hedroom", "1%"], ["--headroom"]),
        (["check", NET, *IMAGES], ["--batch-size"]),
        (["find"], ["No such command"]),
    ],
)
def test_usage_errors(arguments: list[str], named: list[str]) -> None:
    done = bsfind(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    # Of another torch than predictions were compared with, a warning may come first.
    assert any(line.startswith("error: ") for line in done.stderr.splitlines())
    for text in named:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def loaded_modules(*arguments: str) -> set[str]:
    code = (
        "import sys\n"
        f"sys.argv = ['bsfind', *{list(arguments)!r}]\n"
        "from bsfind.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.stderr.write('|'.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return set(done.stderr.rsplit("\n", 1)[-1].split("|"))


HEAVY = {"torch", "numpy", "pynvml", "matplotlib"}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("check", "--help"), ("--version",), ("schema",)]
)
def test_nothing_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    assert not loaded_modules(*arguments) & HEAVY


@pytest.mark.parametrize("options", [("--input-shape", "3x4"), (*IMAGES, "--gpu", "rtx-4091")])
def test_a_typo_costs_no_import_of_torch(options: tuple[str, ...]) -> None:
    assert not loaded_modules("run", NET, *options) & HEAVY


def test_help_loads_next_to_nothing_of_bsfind() -> None:
    ours = {name for name in loaded_modules("--help") if name.startswith("bsfind.")}
    assert not {name for name in ours if name.split(".")[1] in ("worker", "devices")}
    assert "bsfind.search.finder" not in ours


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    # Modules of the worker's side need torch, which is not what this is about.
    files = [
        path
        for path in (ROOT / "src" / "bsfind").rglob("*.py")
        if not {"workload", "trace", "kernels"} & set(path.parts)
        and path.stem
        not in ("cuda", "memory_history", "simulated", "demo", "attribution", "device")
    ]
    assert len(files) > 30
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n"
    code += (
        "    for key in [k for k in sys.modules if k.startswith('bsfind')]: del sys.modules[key]\n"
    )
    code += "    if not name.endswith('__main__'): importlib.import_module(name)\n"
    names = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in files
    ]
    subprocess.run([sys.executable, "-c", code, *names], check=True, timeout=120)


def test_version() -> None:
    assert bsfind("--version").stdout == f"bsfind {__version__}\n"
    assert bsfind("-V").returncode == 0


def test_no_arguments_show_the_help() -> None:
    done = bsfind()
    assert done.stderr.startswith("Usage: ")
    assert done.stdout == ""
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("output", "device"),
    [
        *(((), "auto"), (("-q",), "cuda"), (("--json",), "auto")),
        *(exhaustive((), "cuda"), exhaustive(("-q",), "auto"), exhaustive(("--json",), "cuda")),
    ],
)
def test_no_gpu(output: tuple[str, ...], device: str) -> None:
    """In a pipe nothing stands in for a GPU: a script must not get the answer for another card."""
    done = bsfind("run", NET, *IMAGES, "--device", device, *output)
    assert done.returncode == 3
    assert "no usable GPU was found" in done.stderr
    assert "hint: predict for one that is not here: `--gpu rtx-4090`" in done.stderr
    assert "`--device sim`" in done.stderr
    if output == ("--json",):
        assert json.loads(done.stdout)["status"] == "failed"
    else:
        assert done.stdout == ""


def test_schema_prints_itself() -> None:
    done = bsfind("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout)["type"] == "object"


def test_gpus_as_json_without_a_gpu() -> None:
    done = bsfind("gpus", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document.keys() == {"gpus", "known"}
    assert {"key", "name", "total_bytes", "compute_capability"} < document["known"][0].keys()
    assert "rtx-4090" in [gpu["key"] for gpu in document["known"]]


@pytest.mark.parametrize("columns", ["40", "60", "80", "120"])
def test_gpus_lists_the_known_ones_uncut(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = bsfind("gpus")
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    for gpu in known_gpus():
        assert gpu.name in done.stdout
        assert format_bytes(gpu.total_bytes) in done.stdout
        assert (gpu.key in done.stdout) == (columns != "80")
    if columns != "40":  # the longest name is longer than that
        assert max(map(len, done.stdout.splitlines())) <= int(columns)


def test_env() -> None:
    done = bsfind("env", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["bsfind"] == __version__
    assert "torch" in facts["packages"]


def test_unknown_key_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.bsfind]\nheadrom = '1%'\n")
    done = bsfind("run", NET, *IMAGES, folder=tmp_path)
    assert done.returncode == 2
    assert "did you mean `headroom`?" in done.stderr


def test_wrong_value_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.bsfind]\nmemory-limit = '8G'\n")
    done = bsfind("run", NET, *IMAGES, folder=tmp_path)
    assert done.returncode == 2
    assert "ambiguous" in done.stderr


def test_a_reader_that_closes_the_pipe() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bsfind", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == b""
    process.stderr.close()

"""What CI and scripts use, through real processes: pictures, --github, --fail-under, diff."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.cli.processes import MODELS, bsfind

pytestmark = pytest.mark.slow

NET = f"{MODELS}/well_behaved.py:ConvNet"
WORKLOAD = (NET, "--input-shape", "3,32,32", "--gpu", "2GiB", "--precision", "fp32")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def step(tmp_path: Path) -> dict[str, str]:
    """The variables of a step of GitHub Actions; the runner makes the files."""
    names = {"GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_OUTPUT": "output.txt"}
    for name in names.values():
        (tmp_path / name).touch()
    return {variable: str(tmp_path / name) for variable, name in names.items()}


def read(step: dict[str, str]) -> tuple[str, str]:
    return Path(step["GITHUB_STEP_SUMMARY"]).read_text(), Path(step["GITHUB_OUTPUT"]).read_text()


def annotations(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "::error" not in done.stdout
    return [line for line in done.stderr.splitlines() if line.startswith("::")]


# --------------------------------------------------------------------------------------- --github


def test_a_step_that_finds(step: dict[str, str]) -> None:
    done = bsfind("run", *WORKLOAD, "--github", "-q", **step)
    assert done.returncode == 0, done.stderr
    summary, output = read(step)
    assert output == f"batch_size={done.stdout.strip()}\nprecision=fp32\n"
    assert "| precision | max batch |" in summary
    assert annotations(done) == []


def test_a_step_where_nothing_fits(step: dict[str, str]) -> None:
    done = bsfind("run", *WORKLOAD, "--github", "--memory-limit", "3MiB", **step)
    assert done.returncode == 1, done.stderr
    (told,) = annotations(done)
    assert told.startswith("::error title=bsfind%3A does not fit::")
    assert "fp32: batch size 1 does not run" in told
    summary, output = read(step)
    assert output == "batch_size=\nprecision=\n"
    assert "| fp32 | none |" in summary


def test_a_step_whose_check_does_not_fit(step: dict[str, str]) -> None:
    done = bsfind("check", *WORKLOAD, "--github", "--batch-size", 100_000, **step)
    assert done.returncode == 1, done.stderr
    (told,) = annotations(done)
    assert "batch size 100000 does not run" in told
    assert read(step)[1] == "batch_size=\nprecision=\n"


def test_a_step_whose_model_fails(step: dict[str, str]) -> None:
    done = bsfind("run", *WORKLOAD, "--github", "--model-arg", "depth=3", **step)
    assert done.returncode == 4
    (told,) = annotations(done)
    assert told.startswith("::error title=bsfind%3A the model failed::")
    assert read(step)[1] == "batch_size=\nprecision=\n"


def test_outside_of_a_step_the_answer_is_the_same_and_a_warning_says_so() -> None:
    done = bsfind("check", *WORKLOAD, "--github", "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    assert (
        "warning: `--github` writes nothing to GITHUB_STEP_SUMMARY and GITHUB_OUTPUT" in done.stderr
    )
    failed = bsfind("check", *WORKLOAD, "--github", "--batch-size", 100_000)
    assert failed.returncode == 1
    assert annotations(failed) == []


def test_files_of_a_step_that_cannot_be_written_are_found_out_first(tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "folder")
    done = bsfind("run", *WORKLOAD, "--github", GITHUB_OUTPUT=missing)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        f"error: cannot write `{missing}`: there is no folder `{tmp_path / 'no'}`, "
        "which GITHUB_OUTPUT names"
    )
    assert done.stdout == ""


# ----------------------------------------------------------------------------------- --fail-under


def test_less_than_asked_for_is_reported_and_fails(step: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = bsfind(
        *("run", *WORKLOAD, "-q", "--github", "--export", file, "--fail-under", 1_000_000), **step
    )
    assert done.returncode == 1, done.stderr
    size = int(done.stdout)
    message = f"the recommended batch size, {size:,}, is below `--fail-under 1000000`"
    assert f"error: {message}" in done.stderr
    (told,) = annotations(done)
    assert told.endswith(f"::{message}")
    assert json.loads(file.read_text())["recommendation"]["batch_size"] == size
    assert read(step)[1].startswith(f"batch_size={size}\n")
    enough = bsfind("run", *WORKLOAD, "-q", "--fail-under", size)
    assert (enough.returncode, int(enough.stdout)) == (0, size)
    assert "--fail-under" not in enough.stderr


def test_more_than_is_allowed_cannot_be_asked_for() -> None:
    done = bsfind("run", *WORKLOAD, "--fail-under", 9, "--max-batch-size", 8)
    assert done.returncode == 2
    assert "`--fail-under 9` is above `--max-batch-size 8`" in done.stderr


# --------------------------------------------------------------------------------------- pictures


def test_a_picture_of_the_trials(tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    files = [folder / name for name in ("memory.svg", "memory.png", "report.json")]
    exports = [argument for file in files for argument in ("--export", file)]
    done = bsfind("run", *WORKLOAD, *exports, MPLCONFIGDIR=str(tmp_path / "matplotlib"))
    assert done.returncode == 0, done.stderr
    svg, png, report = files
    assert png.read_bytes().startswith(b"\x89PNG")
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    told = [title.text or "" for title in root.iter(f"{SVG}title")]
    (result,) = json.loads(report.read_text())["results"]
    for trial in result["trials"]:
        assert any(f"batch size {trial['batch_size']:,}: " in text for text in told)
    assert set(folder.iterdir()) == set(files)


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_without_matplotlib_nothing_is_searched(tmp_path: Path, ending: str) -> None:
    blocked = tmp_path / "matplotlib.py"
    blocked.write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    picture = tmp_path / f"memory{ending}"
    done = bsfind("run", *WORKLOAD, "-v", "--export", picture, PYTHONPATH=path)
    assert done.returncode == 2
    assert "pip install 'bsfind[plot]'" in done.stderr
    assert "batch size" not in done.stderr
    assert done.stdout == ""
    assert not picture.exists()


@pytest.mark.parametrize("width", [60, 120])
def test_a_plot_below_the_table(width: int) -> None:
    done = bsfind(
        "run", *WORKLOAD, "--plot", COLUMNS=str(width), PYTHONIOENCODING="utf-8", LC_ALL="C.UTF-8"
    )
    assert done.returncode == 0, done.stderr
    table, _, plot = done.stdout.partition("Peak reserved against batch size\n")
    assert "recommended" in table
    rows = [line for line in plot.splitlines() if "│" in line or "└" in line]
    assert {len(row) for row in rows} == {width}
    assert re.search(r"● fp32: [\d,]+ at most, [\d,]+ recommended", plot)


@pytest.mark.parametrize("flag", ["--json", "-q"])
def test_a_plot_needs_the_table(flag: str) -> None:
    done = bsfind("run", *WORKLOAD, "--plot", flag)
    assert done.returncode == 2
    assert "`--plot` draws below the table" in done.stderr


# ------------------------------------------------------------------------------------------- diff


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a model and of a wider one."""
    folder = tmp_path_factory.mktemp("reports")
    commands: dict[str, tuple[object, ...]] = {
        "narrow": ("run", *WORKLOAD, "-q"),
        "wide": ("run", *WORKLOAD, "-q", "--model-arg", "width=64"),
        "check": ("check", *WORKLOAD, "-q", "--batch-size", 8),
        "other": ("run", *WORKLOAD[:3], "--gpu", "3GiB", "--precision", "bf16", "-q"),
    }
    found = {}
    for name, command in commands.items():
        found[name] = folder / f"{name}.json"
        done = bsfind(*command, "--export", found[name])
        assert done.returncode == 0, done.stderr
    return found


def test_a_commit_that_makes_less_fit(files: dict[str, Path]) -> None:
    done = bsfind("diff", files["narrow"], files["wide"])
    assert done.returncode == 1, done.stderr
    assert re.search(r"Worse: fp32 max batch -\d+\.\d%, recommended -", done.stdout)
    assert "warning: different workloads: model args" in done.stderr


def test_a_commit_that_makes_more_fit(files: dict[str, Path]) -> None:
    done = bsfind("diff", files["wide"], files["narrow"], "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "better"
    assert document["threshold"] == 0.02
    assert document["warnings"] == ["different workloads: model args"]


def test_a_commit_that_changes_nothing(files: dict[str, Path]) -> None:
    done = bsfind("diff", files["narrow"], files["narrow"], "--threshold", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No figure changed by more than 0%." in done.stdout


def test_a_threshold_that_allows_it(files: dict[str, Path]) -> None:
    done = bsfind("diff", files["narrow"], files["wide"], "--threshold", "99%")
    assert done.returncode == 0, done.stdout


def test_a_report_of_check(files: dict[str, Path]) -> None:
    assert bsfind("diff", files["check"], files["check"]).returncode == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("not JSON", "it is not JSON"),
        ("[]", "it is of the type array, not object"),
        ('{"schema_version": "0.9"}', '`schema_version` is "0.9", not "1.0"'),
        ('{"schema_version": "1.0"}', "`bsfind_version` is missing"),
        ("\udcff", "it is not a text file"),
    ],
)
def test_what_is_no_report(content: str, why: str, files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    done = bsfind("diff", files["narrow"], file)
    assert done.returncode == 2
    assert f"error: `{file}` is not a bsfind report: {why}" in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_not_there(files: dict[str, Path]) -> None:
    done = bsfind("diff", files["narrow"], "no.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot read `no.json`: No such file or directory" in done.stderr


def test_reports_that_have_nothing_in_common(files: dict[str, Path]) -> None:
    done = bsfind("diff", files["narrow"], files["other"])
    assert done.returncode == 2
    assert "nothing in common" in done.stderr
    assert "warning: different devices" in done.stderr

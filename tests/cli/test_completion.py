"""What the shell offers after a tab, asked as the shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bsfind.cli import parameters as option

# The console script, which Typer names the variable after; `python -m bsfind` is completed by nobody.
PROGRAM = "import sys; sys.argv[0] = 'bsfind'; from bsfind.cli.main import main; main()"


def asked(*arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def offered(line: str, folder: Path) -> list[str]:
    """Return what bash offers for the last word of a line."""
    words = len(line.split()) - (not line.endswith(" "))
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(words)}
    return asked(folder=folder, _BSFIND_COMPLETE="complete_bash", **environment).split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bsfind ru", ["run"]),
        ("bsfind run --gp", ["--gpu"]),
        ("bsfind run --max", ["--max-batch-size", "--max-size"]),
        ("bsfind run --gpu rtx-30", ["rtx-3060", "rtx-3060-ti", "rtx-3090", "rtx-3090-ti"]),
        ("bsfind check a:b --gpu a10", ["a10", "a10g"]),
        ("bsfind run --gpu a10g,a", ["a10g,a10", "a10g,a16", "a10g,all"]),
        ("bsfind run --mode ", ["train", "infer"]),
        ("bsfind run --precision fp32,amp-", ["fp32,amp-fp16", "fp32,amp-bf16"]),
        ("bsfind run --profile ", ["ci", "node"]),
    ],
)
def test_what_is_offered(line: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        "[tool.bsfind.profiles.node]\nsteps = 4\n[tool.bsfind.profiles.ci]\nsteps = 5\n"
    )
    found = offered(line, tmp_path)
    assert [word for word in words if word not in found] == []
    start = line.rsplit(" ", 1)[-1]
    assert all(word.startswith(start) for word in found)
    if "--gpu " not in line:  # the catalogue grows
        assert found == words


def test_a_broken_configuration_does_not_disturb_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.bsfind]\nzzzz = ")
    assert offered("bsfind run --profile ", tmp_path) == []
    assert offered("bsfind run --gp", tmp_path) == ["--gpu"]


def test_names_between_commas() -> None:
    complete = option.names(("fp32", "amp", "amp-fp16"))
    assert complete("") == ["fp32", "amp", "amp-fp16"]
    assert complete("fp32,") == ["fp32,amp", "fp32,amp-fp16"]
    assert complete("amp,fp32,amp") == ["amp,fp32,amp-fp16"]
    assert complete("fp8") == []
    assert option.one_of(("auto", "mse"))("a") == ["auto"]


def test_the_script_for_the_shell(tmp_path: Path) -> None:
    no_detection = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = asked("--show-completion", "bash", folder=tmp_path, **no_detection)
    assert "complete -o default -F _bsfind_completion bsfind" in script
    assert "_BSFIND_COMPLETE=complete_bash" in script


def test_it_is_installed_where_the_shell_looks(tmp_path: Path) -> None:
    asked(
        "--install-completion",
        "bash",
        folder=tmp_path,
        HOME=str(tmp_path),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    script = tmp_path / ".bash_completions" / "bsfind.sh"
    assert "_BSFIND_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()

"""What people and scripts rely on: commands, options, their variables, and flags in messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer
from command_line import command_line
from typer.testing import CliRunner

from bsfind import __version__
from bsfind.cli.main import app
from bsfind.errors import ExitCode

SOURCE = Path(__file__).parents[2] / "src" / "bsfind"

COMMAND = typer.main.get_command(app)
COMMANDS = COMMAND.commands  # type: ignore[attr-defined]

WORKLOAD = {
    *("--model-arg", "--app-dir", "--input-shape", "--input", "--seq-len", "--image-size"),
    *("--batch-fn", "--batch-arg", "--mode", "--loss"),
    *("--optimizer", "--optimizer-arg", "--step", "--grad-checkpoint", "--channels-last"),
    *("--compile", "--grad-accum", "--precision"),
    *("--parallel", "--world-size", "--replicas", "--shard-by", "--parallel-arg", "--nccl-memory"),
}
TRIALS = {
    *("--steps", "--trial-timeout", "--device", "--gpu", "--context-memory", "--memory-limit"),
    *("--no-lock", "--torch-version"),
}
OUTPUT = {
    *("--json", "--quiet", "-q", "--export", "--verbose", "-v", "--no-progress", "--color"),
    *("--plot", "--github", "--profile"),
}
EVALUATION = {"--with-eval", "--eval-batch-size"}
# Frozen: to take an option away breaks scripts; to add one needs a line here and in the README.
SURFACE = {
    "run": {
        *(WORKLOAD | EVALUATION | TRIALS | OUTPUT),
        *("--min-batch-size", "--max-batch-size", "--multiple-of", "--tolerance", "--headroom"),
        *("--objective", "--time-budget", "--confirm-steps", "--global-batch"),
        *("--compare", "--fail-under"),
        *("--axis", "--batch-size", "-b", "--min-size", "--max-size"),
        "--nproc-per-node",
    },
    "check": {*(WORKLOAD | EVALUATION | TRIALS | OUTPUT), "--batch-size", "-b"},
    "inspect": {
        *(WORKLOAD | TRIALS | OUTPUT)
        - {"--quiet", "-q", "--export", "--no-lock", "--plot", "--github"},
        *("--batch-size", "-b", "--top"),
    },
    "launch": {
        *(OUTPUT | {"--steps", "--trial-timeout", "--memory-limit", "--no-lock"}),
        *("--min-batch-size", "--max-batch-size", "--multiple-of", "--tolerance", "--headroom"),
        *("--time-budget", "--confirm-steps", "--fail-under"),
        *("--set-env", "--substitute", "--listen", "--variant", "--gpu", "--context-memory"),
        "--torch-version",
    },
    "diff": {"--threshold", "--json"},
    "explain": {"--json"},
    "gpus": {"--json"},
    "env": {"--json", "--share"},
    "schema": set(),
}


def options(command: str) -> list[typer.core.TyperOption]:
    return [p for p in COMMANDS[command].params if isinstance(p, typer.core.TyperOption)]


CONFIGURABLE = [
    (command, option)
    for command in ("run", "launch", "check", "inspect")
    for option in options(command)
]


def ids(pair: object) -> str:
    return pair.name if isinstance(pair, typer.core.TyperOption) else str(pair)


def test_commands() -> None:
    assert set(COMMANDS) == set(SURFACE)


@pytest.mark.parametrize("command", SURFACE)
def test_options(command: str) -> None:
    flags = {flag for option in options(command) for flag in (*option.opts, *option.secondary_opts)}
    assert flags == SURFACE[command]


@pytest.mark.parametrize("command", SURFACE)
def test_every_command_and_option_has_help(command: str) -> None:
    assert (COMMANDS[command].help or "").strip()
    for option in options(command):
        assert (option.help or "").strip().rstrip("]").endswith((".", "memory allows")), option.name


def test_every_option_has_a_test() -> None:
    """By its name, somewhere in a test that runs a command line; this file only lists them."""
    here = Path(__file__)
    texts = [file.read_text(encoding="utf-8") for file in here.parents[1].rglob("test_*.py")]
    texts.remove(here.read_text(encoding="utf-8"))
    named = {flag for text in texts for flag in re.findall(r"""(?<=["' ])--?[a-z][\w-]*""", text)}
    both = {frozenset(option.opts) for command in SURFACE for option in options(command)}
    assert [sorted(flags) for flags in both if not flags & named] == []


@pytest.mark.parametrize(("command", "option"), CONFIGURABLE, ids=ids)
def test_every_option_has_a_panel_and_a_variable(
    command: str, option: typer.core.TyperOption
) -> None:
    flag = next(flag for flag in option.opts if flag.startswith("--"))
    assert option.rich_help_panel
    assert option.envvar == "BSFIND_" + flag.removeprefix("--").replace("-", "_").upper()
    assert f"--{option.name}".replace("_", "-") == flag  # the name in [tool.bsfind]


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_commands_mean_the_same_by_an_option(command: str) -> None:
    others = {option.name: option for option in options(command)}
    for option in options("run"):
        other = others.get(option.name)
        if other is not None:
            assert (option.opts, option.help, option.metavar, option.default) == (
                *(other.opts, other.help, other.metavar, other.default),
            )


def test_options_that_repeat() -> None:
    found = {option.name.replace("_", "-") for _, option in CONFIGURABLE if option.multiple}
    assert found == {
        *("model-arg", "input-shape", "input", "batch-arg", "optimizer-arg", "export"),
        *("parallel-arg", "set-env", "substitute", "variant"),
    }


@pytest.mark.parametrize(
    ("name", "value", "parameter", "expected"),
    [
        ("BSFIND_MIN_BATCH_SIZE", "8", "min_batch_size", 8),
        ("BSFIND_GRAD_CHECKPOINT", "1", "grad_checkpoint", True),
        ("BSFIND_QUIET", "true", "quiet", True),
        ("BSFIND_PRECISION", "bf16", "precision", ("bf16",)),
        ("BSFIND_MEMORY_LIMIT", "8GiB", "memory_limit", 8 << 30),
        ("BSFIND_GPU", "NVIDIA GeForce RTX 3090", "gpu", ("rtx-3090",)),
        ("BSFIND_GPU", "24GiB,4090, a10g", "gpu", (str(24 << 30), "rtx-4090", "a10g")),
        ("BSFIND_CONTEXT_MEMORY", "300MiB", "context_memory", 300 << 20),
    ],
)
def test_variables_are_read(
    name: str, value: str, parameter: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    outcome = command_line("run", "a:b", "--input-shape", "3")
    assert outcome.options is not None, outcome.stderr
    assert outcome.options[parameter] == expected


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSFIND_STEPS", "many")
    outcome = command_line("run", "a:b", "--input-shape", "3")
    assert outcome.code == ExitCode.USAGE
    assert "BSFIND_STEPS" in outcome.stderr
    monkeypatch.delenv("BSFIND_STEPS")
    assert "BSFIND_STEPS" not in command_line("run", "a:b", "--steps", "many").stderr


# ------------------------------------------------------------------------------------- messages


def texts_of(file: Path) -> list[tuple[int, str]]:
    """Return all string literals of a source file, parts of f-strings and docstrings included."""
    return [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def flags_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*", text)


def test_flags_are_found_in_texts() -> None:
    assert flags_in("pass `--app-dir` or --input=3, not a--b, `--`, --- or ---x") == [
        *("--app-dir", "--input"),
    ]


def test_every_flag_that_a_text_names_exists() -> None:
    known = {flag for flags in SURFACE.values() for flag in flags} | {"--help", "--version"}
    # Of the scripts in examples of `launch`, and of torchrun.
    known |= {"--bf16", "--config", "--standalone", "--nproc-per-node", "--nnodes"}
    known |= {"--max-restarts"}
    named = [
        (f"{file.relative_to(SOURCE)}:{line}", flag)
        for file in sorted(SOURCE.rglob("*.py"))
        for line, text in texts_of(file)
        for flag in flags_in(text)
    ]
    assert len(named) > 50
    assert [(where, flag) for where, flag in named if flag not in known] == []


def test_every_command_that_a_text_names_exists() -> None:
    named = [
        (f"{file.relative_to(SOURCE)}:{line}", command)
        for file in sorted(SOURCE.rglob("*.py"))
        for line, text in texts_of(file)
        for command in re.findall(r"`bsfind ([a-z]+)", text)
    ]
    assert len(named) > 5
    assert [(where, command) for where, command in named if command not in COMMANDS] == []


# ----------------------------------------------------------------------------------------- help


def help_of(*argv: str) -> str:
    result = CliRunner().invoke(app, [*argv, "--help"])
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("argv", [(), ("run",), ("check",), ("inspect",)], ids=str)
def test_help_lists_the_exit_codes(argv: tuple[str, ...]) -> None:
    text = " ".join(help_of(*argv).split())
    _, _, said = text.partition("Exit codes:")
    assert [int(n) for n in re.findall(r"(?:^|, )\s*(\d+) ", said)] == [int(c) for c in ExitCode]


@pytest.mark.parametrize("command", ["run", "check", "inspect"])
def test_help_shows_every_option_in_its_panel(command: str) -> None:
    text = help_of(command)
    for flag in SURFACE[command]:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), flag
    panels = dict.fromkeys(option.rich_help_panel for option in options(command))
    found = re.findall(r"^([A-Z]\w+):$", text, re.MULTILINE)
    assert [panel for panel in found if panel not in ("Arguments", "Options")] == list(panels)


def test_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(map(len, help_of("run").splitlines())) <= 80


def test_version() -> None:
    for flag in ("--version", "-V"):
        outcome = command_line(flag)
        assert (outcome.code, outcome.stdout) == (0, f"bsfind {__version__}\n")


def test_without_a_command_there_is_help() -> None:
    outcome = command_line()
    assert "Usage:" in outcome.stdout + outcome.stderr
    assert set(COMMANDS) <= set(re.findall(r"[a-z]+", outcome.stdout + outcome.stderr))


def test_an_unknown_command() -> None:
    outcome = command_line("ran")
    assert outcome.code == ExitCode.USAGE
    assert "ran" in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_help_shows_every_character_of_its_texts(name: str) -> None:
    """Square brackets are no markup."""
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "4000", "TERM": "dumb"})
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    texts = [getattr(parameter, "help", None) for parameter in COMMANDS[name].params]
    for text in filter(None, [*texts, COMMANDS[name].epilog]):
        assert " ".join(text.split()) in shown

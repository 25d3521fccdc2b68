"""`[tool.bsfind]` of the nearest pyproject.toml, and what overrides it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import command_line, options_of

from bsfind.cli.configuration import find_configuration

RUN = ("run", "a:b", "--input-shape", "3")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder in it, which is the current one."""
    folder = tmp_path / "src" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return tmp_path


def configure(folder: Path, table: str, header: str = "[tool.bsfind]") -> Path:
    file = folder / "pyproject.toml"
    file.write_text(f"[project]\nname = 'x'\n\n{header}\n{table}\n")
    return file


def test_the_nearest_file_with_the_table(project: Path) -> None:
    deep = project / "src" / "deep"
    assert find_configuration(deep) is None
    outer = configure(project, "steps = 4")
    assert find_configuration(deep) == outer
    configure(project / "src", "steps = 5", header="[tool.other]")
    assert find_configuration(deep) == outer
    inner = configure(project / "src", "steps = 6")
    assert find_configuration(deep) == inner
    assert options_of(*RUN)["steps"] == 6


def test_flag_over_variable_over_file_over_default(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options_of(*RUN)["steps"] == 3
    configure(project, "steps = 4")
    assert options_of(*RUN)["steps"] == 4
    monkeypatch.setenv("BSFIND_STEPS", "5")
    assert options_of(*RUN)["steps"] == 5
    assert options_of(*RUN, "--steps", "6")["steps"] == 6


def test_repeatable_options_are_overridden_as_a_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(project, 'model-arg = ["a=1", "b=2"]')
    assert list(options_of(*RUN)["model_arg"]) == [("a", "1"), ("b", "2")]
    monkeypatch.setenv("BSFIND_MODEL_ARG", "c=3 d=4")
    assert list(options_of(*RUN)["model_arg"]) == [("c", "3"), ("d", "4")]
    assert list(options_of(*RUN, "--model-arg", "e=5")["model_arg"]) == [("e", "5")]


def test_values_of_every_kind(project: Path) -> None:
    configure(
        project,
        """
        grad-checkpoint = true
        grad_accum = 4
        headroom = "2GiB"
        tolerance = 0.01
        objective = "fastest"
        precision = "bf16, amp"
        input = ["labels=:int64:0..10"]
        trial-timeout = 90
        """,
    )
    options = options_of("run", "a:b")
    assert options["grad_checkpoint"] is True
    assert options["grad_accum"] == 4
    assert options["headroom"].bytes == 2 << 30
    assert options["tolerance"] == 0.01
    assert options["objective"] == "fastest"
    assert options["precision"] == ("bf16", "amp")
    assert [str(spec) for spec in options["input"]] == ["labels=:int64:0..10"]
    assert options["trial_timeout"] == 90.0


def test_a_flag_switches_off_nothing_that_was_not_on(project: Path) -> None:
    configure(project, "compile = false")
    assert options_of(*RUN)["compile"] is False
    assert options_of(*RUN, "--compile")["compile"] is True


def test_check_takes_what_it_knows_and_passes_over_the_rest(project: Path) -> None:
    configure(project, 'steps = 7\nheadroom = "10%"')
    options = options_of("check", "a:b", "-b", "4")
    assert options["steps"] == 7
    assert "headroom" not in options


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("input-shap", "did you mean `input-shape`?"),
        ("Steps", "did you mean `steps`?"),
        ("memory_limits", "did you mean `memory-limit`?"),
        ("zzzz", "`bsfind run --help` lists them"),
        ("export", "`bsfind run --help` lists them"),
        ("context", "did you mean `context-memory`?"),
    ],
)
def test_unknown_keys(project: Path, key: str, hint: str) -> None:
    file = configure(project, f"{key} = 3")
    outcome = command_line(*RUN)
    assert outcome.code == 2
    assert outcome.options is None
    assert outcome.stderr == (
        f"error: `{file}` has an unknown key `{key}` in [tool.bsfind]\nhint: {hint}\n"
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("steps = 0", "'--steps'"),
        ("steps = 'many'", "'--steps'"),
        ("precision = 'fp8'", "`fp8` is not a precision"),
        ("precision = ['fp32', 'fp8']", "`fp8` is not a precision"),
        ("loss = ['bce']", "`bce` is not one of auto"),
        ("input-shape = ['3x4']", "`3x4` is not a shape, write `3,4`"),
        ("objective = 'best'", "'--objective'"),
        ("step = { fn = 'a:b' }", "`step` in [tool.bsfind] of"),
        ("loss = ", "is not valid TOML"),
    ],
)
def test_wrong_values(project: Path, table: str, said: str) -> None:
    configure(project, table)
    outcome = command_line(*RUN[:2])
    assert outcome.code == 2
    assert outcome.options is None
    assert said in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("value", "shapes"),
    [
        ('"3,224,224"', ["3,224,224"]),
        ("[3, 224, 224]", ["3,224,224"]),
        ("10", ["10"]),
        ('["3,32,32", "10"]', ["3,32,32", "10"]),
        ("[[3, 32, 32], [10]]", ["3,32,32", "10"]),
    ],
)
def test_shapes(project: Path, value: str, shapes: list[str]) -> None:
    configure(project, f"input-shape = {value}")
    assert [str(spec) for spec in options_of("run", "a:b")["input_shape"]] == shapes


def test_one_value_of_a_repeatable_option_needs_no_list(project: Path) -> None:
    configure(project, 'model-arg = "width=64"')
    assert list(options_of(*RUN)["model_arg"]) == [("width", "64")]


def test_a_list_for_an_option_of_comma_separated_names(project: Path) -> None:
    configure(project, 'precision = ["fp32", "amp"]')
    assert options_of(*RUN)["precision"] == ("fp32", "amp")


def test_a_gpu_that_is_simulated(project: Path) -> None:
    configure(project, 'gpu = "a10g"\ncontext-memory = "500MiB"')
    options = options_of(*RUN)
    assert (options["gpu"], options["context_memory"]) == ("a10g", 500 << 20)
    assert options_of(*RUN, "--gpu", "24GiB")["gpu"] == str(24 << 30)


def test_other_commands_do_not_read_it(project: Path) -> None:
    configure(project, "zzzz = 1")
    assert command_line("schema").code == 0
    assert command_line("--version").code == 0

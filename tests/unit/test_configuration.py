"""`[tool.bsfind]` of the nearest pyproject.toml, and what overrides it."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from command_line import command_line, options_of

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
    assert options_of(*RUN)["steps"] == 3
    configure(project, "steps = 4")
    assert options_of(*RUN)["steps"] == 4
    configure(project / "src", "steps = 5  # not [tool.bsfind]", header="[tool.other]")
    assert options_of(*RUN)["steps"] == 4
    configure(project / "src", "steps = 6")
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
        ("steps = 0", "`steps` in [tool.bsfind] of"),
        ("steps = 'many'", "`many` is not an integer from 1 to 1,000,000"),
        ("precision = 'fp8'", "`fp8` is not a precision"),
        ("precision = ['fp32', 'fp8']", "`fp8` is not a precision"),
        ("loss = 'bce'", "`bce` is not one of auto"),
        ("input-shape = ['3x4']", "`3x4` is not a shape, write `3,4`"),
        ("objective = 'best'", "`objective` in [tool.bsfind] of"),
        ("step = { fn = 'a:b' }", "`step` in [tool.bsfind] of"),
        ("steps = true", "`True` is not an integer"),
        ("steps = 3.0", "`3.0` is not an integer"),
        ("steps = 1979-05-27", "`1979-05-27` is not an integer"),
        ("precision = []", "no precision is named"),
        ("loss = ['mse']", "`['mse']` is not a text"),
        ("mode = 07:32:00", "`07:32:00` is not a text"),
        ("json = 'yes'", "`yes` is neither true nor false"),
        ("json = 1", "`1` is neither true nor false"),
        ("grad-accum = 1\ngrad_accum = 2", "has the key `grad-accum` twice in [tool.bsfind]"),
        ("app-dir = 'a\\u0000'".replace("'", '"'), "a text with a NUL character"),
        ("gpu = '9e9'", "`gpu` in [tool.bsfind] of"),
        ("model-arg = { a = 1 }", "`{'a': 1}` is not a text"),
        ("input-shape = [true, 3]", "`True` in `True,3` is not a size"),
        ("[tool.bsfind.profiles.ci]\nsteps = 0", "`steps` in [tool.bsfind.profiles.ci] of"),
        ("[[tool.bsfind.profiles]]\nsteps = 1", "must contain only tables"),
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
    configure(project, 'gpu = ["a10g", "24GiB"]')
    assert options_of(*RUN)["gpu"] == ("a10g", str(24 << 30))


def test_a_gpu_that_is_simulated(project: Path) -> None:
    configure(project, 'gpu = "a10g"\ncontext-memory = "500MiB"')
    options = options_of(*RUN)
    assert (options["gpu"], options["context_memory"]) == (("a10g",), 500 << 20)
    assert options_of(*RUN, "--gpu", "24GiB")["gpu"] == (str(24 << 30),)


def test_other_commands_do_not_read_it(project: Path) -> None:
    configure(project, "zzzz = 1")
    assert command_line("schema").code == 0
    assert command_line("--version").code == 0


# ------------------------------------------------------------------------- what the file may be

FORMS = [
    "[ tool . bsfind ]\nsteps = 9",
    "tool.bsfind.steps = 9",
    "tool . 'bsfind' . steps = 9",
    '["tool"."bsfind"]\n"steps" = 9',
    '[tool."bsf\\u0069nd"]\nsteps = 9',
    "tool = { bsfind = { steps = 9 } }",
    "[tool]\nbsfind = { steps = 0x9 }",
    "\ufeff[tool.bsfind]\nsteps = 9",
    "[tool.bsfind]\r\nsteps = 9\r\n",
    "# " + "x" * 6_000_000 + "\n[tool.bsfind]\nsteps = 9",
]


@pytest.mark.parametrize("text", FORMS, ids=range(len(FORMS)))
def test_whatever_toml_takes_for_the_table(project: Path, text: str) -> None:
    (project / "pyproject.toml").write_text(text, encoding="utf-8", newline="")
    assert options_of(*RUN)["steps"] == 9


NOT_THE_TABLE = [
    b"# [tool.bsfind]\n[tool.other]\nsteps = 9",
    b"[tool.other]\ntext = '[tool.bsfind]'",
    b"[tool.'bs\\u0066ind']",  # a literal string has no escapes
    b"[tool.other\nbroken",
    b"{{ cookiecutter }} \\u",
    b"# \xff",
    b"tool = 5",
]


@pytest.mark.parametrize("content", NOT_THE_TABLE, ids=range(len(NOT_THE_TABLE)))
def test_a_file_that_does_not_configure_bsfind(project: Path, content: bytes) -> None:
    configure(project, "steps = 4")
    (project / "src" / "pyproject.toml").write_bytes(content)
    assert options_of(*RUN)["steps"] == 4


BROKEN = {
    b"[[tool.bsfind]]\nsteps = 3": "`tool.bsfind` in",
    b"[tool]\nbsfind = 5": "`tool.bsfind` in",
    b"[[tool]]\nbsfind = { steps = 3 }": "`tool.bsfind` in",
    b"[tool.bsfind]\nsteps = " + b"9" * 5000: "a number in it has thousands of digits",
    b"[tool.bsfind]\nsteps = " + b"[" * 20_000: "nested too deep",
    b"[tool.bsfind]\nsteps = 1\nsteps = 2": "is not valid TOML",
    b"[tool.bsfind]\nloss = '\xe9'": "is not valid TOML",
    "[tool.bsfind]\nsteps = 3".encode("utf-16"): "is not valid TOML",
    b"[tool.bsfind]\n#" + b" " * (17 << 20): "has more than 16.0 MiB",
}


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_broken(project: Path, content: bytes) -> None:
    file = project / "src" / "pyproject.toml"
    file.write_bytes(content)
    outcome = command_line(*RUN)
    assert (outcome.code, outcome.options, outcome.stdout) == (2, None, "")
    assert BROKEN[content] in outcome.stderr
    assert str(file) in outcome.stderr
    assert len(outcome.stderr) < 400


def test_what_is_no_file_is_passed_over(project: Path) -> None:
    configure(project, "steps = 4")
    file = project / "src" / "pyproject.toml"
    os.mkfifo(file)
    assert options_of(*RUN)["steps"] == 4
    for target in ("/dev/zero", "pyproject.toml", "nowhere", "."):
        file.unlink()
        file.symlink_to(target)
        assert options_of(*RUN)["steps"] == 4


def test_a_file_that_cannot_be_read(project: Path) -> None:
    file = configure(project, "steps = 4")
    with mock.patch.object(Path, "open", side_effect=PermissionError(13, "Permission denied")):
        outcome = command_line(*RUN)
    assert outcome.code == 2
    assert outcome.stderr == f"error: cannot read `{file}`: Permission denied\n"


def test_without_a_current_folder(project: Path) -> None:
    folder = project / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    assert options_of(*RUN)["steps"] == 3
    assert command_line(*RUN, "--profile", "ci").code == 2
    assert command_line("schema").code == 0


# ------------------------------------------------------------------------------------- profiles

PROFILES = """
steps = 4
headroom = "8%"
model-arg = ["a=1", "b=2"]

[tool.bsfind.profiles.ci]
steps = 5
gpu = "a10g"
model-arg = "c=3"

[tool.bsfind.profiles.node]
precision = ["bf16"]
"""


def test_a_profile_overrides_the_general_options(project: Path) -> None:
    configure(project, PROFILES)
    plain, chosen = options_of(*RUN), options_of(*RUN, "--profile", "ci")
    assert (plain["steps"], plain["gpu"]) == (4, None)
    assert (chosen["steps"], chosen["gpu"]) == (5, ("a10g",))
    assert list(chosen["model_arg"]) == [("c", "3")]
    assert str(chosen["headroom"]) == "8%"
    assert options_of(*RUN, "--profile", "node")["precision"] == ("bf16",)


def test_flag_over_variable_over_profile(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(project, PROFILES)
    monkeypatch.setenv("BSFIND_PROFILE", "ci")
    assert options_of(*RUN)["steps"] == 5
    assert options_of(*RUN, "--profile", "node")["steps"] == 4
    monkeypatch.setenv("BSFIND_STEPS", "6")
    assert options_of(*RUN)["steps"] == 6
    assert options_of(*RUN, "--steps", "7")["steps"] == 7


def test_where_the_profile_stands_on_the_command_line_is_of_no_matter(project: Path) -> None:
    configure(project, PROFILES)
    assert options_of("run", "--profile", "ci", *RUN[1:])["steps"] == 5
    assert options_of(*RUN, "--steps", "9", "--profile", "ci")["steps"] == 9


@pytest.mark.parametrize(
    ("profile", "hint"),
    [
        ("nodes", "did you mean `--profile node`?"),
        ("zzzz", "it has `ci`, `node`"),
    ],
)
def test_an_unknown_profile(project: Path, profile: str, hint: str) -> None:
    file = configure(project, PROFILES)
    outcome = command_line(*RUN, "--profile", profile)
    assert (outcome.code, outcome.options) == (2, None)
    assert outcome.stderr == (f"error: there is no profile `{profile}` in `{file}`\nhint: {hint}\n")


def test_a_profile_where_there_is_none(project: Path) -> None:
    outcome = command_line(*RUN, "--profile", "ci")
    assert outcome.code == 2
    assert "no pyproject.toml here or above has a [tool.bsfind]" in outcome.stderr
    configure(project, "steps = 4")
    outcome = command_line(*RUN, "--profile", "ci")
    assert outcome.code == 2
    assert "hint: write one as `[tool.bsfind.profiles.ci]`" in outcome.stderr


def test_a_typo_in_a_profile_that_is_not_chosen(project: Path) -> None:
    file = configure(project, "[tool.bsfind.profiles.ci]\nstep-s = 1")
    outcome = command_line(*RUN)
    assert outcome.code == 2
    assert f"`{file}` has an unknown key `step-s` in [tool.bsfind.profiles.ci]" in outcome.stderr
    assert "did you mean `steps`?" in outcome.stderr


@pytest.mark.parametrize("table", ["profiles = 3", "[tool.bsfind.profiles]\nci = 3"])
def test_profiles_that_are_none(project: Path, table: str) -> None:
    configure(project, table)
    outcome = command_line(*RUN)
    assert outcome.code == 2
    assert "must contain only tables" in outcome.stderr
    assert "[tool.bsfind.profiles.NAME]" in outcome.stderr


def test_profiles_are_an_option_that_can_be_mistyped(project: Path) -> None:
    configure(project, "[tool.bsfind.profile.ci]\nsteps = 3")
    assert "did you mean `profiles`?" in command_line(*RUN).stderr


# ----------------------------------------------------------------------------------- provenance


def test_verbose_tells_where_every_option_is_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(project, PROFILES)
    monkeypatch.setenv("BSFIND_MEMORY_LIMIT", "8GiB")
    monkeypatch.setenv("BSFIND_PROFILE", "ci")
    outcome = command_line(*RUN, "-v", "--trial-timeout", "2m", "--mode", "train")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.splitlines() == [
        "--model-arg c=3 (from pyproject.toml [tool.bsfind.profiles.ci])",
        "--input-shape 3 (from the command line)",
        "--mode train (from the command line)",
        "--headroom 8% (from pyproject.toml [tool.bsfind])",
        "--steps 5 (from pyproject.toml [tool.bsfind.profiles.ci])",
        "--trial-timeout 120s (from the command line)",
        "--gpu a10g (from pyproject.toml [tool.bsfind.profiles.ci])",
        "--memory-limit 8GiB (from BSFIND_MEMORY_LIMIT)",
        "--verbose on (from the command line)",
        "--profile ci (from BSFIND_PROFILE)",
    ]
    assert outcome.stdout == ""


def test_provenance_writes_values_as_they_can_be_given(project: Path) -> None:
    configure(project, "tolerance = 0.01\nverbose = true\ncompare = ['sgd', 'checkpointing']")
    outcome = command_line(
        "run",
        "a:b",
        *("--input", "x=3", "--input", "y=:int64:0..2", "--precision", "bf16,amp"),
        *("--optimizer-arg", "lr=1", "--optimizer-arg", "nesterov=True", "--time-budget", "90s"),
    )
    assert outcome.stderr.splitlines() == [
        "--input x=3 y=:int64:0..2 (from the command line)",
        "--optimizer-arg lr=1 nesterov=True (from the command line)",
        "--precision bf16,amp (from the command line)",
        "--tolerance 1% (from pyproject.toml [tool.bsfind])",
        "--compare sgd,checkpointing (from pyproject.toml [tool.bsfind])",
        "--time-budget 90s (from the command line)",
        "--verbose on (from pyproject.toml [tool.bsfind])",
    ]


def test_without_verbose_nothing_is_told(project: Path) -> None:
    configure(project, "steps = 4")
    assert command_line(*RUN).stderr == ""

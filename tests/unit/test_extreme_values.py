"""Numbers beyond all bounds, in every option and from everywhere: usage errors that say what is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import command_line, settings_of

import bsfind
from bsfind import api
from bsfind import option_types as types
from bsfind.cli.options import OPTIONS, options_of
from bsfind.errors import UsageError
from bsfind.option_fields import SETTINGS

INTEGERS = [
    option for option in OPTIONS if re.match(r"integers?\.", str(option.kind.read.__qualname__))
]
NUMBERS = [
    option for option in OPTIONS if option.kind in (types.SIZE, types.MEMORY, types.DURATION)
]
NUMBERS += [option for option in OPTIONS if option.kind in (types.FRACTION, types.HEADROOM)]
ALL = [*INTEGERS, *NUMBERS]

NO_NUMBERS = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "0x10",
    "-1",
    "１２",
    "٣",
    "1_0",
    "+-1",
    "9" * 5000,
]
EXTREME = {
    **{
        option.name: ["0" * (option.name != "top"), "1.0", "2147483648", "1" + "0" * 30]
        for option in INTEGERS
    },
    **{
        key: ["0", "0.0009s", "8760.1h", "9" * 400, "1e3"]
        for key in ("trial_timeout", "time_budget")
    },
    "memory_limit": ["0", "1023KiB", "1025TiB", "1.5"],
    "nccl_memory": ["1025TiB", "1.5", "5%"],
    "context_memory": ["1025TiB", "9" * 400 + ".5TiB", "1.5", "5%"],
    "headroom": ["1025TiB", "100%", "9" * 400 + "%", "5", "0.05"],
    "tolerance": ["1", "100%", "9" * 400 + "%"],
}
PYTHON = [
    True,
    float("nan"),
    float("inf"),
    -1,
    -0.5,
    10**30,
    10**5000,
    1e300,
    1j,
    [1],
    b"1",
    object(),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_which_options_are_numbers() -> None:
    assert {option.name for option in ALL} == set(EXTREME)
    assert len(INTEGERS) == 17


def asked(option: Any) -> list[str]:
    """Return a command that has the option, and that is right so far."""
    command = "run" if option in options_of("run") else "inspect"
    size = ["-b", "4"] if command == "inspect" and option.name != "batch_size" else []
    return [command, "a:b", "--input-shape", "3", *size]


@pytest.mark.parametrize("option", ALL, ids=lambda option: option.name)
def test_on_the_command_line_and_in_variables(option: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [command_line(*asked(option), option.flag, text) for text in EXTREME[option.name]]
    monkeypatch.setenv(option.variable, EXTREME[option.name][-1])
    for outcome in (*told, command_line(*asked(option))):
        assert (outcome.code, outcome.options, outcome.stdout) == (2, None, "")
        assert f"'{option.flag}'" in outcome.stderr
        assert re.search(r"`.*` (is|must|has|is neither) ", outcome.stderr)
        assert len(outcome.stderr) < 500


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_none_for_any_option(text: str) -> None:
    for option in ALL:
        with pytest.raises(ValueError, match=r"^`.*` (is|must|has) "):
            option.kind.read(text)


@pytest.mark.parametrize("option", ALL, ids=lambda option: option.name)
def test_from_python(option: Any) -> None:
    for value in PYTHON:
        if option.name in SETTINGS and not (option.kind is types.COUNTS and value == [1]):
            name = option.name
            arguments: dict[str, Any] = {name: value}
            function = bsfind.check if name == "batch_size" else bsfind.find
            with pytest.raises(UsageError, match=f"^`{name}`: `.*` is not a") as raised:
                function("a:b", (3,), **arguments)
            assert len(raised.value.message) < 300


@pytest.mark.parametrize("option", [o for o in ALL if o.is_in_file], ids=lambda option: option.name)
def test_in_a_file(option: Any, folder: Path) -> None:
    values = [
        "true",
        "nan",
        "-inf",
        "1e400",
        "[1]",
        "1979-05-27",
        "{ a = 1 }",
        "-1",
        "1" + "0" * 30,
    ]
    if option.kind is types.COUNTS:
        values.remove("[1]")
    for value in (*values, *(f"'{text}'" for text in EXTREME[option.name])):
        (folder / "pyproject.toml").write_text(f"[tool.bsfind]\n{option.key} = {value}\n")
        outcome = command_line("run", "a:b", "--input-shape", "3")
        assert (outcome.code, outcome.options, outcome.stdout) == (2, None, ""), value
        where = f"error: `{option.key}` in [tool.bsfind] of `{folder / 'pyproject.toml'}`: "
        assert outcome.stderr.startswith(where)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", np.int64(4), 4),
        ("steps", "4", 4),
        ("batch_size", 2**31 - 1, 2**31 - 1),
        ("world_size", 1_000_000, 1_000_000),
        ("trial_timeout", np.float32(0.5), 0.5),
        ("trial_timeout", 365 * 24 * 3600, 31_536_000.0),
        ("trial_timeout", 0.001, 0.001),
        ("memory_limit", 1 << 50, 1 << 50),
        ("memory_limit", np.int64(8 << 30), 8 << 30),
        ("tolerance", -0.0, 0.0),
        ("tolerance", 0.9999999, 0.9999999),
        ("app_dir", Path("src"), "src"),
    ],
)
def test_what_is_within_the_bounds(name: str, value: Any, expected: Any) -> None:
    found = api._read(name, value)
    assert (found, type(found)) == (expected, type(expected))
    assert "-" not in SETTINGS[name].kind.write(found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["check", "a:b", "-b", "2000000000", "--input-shape", "3,99999,99999"],
            "`--batch-size 2000000000`: so many samples of the input `3,99999,99999` are larger than",
        ),
        (
            ["run", "a:b", "--min-batch-size", "2000000000", "--input", "x=3,99999,99999:bool"],
            "`--min-batch-size 2000000000`: so many samples of the input `x=3,99999,99999:bool` are",
        ),
    ],
)
def test_batches_that_no_tensor_can_be(options: list[str], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        settings_of(options)
    assert said in raised.value.message


def test_a_profile_of_no_end() -> None:
    outcome = command_line("run", "a:b", "--input-shape", "3", "--profile", "9" * 5000)
    assert outcome.code == 2
    assert len(outcome.stderr) < 500


def test_a_gpu_of_no_size_names_the_option() -> None:
    for size in ("9" * 400 + ".5TiB", "1025TiB", "0B"):
        outcome = command_line("run", "a:b", "--input-shape", "3", "--gpu", size)
        assert outcome.code == 2
        assert outcome.stderr.startswith("error: `--gpu`: `")
        assert "is not the memory of a GPU, from 1 MiB to 1024 TiB" in outcome.stderr

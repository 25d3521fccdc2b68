"""Any value of any option, from the command line, a variable, a file or Python: taken, or a usage error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind import api
from bsfind.cli.options import OPTIONS, options_of
from bsfind.errors import UsageError
from bsfind.option_fields import SETTINGS, arguments_of
from bsfind.search.request import settings_from
from tests.fuzz import check_outcome, examples
from tests.unit.command_line import Outcome, command_line, settings_of

pytestmark = pytest.mark.fuzz

# ------------------------------------------------------------------------------------ what is thrown

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.just("\udcff")
DIGITS = st.text("0123456789", min_size=1, max_size=25) | st.just("9" * 1000) | st.just("１２")
NUMBERS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "", "-", "+", " "]),
        DIGITS,
        st.sampled_from(["", "", ".5", ".", "e9", "e999", "_0", "/3"]),
        st.sampled_from(["", "", "%", "GiB", "GB", "G", "B", "TiB", "s", "ms", "m", "h", "d", " "]),
    ),
)
SHAPES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "", "x=", "labels=", "class=", "a b="]),
        st.lists(DIGITS | st.sampled_from(["3", "0", "-1", "B", ""]), max_size=4).map(",".join),
        st.sampled_from(["", ":int64", ":uint8", ":float16", ":bool", ":torch.int32", ":x", ":"]),
        st.sampled_from(["", ":0..2", ":0..256", ":-1..9", ":..", ":0.." + "9" * 30, ":5..1", ":"]),
    ),
)
NAMES = st.sampled_from(
    [
        *(
            "",
            "nan",
            "inf",
            "-inf",
            "None",
            "True",
            "true",
            "auto",
            "fp32,amp",
            "bf16, tf32",
            "all",
        ),
        *(
            "a:b",
            "a.py:b.c",
            "a:b()",
            ":",
            "a:",
            "../x/y.py:Z",
            "adamw",
            "sgd",
            "mse",
            "train",
            "infer",
        ),
        *(
            "rtx-4090",
            "a100",
            "24GiB",
            "cuda:0",
            "cuda:99999",
            "sim",
            "largest",
            "fastest",
            "always",
        ),
        *(
            "width=64",
            "a=b=c",
            "=",
            "lr=",
            "--json",
            "-b",
            "--",
            "-",
            "x.json",
            "/",
            ".",
            "~",
            "ci",
        ),
    ]
)
TEXTS = NAMES | NUMBERS | SHAPES | st.text(CHARACTERS, max_size=20)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 10**4000])
    | st.floats()
    | st.complex_numbers()
    | TEXTS
    | st.binary(max_size=4)
    | st.builds(object)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=2)
    ),
    max_leaves=6,
)
SEARCHES = st.sampled_from([("run", "a:b"), ("check", "a:b", "-b", "4")])
INPUTS = st.sampled_from([(), ("--input-shape", "3"), ("--batch-fn", "a:b")])


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder, which is the current one."""
    with pytest.MonkeyPatch.context() as patch:
        found = tmp_path_factory.mktemp("settings")
        patch.chdir(found)
        yield found


def check(outcome: Outcome) -> None:
    """A usage error, or settings that a command line asks for again."""
    check_outcome(outcome.code, outcome.stdout, outcome.stderr, allowed=(0, 2))
    if outcome.options is None or outcome.code == 2:
        return
    try:
        found = settings_from(outcome.options["target"], outcome.options, outcome.given)
    except UsageError:
        return
    assert settings_of(arguments_of(found)) == found


# ---------------------------------------------------------------------------------- from everywhere


@given(
    command=SEARCHES,
    inputs=INPUTS,
    options=st.lists(st.tuples(st.sampled_from(OPTIONS), TEXTS), min_size=1, max_size=3),
    joined=st.booleans(),
)
@examples(4000)
def test_command_lines(
    command: tuple[str, ...], inputs: tuple[str, ...], options: Any, joined: bool
) -> None:
    known = options_of(command[0])
    arguments = [
        argument
        for option, text in options
        if option in known
        for argument in ([f"{option.flag}={text}"] if joined else [option.flag, text])
    ]
    check(command_line(*command, *inputs, *arguments))


@given(
    command=SEARCHES,
    inputs=INPUTS,
    variables=st.dictionaries(st.sampled_from([o.variable for o in OPTIONS]), TEXTS, max_size=3),
)
@examples(1500)
def test_variables(command: tuple[str, ...], inputs: tuple[str, ...], variables: Any) -> None:
    with mock.patch.dict(os.environ, variables):
        outcome = command_line(*command, *inputs)
    check(outcome)


OF_PYTHON = [name for name, setting in SETTINGS.items() if setting.part != "launch"]


@given(
    inputs=VALUES | st.just((3, 4)),
    options=st.dictionaries(st.sampled_from([*OF_PYTHON, "no_lock"]), VALUES, max_size=3),
)
@examples(3000)
def test_python(inputs: Any, options: dict[str, Any]) -> None:
    options.pop("input", None)
    function = api.check if "batch_size" in options else api.find
    searched = [o for o in options if o in SETTINGS and SETTINGS[o].is_of_search]
    if function is api.check:
        options = {name: value for name, value in options.items() if name not in searched}
    with mock.patch.object(api, "_run", lambda found, *_: found):
        try:
            found: Any = function("a:b", inputs, **options)
        except UsageError:
            return
    texts = [
        text
        for pairs in (found.workload.model_args, found.workload.optimizer_args)
        for _, text in pairs
    ]
    if not any("\0" in text for text in texts):
        assert settings_of(arguments_of(found)) == found


# --------------------------------------------------------------------------------------- from files


def toml(value: Any) -> str:
    """Write a value, or something near it, as TOML."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        return (
            '"'
            + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value)
            + '"'
        )
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{toml(k)} = {toml(v)}' for k, v in value.items())} }}"
    return str(value)


KEYS = st.sampled_from([o.key for o in OPTIONS] + ["profiles", "zzzz", "Steps"]) | NAMES.map(toml)
LINES = st.builds(
    "{} = {}".format,
    KEYS | st.builds("{}.{}".format, KEYS, KEYS),
    VALUES.map(toml)
    | st.sampled_from(["1979-05-27", "07:32:00", "0x10", "1_000", "inf", "nan", "["]),
)
HEADERS = st.sampled_from(
    [
        *("[tool.bsfind]", "[ tool . bsfind ]", "[\"tool\".'bsfind']", "[tool]", "[[tool.bsfind]]"),
        *("[tool.bsfind.profiles.ci]", "[tool.bsfind.profiles]", "[[tool.bsfind.profiles.ci]]"),
        *("[tool.other]", "# [tool.bsfind]", "bsfind.steps = 5", "tool.bsfind.steps = 5", "[", ""),
        *("bsfind = 5", "tool = { bsfind = { steps = 5 } }", "\ufeff[tool.bsfind]", "\x85", "\r"),
    ]
)
DOCUMENTS = st.lists(HEADERS | LINES | st.text(max_size=8), max_size=6).map("\n".join)


@given(
    content=DOCUMENTS.map(lambda text: text.encode("utf-8", "replace"))
    | DOCUMENTS.map(lambda text: text.encode("utf-16", "replace"))
    | st.binary(max_size=30).map(lambda data: b"[tool.bsfind]\n" + data),
    profile=st.sampled_from([(), ("--profile", "ci")]),
)
@examples(3000)
def test_files(content: bytes, profile: tuple[str, ...], folder: Path) -> None:
    file = folder / "pyproject.toml"
    file.write_bytes(content)
    try:
        outcome = command_line("run", "a:b", "--input-shape", "3", *profile)
    finally:
        file.unlink()
    check(outcome)

"""Names of Python objects: read, resolved, and helped with when they do not exist."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsfind import import_path
from bsfind.errors import TargetError
from bsfind.import_path import (
    ImportPath,
    is_import_path,
    parse_import_path,
    parse_value,
    resolve,
    value_text,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the current one and first on `sys.path`; what is imported is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def find(text: str) -> object:
    return resolve(parse_import_path(text))


@pytest.mark.parametrize(
    ("text", "path", "is_file"),
    [
        ("pkg.models:Net", ImportPath("pkg.models", "Net"), False),
        ("pkg:Zoo.small", ImportPath("pkg", "Zoo.small"), False),
        ("train.py:Net", ImportPath("train.py", "Net"), True),
        ("../my code/train.py:Net", ImportPath("../my code/train.py", "Net"), True),
        (r"C:\code\train.py:Net", ImportPath(r"C:\code\train.py", "Net"), True),
    ],
)
def test_read(text: str, path: ImportPath, is_file: bool) -> None:
    assert parse_import_path(text) == path
    assert path.is_file is is_file
    assert str(path) == text
    assert is_import_path(text)


def test_a_plain_name_is_no_import_path() -> None:
    assert not is_import_path("adamw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.py", "`train.py` names a file but nothing in it, write `train.py:Net`"),
        (
            "pkg.models.Net",
            "`pkg.models.Net` is not `MODULE:ATTRIBUTE`, write it like `pkg.models:Net`",
        ),
        ("Net", "`Net` is not `MODULE:ATTRIBUTE`, write it like `mypkg.models:Net`"),
        (":Net", "`:Net` is not `MODULE:ATTRIBUTE`, write it like `mypkg.models:Net`"),
        ("pkg:", "`` in `pkg:` is not the name of an attribute"),
        ("pkg:Net()", "`Net()` in `pkg:Net()` is not the name of an attribute"),
        ("my-pkg:Net", "`my-pkg` in `my-pkg:Net` is neither a module's name nor a path to a `.py`"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_import_path(text)


def test_modules_and_files(project: Path) -> None:
    write(project / "pkg/__init__.py", "")
    write(project / "pkg/models.py", "class Zoo:\n    small = 'a small one'\n")
    write(project / "scripts/helper.py", "NAME = 'helped'\n")
    write(project / "scripts/train.py", "from helper import NAME\n")
    assert find("pkg.models:Zoo.small") == "a small one"
    assert find("scripts/train.py:NAME") == "helped"  # its siblings can be imported
    assert find(f"{project}/scripts/train.py:NAME") == "helped"


def test_a_file_named_like_a_module_that_is_loaded(project: Path) -> None:
    write(project / "json.py", "WHO = 'mine'\n")
    assert find("json.py:WHO") == "mine"
    import json

    assert not hasattr(json, "WHO")


def test_a_file_is_run_once_whatever_is_asked_of_it(project: Path) -> None:
    write(project / "once.py", "class Net: ...\ndef step(model): return isinstance(model, Net)\n")
    net, step = find("once.py:Net"), find("./once.py:step")
    assert callable(net)
    assert callable(step)
    assert step(net())


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("models:Nett", "cannot find `Nett` in `models`", "did you mean `models:Net`?"),
        ("models:NET", "cannot find `NET` in `models`", "did you mean `models:Net`?"),
        (
            "models:Zoo.smal",
            "cannot find `smal` in `models:Zoo`",
            "did you mean `models:Zoo.small`?",
        ),
        ("models:Zoa.small", "cannot find `Zoa` in `models`", "did you mean `models:Zoo`?"),
        (
            "models:transformer",
            "cannot find `transformer` in `models`",
            "it defines `Net`, `Zoo`",
        ),
        ("modells.py:Net", "there is no file `modells.py`", "did you mean `models.py`?"),
        ("sub/models.py:Net", "there is no file `sub/models.py`", ""),
        (f"{'m' * 300}.py:Net", f"cannot read `{'m' * 300}.py`", ""),
    ],
)
def test_what_is_not_there(project: Path, text: str, message: str, hint: str) -> None:
    write(project / "models.py", "class Net: ...\n\n\nclass Zoo:\n    small = 1\n")
    with pytest.raises(TargetError) as failure:
        find(text)
    assert failure.value.message == message
    assert failure.value.hint == hint


def test_a_file_that_is_there_but_not_on_the_path(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project / "only_a_file.py", "class Net: ...\n")
    monkeypatch.setattr(sys, "path", [str(project / "elsewhere"), *sys.path[1:]])
    with pytest.raises(TargetError) as failure:
        find("only_a_file:Net")
    assert failure.value.hint == "pass the file itself: `only_a_file.py:Net`"
    assert find("only_a_file.py:Net")


def test_a_module_that_is_nowhere(project: Path) -> None:
    with pytest.raises(TargetError) as failure:
        find("nowhere_to_be_found:Net")
    assert failure.value.message == "cannot import `nowhere_to_be_found`"
    assert failure.value.detail == "No module named `nowhere_to_be_found`"
    assert "`--app-dir`" in failure.value.hint
    assert f"searched `{project}` first" in failure.value.hint
    with pytest.raises(TargetError, match="cannot import"):
        find("x" * 300 + ":Net")


def test_the_package_around_a_module_is_missing(project: Path) -> None:
    with pytest.raises(TargetError) as failure:
        find("nowhere_to_be_found.models:Net")
    assert failure.value.message == "cannot import `nowhere_to_be_found.models`"
    assert failure.value.detail == "No module named `nowhere_to_be_found`"
    assert failure.value.hint.startswith(f"`nowhere_to_be_found` was not found in `{project}`")


@pytest.mark.parametrize("text", ["failing:Net", "failing.py:Net"])
def test_what_the_users_code_raises_passes_through(project: Path, text: str) -> None:
    write(project / "failing.py", "import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        find(text)
    write(project / "failing.py", "raise OSError('no data set')\n")
    with pytest.raises(OSError, match="no data set"):
        find(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.1", -0.1),
        ("1e-3", 1e-3),
        ("(1, 2)", (1, 2)),
        ("[8, 8]", [8, 8]),
        ("{'a': 1}", {"a": 1}),
        ("None", None),
        ("True", True),
        ("true", True),
        ("FALSE", False),
        ("'3'", "3"),
        ("relu", "relu"),
        ("", ""),
        ("a b=c", "a b=c"),
        ("https://host:port", "https://host:port"),
        ("pkg.mod:attr", "pkg.mod:attr"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_value_that_is_the_result_of_a_call(project: Path) -> None:
    write(project / "configs.py", "def small():\n    return {'width': 64}\n")
    assert parse_value("configs:small()") == {"width": 64}
    assert parse_value("configs.py:small()") == {"width": 64}
    with pytest.raises(TargetError, match="cannot find `smal`"):
        parse_value("configs:smal()")


@pytest.mark.parametrize(
    "value",
    [
        *(3, -0.5, 1e-7, True, None, (1, 2), [1, (2,)], {"a": [1]}, {1}, b"x"),
        *("x", "3", "'x'", "True", "true", "None", "", "a b", "1,2", "lr=3"),
    ],
    ids=repr,
)
def test_a_value_and_its_text(value: object) -> None:
    found = parse_value(value_text(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    [object(), len, float("nan"), Path("x"), [object()]],
    ids=("object", "function", "nan", "path", "list"),
)
def test_values_that_have_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="no text stands for a"):
        value_text(value)


def test_paths_are_of_the_folder_in_which_the_process_began(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project / "hydra.py", "class Net: pass")
    monkeypatch.setattr(import_path, "_folder", None)
    import_path.keep_folder()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert find("hydra.py:Net").__name__ == "Net"  # type: ignore[attr-defined]
    assert import_path.in_folder(Path("src")) == project / "src"
    assert import_path.in_folder(Path("/src")) == Path("/src")
    with pytest.raises(TargetError, match=r"no file `hydr.py`") as caught:
        find("hydr.py:Net")
    assert caught.value.hint == "did you mean `hydra.py`?"

"""What every test starts from: the same environment everywhere, and reviewed texts to compare with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no failure.
hypothesis.settings.register_profile("bsfind", deadline=None)
hypothesis.settings.load_profile("bsfind")

GOLDEN = Path(__file__).parent / "golden"

# What a machine or a CI service sets would change widths, colours and answers.
_FOREIGN = ("BSFIND_", "GITHUB_")
_OURS = ("BSFIND_FAKEGPU", "BSFIND_TEST_")
_FOREIGN_NAMES = (
    "FORCE_COLOR",
    "NO_COLOR",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTHONDONTWRITEBYTECODE",  # each process would compile all of bsfind
)
_FIXED = {"COLUMNS": "80", "TERM": "dumb", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
_FIXED["BSFIND_CUDNN"] = "off"  # an environment with cuDNN answers as one without


def _set_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        foreign = name.startswith(_FOREIGN) and not name.startswith(_OURS)
        if foreign or name in _FOREIGN_NAMES:
            monkeypatch.delenv(name)
    for name, value in _FIXED.items():
        monkeypatch.setenv(name, value)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the files of tests/golden; review the difference before it is committed",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Typer looks at some of these variables when it is imported, before any fixture runs.
    monkeypatch = pytest.MonkeyPatch()
    _set_environment(monkeypatch)
    config.add_cleanup(monkeypatch.undo)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_environment(monkeypatch)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/NAME`; `--update-golden` rewrites the file instead."""

    def compare(name: str, text: str) -> None:
        file = GOLDEN / name
        if request.config.getoption("--update-golden"):
            GOLDEN.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        assert file.exists(), f"there is no {file}: write it with --update-golden, and review it"
        assert text == file.read_text(encoding="utf-8")

    return compare

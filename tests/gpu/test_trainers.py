"""The trainers of docs/launch.md, with their commands, where their libraries are beside the fake GPU."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from tests import fakegpu
from tests.gpu.gpu import FAKE_VENV, ROOT, Gpu

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
NAMES = "|".join(map(re.escape, FILES))


def commands() -> list[Any]:
    """Return each command that has a script of the page, with the libraries that it needs."""
    written = re.findall(rf"^bsfind (launch .*\b(?:{NAMES})\b.*)$", PAGE, re.MULTILINE)
    assert len(written) == len(FILES)
    measured = [each for each in written if "--gpu" not in each]
    return [pytest.param(shlex.split(each), id=each) for each in measured]


def libraries_of(script: str) -> set[str]:
    """Return the libraries that a script imports; the Trainer of transformers needs accelerate."""
    found = set(re.findall(r"^(?:import|from) (\w+)", FILES[script], re.MULTILINE))
    return found | {"accelerate"} if "transformers" in found else found


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_page(fake_gpu: Gpu, command: list[str]) -> None:
    (script,) = set(command) & FILES.keys()
    for library in libraries_of(script) - {"argparse"}:
        if not (fakegpu.site_packages(FAKE_VENV) / library).is_dir():
            pytest.skip(f"{library} is not installed beside the fake GPU")
    (fake_gpu.folder / script).write_text(FILES[script], encoding="utf-8")
    options = ("--json", "--max-batch-size", "6", "--confirm-steps", "5")
    done = fake_gpu.bsfind(command[0], *options, *command[1:])
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == 6
    assert done.only["verified"]
    assert done.only["confirmation"]["steps"] == 5
    assert done.only["samples_per_s"] > 0

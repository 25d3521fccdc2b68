"""The commands of the pages about libraries, where the library is installed: they run, and train a real loss.

`make test` has none of these libraries. In an environment with them, the first commands of two pages run
among the quick tests.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, bsfind

PAGES = ("timm", "torchvision", "transformers", "diffusers", "recipes")


def commands() -> list[Any]:
    """Return the libraries, the files and the arguments of each command; all but two are slow."""
    found = []
    for page in PAGES:
        text = Path(ROOT, "docs", f"{page}.md").read_text(encoding="utf-8")
        written = re.findall(r"^bsfind (run .*)$", text, re.MULTILINE)
        assert written
        files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for number, command in enumerate(written):
            used = {name: code for name, code in files if f"{name}:" in command}
            target = re.match(r"run (\w+)(\.py)?", command)
            imports = re.findall(r"^(?:import|from) (\w+)", "\n".join(used.values()), re.MULTILINE)
            libraries = set(imports) if target[2] else {target[1], *imports}  # type: ignore[index]
            is_slow = number > 0 or page not in ("timm", "transformers")
            marks = [pytest.mark.slow] if is_slow else []
            arguments = shlex.split(command)
            found.append(pytest.param(libraries, used, arguments, id=command, marks=marks))
    return found


@pytest.mark.filterwarnings("ignore")  # those of the libraries
@pytest.mark.parametrize(("libraries", "files", "arguments"), commands())
def test_commands(
    libraries: set[str], files: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    for library in libraries:
        # torchvision raises RuntimeError beside a PyTorch that it was not built for.
        pytest.importorskip(library, exc_type=(ImportError, RuntimeError))
    for name, code in files.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    limits = ("--max-batch-size", 2, "--confirm-steps", 3, "--json")
    done = bsfind(*arguments, *limits, folder=tmp_path if files else ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["recommendation"]["batch_size"] == 2
    assert "loss_stand_in" not in {warning["code"] for warning in report["warnings"]}

"""Check that the installed package is whole. Run with the Python of an environment that has the wheel."""

from __future__ import annotations

import sys
from pathlib import Path

import bsfind

SOURCE = Path(__file__).parents[1] / "src" / "bsfind"


def files(folder: Path) -> set[str]:
    """Return the files of a package, relative to it."""
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }


installed = Path(bsfind.__file__).parent
if installed == SOURCE:
    sys.exit("bsfind is imported from its sources: run this with an environment that has the wheel")
if different := files(installed) ^ files(SOURCE):
    sys.exit(f"in the wheel or in the sources, not in both: {', '.join(sorted(different))}")

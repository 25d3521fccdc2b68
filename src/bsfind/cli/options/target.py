"""What is trained: panel Target."""

from __future__ import annotations

from typing import Annotated

import typer

from bsfind.cli.options.option import import_path, key_value, option, reader

_PANEL = "Target"


Target = Annotated[
    str,
    typer.Argument(
        parser=reader(import_path),
        metavar="TARGET",
        help="The model: `package.module:attr` or `path/file.py:attr`; a class, a function or an instance.",
        show_default=False,
    ),
]
ModelArg = Annotated[
    list[str] | None,
    option(
        "--model-arg",
        panel=_PANEL,
        parse=key_value,
        metavar="KEY=VALUE",
        help="Keyword argument of the class or function; repeatable. "
        "`KEY=pkg.mod:attr()` passes what the call returns.",
    ),
]
AppDir = Annotated[
    str,
    option(
        "--app-dir",
        panel=_PANEL,
        metavar="DIR",
        help="Folder that is put first on `sys.path`.",
    ),
]

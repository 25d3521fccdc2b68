"""What it is fed with: panel Inputs."""

from __future__ import annotations

from typing import Annotated

from bsfind import inputs as input_spec
from bsfind.cli.options.option import import_path, option

_PANEL = "Inputs"


InputShape = Annotated[
    list[str] | None,
    option(
        "--input-shape",
        panel=_PANEL,
        parse=input_spec.parse_input_shape,
        metavar="SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A positional input, such as `3,224,224` (without the batch dimension; float32) or "
        "`128:int64:0..30522`; repeatable.",
    ),
]
Input = Annotated[
    list[str] | None,
    option(
        "--input",
        panel=_PANEL,
        parse=input_spec.parse_input,
        metavar="NAME=SHAPE[:DTYPE[:LOW..HIGH]]",
        help="A keyword input; repeatable. `labels=:int64:0..2` is one number per sample.",
    ),
]
BatchFn = Annotated[
    str | None,
    option(
        "--batch-fn",
        panel=_PANEL,
        parse=import_path,
        metavar="pkg.mod:fn",
        help="Makes the batches: `fn(batch_size, device)` returns a tensor, tuple, dict or (args, kwargs). "
        "If it makes some tensors on `device`, the others stay on the CPU; if none, all are moved.",
    ),
]

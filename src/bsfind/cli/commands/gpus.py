"""`bsfind gpus`: the GPUs of this machine, as the driver sees them, and those that bsfind knows."""

from __future__ import annotations

from typing import Annotated

import typer


def gpus(
    json: Annotated[bool, typer.Option("--json", help="Print the lists as JSON.")] = False,
) -> int:
    """List this machine's GPUs, and the known ones.

    Of the GPUs of this machine it also tells who uses them. For the known ones, `bsfind run` and
    `bsfind check` can predict: pass their name with `--gpu`.

    The memory is what PyTorch sees on Linux; ~ marks an estimate.
    """
    from bsfind.cli.gpu_list import print_gpus  # `--help` goes without it

    return print_gpus(as_json=json)

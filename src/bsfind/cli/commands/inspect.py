"""`bsfind inspect`: what is the memory made of at this batch size?"""

from __future__ import annotations

from typing import Any

from bsfind.cli.option import command
from bsfind.cli.options import options_of


@command(options_of("inspect"))
def inspect(options: dict[str, Any], given: frozenset[str]) -> int:
    """Show what memory is made of at one batch size, and which modules hold it.

    Nothing runs: the GPU of this machine, or `--gpu`, is simulated.

    Exit 0 if it fits in every precision asked for, 1 if not.

    bsfind inspect mypkg.models:Net --batch-size 64 --input-shape 3,224,224
    bsfind inspect mypkg.models:Net -b 64 --input-shape 3,224,224 --precision amp --gpu a10g
    """
    from bsfind.cli.inspection import run_inspection

    return run_inspection(options, given)

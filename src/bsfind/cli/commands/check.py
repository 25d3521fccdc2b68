"""`bsfind check`: does this batch size fit?"""

from __future__ import annotations

from typing import Any

from bsfind.cli.options import options_of
from bsfind.cli.parameters import command


@command(options_of("check"))
def check(options: dict[str, Any], given: frozenset[str]) -> int:
    """Try one batch size: does it fit?

    Exit 0 if it fits in every precision in which the model runs, 1 if not.

    bsfind check mypkg.models:Net --batch-size 64 --input-shape 3,224,224
    bsfind check mypkg.models:Net -b 64 --input-shape 3,224,224 --memory-limit 8GiB
    bsfind check mypkg.models:Net -b 64 --input-shape 3,224,224 --gpu a10g
    """
    from bsfind.cli.session import run_session

    return run_session(options, given)

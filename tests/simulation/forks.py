"""A function in a fork of this process: whatever it does to torch, or dies of, stays there."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["in_fork"]

_LONGEST_S = 300


def in_fork(measure: Callable[[], dict[str, Any]], longest_s: int = _LONGEST_S) -> dict[str, Any]:
    """Return what `measure` returns in a fork, or how that ended (status `error`, a message).

    Args:
        measure: returns JSON types.
        longest_s: seconds after which the fork is ended.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        signal.alarm(longest_s)
        try:
            result = measure()
        except BaseException:
            result = {"status": "error", "message": traceback.format_exc()[-1500:]}
        with os.fdopen(send, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0 or not text:
        return {"status": "error", "message": f"the process ended with {code}"}
    return json.loads(text)  # type: ignore[no-any-return]

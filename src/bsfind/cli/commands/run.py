"""`bsfind run`: find the batch size."""

from __future__ import annotations

import os
from typing import Any

from bsfind.cli.options import options_of
from bsfind.cli.parameters import command
from bsfind.cli.torchrun import conducts, is_started_by_torchrun, with_ranks
from bsfind.errors import ExitCode


@command(options_of("run"))
def run(options: dict[str, Any], given: frozenset[str]) -> int:
    """Find the batch size that a model should train with.

    Trains the model for a few steps on synthetic inputs at several batch sizes, in each precision,
    records the peak memory of every trial, and recommends the batch size and precision to use.

    With `--gpu`, or at a terminal without a GPU, nothing runs: the same is predicted.

    bsfind run mypkg.models:Net --input-shape 3,224,224
    bsfind run train.py:make_model --input input_ids=512:int64:0..50257 --precision amp,bf16
    bsfind run mypkg.models:Net --input-shape 3,224,224 --gpu rtx-4090
    bsfind run mypkg.models:Net --input-shape 3,224,224 --parallel ddp --nproc-per-node 8
    BS=$(bsfind run mypkg.models:Net --input-shape 3,224,224 --precision amp -q)
    """
    if is_started_by_torchrun(os.environ):
        if not conducts(os.environ):
            return ExitCode.OK
        options, given = with_ranks(options, given, os.environ)
    from bsfind.cli.session import run_session

    return run_session(options, given)

"""Measures every rank of a training on the GPUs of this machine: torchrun over bsfind's reference step.

Each trial is a launch, as of a command of the user's (see `launched`): `devices.rank` is the script.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from bsfind.errors import NoDeviceError, NoGpuError, UsageError
from bsfind.settings import BATCH_SIZE_PLACEHOLDER, Launch, Settings

_MOST_GPUS = 64


def uuids_of_ranks(settings: Settings, identify: Callable[[str], str]) -> list[str]:
    """Return the UUIDs of the GPUs that the ranks of this machine use, in the order of the ranks.

    Args:
        settings: what was asked for, on all ranks.
        identify: returns the UUID of `cuda:N`.

    Raises:
        NoGpuError: there are not so many.
    """
    asked = settings.parallel.nproc_per_node
    assert asked is not None
    wanted = _MOST_GPUS if asked == "gpu" else int(asked)
    found: list[str] = []
    for index in range(wanted):
        try:
            found.append(identify(f"cuda:{index}"))
        except NoDeviceError as error:
            if not found:
                raise
            if asked == "gpu":
                break
            raise NoGpuError(
                f"`--nproc-per-node {asked}`: this machine has {len(found)} GPUs",
                detail=error.detail,
                hint="`gpu` runs a rank on each; `--world-size` without it measures one rank of many",
            ) from None
    return found


def on_ranks(settings: Settings, number: int) -> Settings:
    """Return the settings with the number of ranks that this machine runs.

    Raises:
        UsageError: the strategy takes no such number.
    """
    try:
        parallel = dataclasses.replace(
            settings.parallel, world_size=number, nproc_per_node=str(number)
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    workload = dataclasses.replace(settings.workload, parallel=parallel)
    return dataclasses.replace(settings, workload=workload)


def launch_of(settings: Settings, precision: str, folder: Path) -> tuple[Launch, Path]:
    """Return the command that trains on all ranks, and the file in which rank 0 tells what it has found.

    Args:
        settings: what to train, on how many ranks.
        precision: the precision of the step.
        folder: where the request of the ranks is written.
    """
    name = precision if settings.seq_len is None else f"{precision}-{settings.seq_len}"
    request = folder / f"{name}.json"
    asked = {"workload": settings.workload.to_message(), "precision": precision}
    request.write_text(json.dumps(asked), encoding="utf-8")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--max-restarts", "0")
    command = (
        *(sys.executable, *torchrun, "--nproc-per-node", str(settings.parallel.world_size)),
        *("-m", "bsfind.devices.rank", str(request), BATCH_SIZE_PLACEHOLDER),
    )
    threads = os.environ.get("OMP_NUM_THREADS", "1")  # as torchrun sets it, with a warning
    # Files of the current folder hide no module of Python's or torch's (since Python 3.11).
    variables = (("OMP_NUM_THREADS", threads), ("PYTHONSAFEPATH", "1"))
    launch = Launch(command=command, set_env=variables)
    return launch, request.with_suffix(".found")

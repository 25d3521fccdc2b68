"""Opens the device of a search: the GPUs that are measured, each with its lock, or the one to predict for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from bsfind.errors import NoGpuError
from bsfind.failures.gpu_lock import GpuLock, hold, lock_folder
from bsfind.records import DeviceInfo, ReportWarning
from bsfind.search.all_ranks import on_ranks, uuids_of_ranks
from bsfind.search.events import Events
from bsfind.search.policy import Policy, policy_for
from bsfind.search.time_budget import TimeBudget
from bsfind.settings import Settings
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool

_LAUNCH_HINT = (
    "a command is measured on a GPU; `bsfind env` shows what the driver and torch see, and `--gpu NAME` "
    "predicts for a GPU that is not here"
)
_RANKS_HINT = (
    "ranks run on GPUs; `bsfind env` shows what the driver and torch see, and `--gpu NAME --world-size N` "
    "predicts for GPUs that are not here"
)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a search runs on, once the device is open.

    Attributes:
        settings: what was asked for, with the device that was opened and the number of its ranks.
        device: the device as the first worker found it.
        policy: how trials on it are used.
        pool: where workers come from.
    """

    settings: Settings
    device: DeviceInfo
    policy: Policy
    pool: WorkerPool


def open_device(
    settings: Settings,
    pool: WorkerPool,
    worker: Worker,
    held: contextlib.ExitStack,
    clock: TimeBudget,
    events: Events,
    on_warning: Callable[[ReportWarning], object],
    *,
    use_lock: bool,
) -> Opened:
    """Open the device that was asked for, or the one to use where there is no GPU.

    Args:
        settings: what was asked for.
        pool: where workers come from.
        worker: opens the device.
        held: gets the locks.
        clock: how long it may take.
        events: asked for another device where there is no GPU; told whom a lock waits for.
        on_warning: called with what the reader of the report must know.
        use_lock: wait for the GPUs until no other bsfind measures on them.

    Raises:
        NoDeviceError: there is none.
    """
    choice = settings.device
    try:
        if not choice.is_simulated:
            settings, uuids = _gpus(settings, worker, clock)
            for uuid in sorted(uuids):  # in one order, so that no two wait for each other
                lock = held.enter_context(GpuLock(uuid, lock_folder()))
                warning = hold(lock, clock.check, events.waiting, alone=use_lock)
                if warning is not None:
                    on_warning(warning)
        device = worker.open(choice, clock.for_start())
    except NoGpuError as error:
        if settings.is_launched:
            hint = _LAUNCH_HINT if settings.launch is not None else _RANKS_HINT
            raise NoGpuError(error.message, detail=error.detail, hint=hint) from None
        other = events.no_gpu(error) if choice.device == "auto" else None
        if other is None:
            raise
        other = dataclasses.replace(other, communicators=settings.parallel.communicators)
        settings = dataclasses.replace(settings, device=other)
        device = worker.open(other, clock.for_start())
    policy = policy_for(device, is_launched=settings.is_launched)
    return Opened(settings=settings, device=device, policy=policy, pool=pool)


def _gpus(settings: Settings, worker: Worker, clock: TimeBudget) -> tuple[Settings, list[str]]:
    """Return the settings with the number of GPUs that are measured, and their UUIDs."""

    def identify(device: str) -> str:
        choice = dataclasses.replace(settings.device, device=device)
        return worker.identify(choice, clock.for_start())

    if settings.parallel.nproc_per_node is None:
        return settings, [identify(settings.device.device)]
    uuids = uuids_of_ranks(settings, identify)
    return on_ranks(settings, len(uuids)), uuids

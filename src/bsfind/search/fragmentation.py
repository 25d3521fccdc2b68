"""What expandable segments gain where much memory is reserved and not allocated."""

from __future__ import annotations

import os

from bsfind.errors import NoDeviceError, TargetError, TimeLimitError, WorkerError
from bsfind.results import ExpandableSegments
from bsfind.search.accepted_sizes import AcceptedSizes
from bsfind.search.estimate import largest_that_fits
from bsfind.search.recommend import step_down
from bsfind.search.trials import Trials
from bsfind.search.variants import with_expandable_segments
from bsfind.settings import SearchLimits
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.trial import Trial
from bsfind.worker.client import ModelDoesNotFit

_MAX_ATTEMPTS = 3


def try_expandable_segments(
    runner: Trials,
    beside: Trial,
    limits: SearchLimits,
    sizes: AcceptedSizes,
    budget_bytes: int,
    torch_version: str,
) -> ExpandableSegments | None:
    """Run a larger batch size with expandable segments, in fresh processes.

    Args:
        runner: runs the trials; its recordings tell where to look.
        beside: the trial of the recommended size without expandable segments.
        limits: limits of the search.
        sizes: the sizes that the model accepts.
        budget_bytes: what a process may use.
        torch_version: the version of torch that runs the trials.

    Returns:
        The largest that ran; None if no larger one did, or nothing larger is to be expected.
    """
    variables = with_expandable_segments(os.environ)
    settings = AllocatorSettings.from_environment({**os.environ, **variables}, torch_version)
    estimate = largest_that_fits(
        list(runner.recordings.values()), budget_bytes, settings, runner.check_time
    )
    if estimate is None:
        idle = (beside.peak_reserved_bytes or 0) - (beside.peak_allocated_bytes or 0)
        estimate = beside.batch_size + beside.batch_size * idle // max(1, budget_bytes)
    candidate = sizes.at_most(min(estimate, limits.most))
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        if candidate <= beside.batch_size:
            return None
        try:
            trial = runner.run_within(
                candidate, budget_bytes, steps=limits.steps, variables=variables
            )
        except (ModelDoesNotFit, NoDeviceError, TargetError, WorkerError):
            return None  # without NVML, say, torch 2.13 has no expandable segments
        except TimeLimitError:
            runner.check_time()
            return None
        if trial.status == "ok":
            return ExpandableSegments(
                batch_size=candidate,
                peak_allocated_bytes=trial.peak_allocated_bytes,
                peak_reserved_bytes=trial.peak_reserved_bytes,
            )
        candidate = sizes.at_most(step_down(candidate, attempt + 2))
    return None

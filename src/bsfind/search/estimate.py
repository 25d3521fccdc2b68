"""Estimates of the largest batch size that fits, which tell the bracket where to probe.

There are three sources; `Estimate` asks the best one that has an answer. Trials of a search on the fake GPU
(lstm, mlp, resnet18, bert in fp32 and amp) show what each is worth:

- a prediction for the same GPU (see `predict_first`): 2 trials. Not for every model or GPU.
- a replay of the allocations that trials recorded (`largest_that_fits`): 4 trials, in one case 6.
- a line through the peaks of trials: 7 to 15, and 2 to 4 failed confirmations. It needs nothing but peaks.

A wrong estimate costs trials, never a wrong answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from bsfind.results import PrecisionResult
from bsfind.search.bracket import Bracket
from bsfind.settings import LARGEST_BATCH_SIZE
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.allocator.recording import Recording, replay, resident_blocks
from bsfind.trial import Trial

_LARGE = 1 << 20
_CUBLAS_WORKSPACES = frozenset((8320 << 10, 32 << 20))
"""`parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp, torch 2.6-2.13."""


class Estimate:
    """Estimates batch sizes in one precision.

    Args:
        capacity_bytes: what the search may use.
        recordings: what trials asked of the allocator, by batch size; grows with the search.
        allocator: how the allocator is configured.
        predicted: the result of a prediction; None without one.
        check_time: raises TimeLimitError when the time for the whole search is over.
        is_of_axis: whether sizes are those of an axis: memory may grow faster than they do.
    """

    def __init__(
        self,
        capacity_bytes: int,
        recordings: Mapping[int, Recording],
        allocator: AllocatorSettings,
        predicted: PrecisionResult | None = None,
        check_time: Callable[[], None] = lambda: None,
        *,
        is_of_axis: bool = False,
    ) -> None:
        self._is_of_axis = is_of_axis
        self._capacity = capacity_bytes
        self._recordings = recordings
        self._allocator = allocator
        self._predicted = predicted
        self._check_time = check_time

    @property
    def expected(self) -> int | None:
        """The maximum that is expected before anything has run."""
        return self._predicted.max_batch_size if self._predicted else None

    def maximum(self, trials: Sequence[Trial]) -> int | None:
        """Return what the trials say of the maximum; None if they say too little."""
        estimate = self._from_trials(trials, self._capacity - self.shortfall_bytes(trials))
        largest_that_ran = max((t.batch_size for t in trials if t.status == "ok"), default=0)
        return None if estimate is None else max(estimate, largest_that_ran)

    def shortfall_bytes(self, trials: Sequence[Trial]) -> int:
        """Return by how much less than the device's capacity the limiting rank of trials has."""
        ran = [
            trial.limiting_capacity_bytes(self._capacity)
            for trial in trials
            if trial.status == "ok"
        ]
        return self._capacity - min(ran, default=self._capacity)

    def within_budget(self, budget_bytes: int, bracket: Bracket) -> int | None:
        """Return the largest size within a budget below the capacity, once the maximum is known."""
        predicted, best, failed = self._predicted, bracket.best, bracket.smallest_failed
        if predicted is None or predicted.recommended_batch_size is None or best is None:
            return self._from_trials(bracket.trials, budget_bytes)
        expected = predicted.max_batch_size or best.batch_size
        if best.batch_size <= expected and (failed is None or expected < failed):
            return predicted.recommended_batch_size
        # The recommended size is as much too large as the maximum was.
        return predicted.recommended_batch_size + min(0, best.batch_size - expected)

    def _from_trials(self, trials: Sequence[Trial], limit_bytes: int) -> int | None:
        if self._is_of_axis:
            return self.through_peaks(trials, limit_bytes)
        recordings = list(self._recordings.values())
        replayed = largest_that_fits(recordings, limit_bytes, self._allocator, self._check_time)
        return replayed if replayed is not None else line_through_peaks(trials, limit_bytes)

    def that_fit(self, sizes: Sequence[int], budget_bytes: int) -> list[int] | None:
        """Return which of some sizes replays say fit a budget; None if nothing can be replayed."""
        recordings = list(self._recordings.values())
        fits = None
        if not self._is_of_axis:
            fits = _replay_of(recordings, budget_bytes, self._allocator, self._check_time)
        return None if fits is None else [size for size in sizes if fits(size)]

    def through_peaks(self, trials: Sequence[Trial], limit_bytes: int) -> int | None:
        """Return what the peaks of trials say of a limit; None if they say too little."""
        through = curve_through_peaks if self._is_of_axis else line_through_peaks
        return through(trials, limit_bytes)


def curve_through_peaks(trials: Sequence[Trial], limit_bytes: int) -> int | None:
    """Return the size of an axis at which the curve through the two largest that ran meets a limit.

    What is not resident grows with a power of the size from 1 to 2: attention and images grow with its
    square. After one trial the square is taken. None if no trial ran, or peaks do not grow.
    """
    ran = sorted((t for t in trials if t.status == "ok"), key=lambda trial: trial.batch_size)
    if not ran:
        return None
    high, resident = ran[-1], ran[-1].resident_bytes
    if resident is None or high.peak_reserved_bytes is None:
        return None

    def moving(trial: Trial) -> int:
        return (trial.peak_reserved_bytes or 0) - resident

    if moving(high) <= 0 or limit_bytes <= resident:
        return None
    power = 2.0
    if len(ran) > 1:
        low = ran[-2]
        if not 0 < moving(low) < moving(high):
            return None
        power = math.log(moving(high) / moving(low)) / math.log(high.batch_size / low.batch_size)
    share = (limit_bytes - resident) / moving(high)
    return max(1, int(high.batch_size * share ** (1 / min(2.0, max(1.0, power)))))


def line_through_peaks(trials: Sequence[Trial], limit_bytes: int) -> int | None:
    """Return the batch size at which the line through the two largest that ran meets a limit.

    After one trial, the line goes through what is resident and what the forward pass kept. None if no trial
    ran, or their peaks do not grow.
    """
    ran = sorted((t for t in trials if t.status == "ok"), key=lambda trial: trial.batch_size)
    if not ran:
        return None
    high = ran[-1]
    if len(ran) == 1:
        if not high.activation_bytes or high.resident_bytes is None:
            return None
        usable = limit_bytes - high.resident_bytes
        return max(high.batch_size, int(usable * high.batch_size / high.activation_bytes))
    low = ran[-2]

    def crossing(at_low: int | None, at_high: int | None) -> int | None:
        if at_low is None or at_high is None or at_high <= at_low:
            return None
        slope = (at_high - at_low) / (high.batch_size - low.batch_size)
        return high.batch_size + int((limit_bytes - at_high) / slope)

    allocated = crossing(low.peak_allocated_bytes, high.peak_allocated_bytes)
    reserved = crossing(low.peak_reserved_bytes, high.peak_reserved_bytes)
    if allocated is None or reserved is None:
        return allocated or reserved
    # Fragmentation keeps the allocator from filling the device: the allocated line promises too much.
    # It goes on where the reserved line has ended, by flushing its cache.
    return (allocated + max(reserved, high.batch_size)) // 2


def largest_that_fits(
    recordings: Sequence[Recording],
    limit_bytes: int,
    settings: AllocatorSettings,
    check_time: Callable[[], None] = lambda: None,
) -> int | None:
    """Return the largest batch size whose replay fits into `limit_bytes`.

    Nearly all allocations of a training step are of a fixed size, or proportional to the batch size or to its
    square. The largest trial that ran gives the order of allocations, the others tell the kinds apart, and
    a replay through the model of the allocator tells what fits. Peaks do not extrapolate so well: near the
    limit, rounding, splitting and flushed caches decide.

    Args:
        recordings: what trials that ran asked of the allocator.
        limit_bytes: what the allocator may reserve.
        settings: how the allocator is configured.
        check_time: called before each replay; raises TimeLimitError when there is no time for it.

    Returns:
        The batch size; None without recordings, or if the settings are beyond the model.
    """
    fits = _replay_of(recordings, limit_bytes, settings, check_time)
    return None if fits is None else _bisect(fits, max(r.batch_size for r in recordings))


def _replay_of(
    recordings: Sequence[Recording],
    limit_bytes: int,
    settings: AllocatorSettings,
    check_time: Callable[[], None],
) -> Callable[[int], bool] | None:
    """Return what tells whether the replay of a batch size fits (see `largest_that_fits`)."""
    if settings.unsupported or not recordings:
        return None
    *others, high = sorted(recordings, key=lambda recording: recording.batch_size)
    workspaces = _convolution_workspaces(high) if high.has_convolutions else frozenset()
    events_at = _extrapolation(high, others, workspaces)
    capacity = min(limit_bytes, high.available_bytes)
    if sum(segment["total_size"] for segment in high.segments) > capacity:
        return lambda _: False
    memory = DeviceMemory(capacity)
    start = CachingAllocator.from_segments(memory, settings, high.segments)
    optional = dict.fromkeys(workspaces, ())
    resident = [block["address"] for block in resident_blocks(high.segments)]

    def fits(batch_size: int) -> bool:
        check_time()
        allocator = start.copy(memory.copy())
        blocks: list[Block | None] = [allocator.block_at(address) for address in resident]
        try:
            replay(allocator, blocks, events_at(batch_size), optional, streams=high.streams)
        except SimulatedOutOfMemoryError:
            return False
        return True

    return fits


def _extrapolation(
    high: Recording, others: Sequence[Recording], workspaces: frozenset[int]
) -> Callable[[int], list[int]]:
    """Return the function from a batch size to the events of a trial with it."""
    known = [(other.batch_size, frozenset(other.events)) for other in reversed(others)]
    resident = {block["requested_size"] for block in resident_blocks(high.segments)}
    # Gradients and optimizer state are as large as parameters; autocast's copies half of it.
    fixed = _CUBLAS_WORKSPACES | resident | {size // 2 for size in resident}
    # cuDNN's workspaces follow the batch closely, though not to the byte.
    nearly_proportional = {high.events[position] for position in workspaces}
    powers = {}
    slopes = _slopes(high, others[-1]) if others else {}
    for size in {event for event in high.events if event >= 0}:
        power = _power_of_batch(size, high.batch_size, known, fixed)
        if power is not None:
            powers[size] = power
        elif size in nearly_proportional:
            powers[size] = 1
        elif size not in slopes:
            powers[size] = 0

    def events_at(batch_size: int) -> list[int]:
        scales = [Fraction(batch_size, high.batch_size) ** power for power in range(3)]
        sizes = {size: math.ceil(size * scales[power]) for size, power in powers.items()}
        beyond = batch_size - high.batch_size
        sizes |= {s: max(1, s + slope * beyond) for s, slope in slopes.items() if s not in powers}
        return [sizes[event] if event >= 0 else event for event in high.events]

    return events_at


def _slopes(high: Recording, low: Recording) -> dict[int, int]:
    """Return the sizes that grow by whole bytes per sample from `low` to `high`, with the slope.

    One allocation may hold the fixed part of a workspace and a part for each sample. A size of one trial
    belongs to the size of the other that occurs as often; where several do, it is left out.
    """
    apart = high.batch_size - low.batch_size
    by_count: dict[int, list[int]] = {}
    for size, count in Counter(low.events).items():
        if size > _LARGE:
            by_count.setdefault(count, []).append(size)
    slopes = {}
    for size, count in Counter(high.events).items():
        if size > _LARGE:
            candidates = [
                (size - other) // apart
                for other in by_count.get(count, ())
                if other < size and (size - other) % apart == 0
            ]
            if len(candidates) == 1:
                slopes[size] = candidates[0]
    return slopes


def _power_of_batch(
    size: int,
    batch_size: int,
    known: Sequence[tuple[int, frozenset[int]]],
    fixed: frozenset[int],
) -> int | None:
    """Return the power of the batch size that an allocation grows with: 0, 1 or 2; None: unknown.

    Args:
        size: size of the allocation, bytes.
        batch_size: batch size of its trial.
        known: batch sizes and allocations of other trials, the most similar first.
        fixed: sizes that are known not to grow.
    """
    if size in fixed:
        return 0
    for other_batch_size, sizes in known:
        possible = [
            power
            for power in range(3)
            if size % batch_size**power == 0
            and size // batch_size**power * other_batch_size**power in sizes
        ]
        if len(possible) == 1:
            return possible[0]
    return 1 if size % batch_size == 0 else None


def _convolution_workspaces(recording: Recording) -> frozenset[int]:
    """Return the positions of allocations that a convolution can do without.

    cuDNN's workspace is allocated and released around one kernel, so nothing comes between the two.
    Where it does not fit, PyTorch tries engines that need less (`try_plans` in
    aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.6-2.13).
    """
    events = recording.events
    count = len(resident_blocks(recording.segments))
    positions = []
    for position, event in enumerate(events[:-1]):
        if event >= 0:
            if event > _LARGE and events[position + 1] == -count - 1:
                positions.append(position)
            count += 1
    return frozenset(positions)


def _bisect(fits: Callable[[int], bool], near: int) -> int:
    """Return the largest batch size that fits: by doubling from 1, then halving the bracket.

    Fragmentation makes some sizes fail between others that fit. Starting at powers of two makes the answer
    depend on the model alone, not on which trials happened to run. Returns 0 if none fits.

    Args:
        fits: tells whether a batch size fits.
        near: where to start, which only saves time.
    """
    low = 1 << (near.bit_length() - 1)
    while low and not fits(low):
        low //= 2
    high = max(1, 2 * low)
    while high <= LARGEST_BATCH_SIZE and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

"""The composition of the memory of a traced trial at its peak. Pure.

The trace names the part of the trial and the module of each allocation, and the category of some tensors
(a parameter, a gradient). Lifetimes give the other categories: what is allocated in a forward pass and
outlives it is an activation, what is freed before its end is a temporary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bsfind.inspect.inspection import (
    CATEGORIES,
    Category,
    Composition,
    FailedRequest,
    ModuleShare,
    Moment,
)
from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.recording import replay

if TYPE_CHECKING:
    from bsfind.simulation.trace.program import Program

Origin = Literal["load", "setup", "inputs", "forward", "recompute", "backward", "optimizer"]
"""Part of the trial in which memory is allocated; `recompute`: activations, in a backward pass."""

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Allocation:
    """What is known of the allocation of a block.

    Attributes:
        origin: the part of the trial.
        module: path of the module in whose forward or backward pass it was allocated, or of the module
            that the tensor belongs to if `role` is given; None: outside the model.
        role: the category of the tensor; None: its lifetime decides.
        is_tensor: False for memory of a kernel or a library.
    """

    origin: Origin
    module: str | None = None
    role: Category | None = None
    is_tensor: bool = True


@dataclass(frozen=True, kw_only=True)
class AttributedTrial:
    """A traced trial with what is known of its allocations.

    Attributes:
        program: the events of the trial.
        allocations: one for each block, in the order of their numbers.
        classes: the class of each module, by path.
        trains: whether there are backward passes.
    """

    program: Program
    allocations: Sequence[Allocation]
    classes: Mapping[str, str]
    trains: bool = True

    @property
    def events(self) -> list[int]:
        """The events of the load and of the trial."""
        return [*self.program.load_events, *self.program.trial_events]

    def lifetimes(self) -> list[tuple[int, int]]:
        """Return for each block the positions in `events` that allocate and free it."""
        allocated: list[int] = []
        freed: dict[int, int] = {}
        for position, event in enumerate(self.events):
            if event >= 0:
                allocated.append(position)
            else:
                freed[-event - 1] = position
        return [(start, freed.get(number, _NEVER)) for number, start in enumerate(allocated)]

    def places(self, name: str) -> list[int]:
        """Return the positions in `events` of the first event after each mark of a name.

        Marks are `forward_begin`, `forward_end`, `recompute_end` and `step_end`.
        """
        loaded = len(self.program.load_events)
        return [loaded + place for place, mark in self.program.marks if mark == name]


def categories_of(trial: AttributedTrial) -> list[Category]:
    """Return the category of each block."""
    forward_ends = trial.places("forward_end")
    recompute_ends = trial.places("recompute_end")
    step_ends = trial.places("step_end")

    def outlives(lifetime: tuple[int, int], ends: Sequence[int]) -> bool:
        allocated, freed = lifetime
        index = bisect_right(ends, allocated)
        return index < len(ends) and freed >= ends[index]

    def category(allocation: Allocation, lifetime: tuple[int, int]) -> Category:
        origin = allocation.origin
        if not allocation.is_tensor:
            return "workspace"
        if allocation.role is not None:
            return allocation.role
        if origin == "inputs":
            return "inputs"
        if origin == "load":
            return "kept" if lifetime[1] >= len(trial.program.load_events) else "temporaries"
        if outlives(lifetime, step_ends):
            return "optimizer_state" if origin == "optimizer" else "kept"
        if origin == "forward" and outlives(lifetime, forward_ends):
            return "activations" if trial.trains else "outputs"
        if origin == "recompute" and outlives(lifetime, recompute_ends):
            return "activations"
        return "temporaries"

    return [
        category(allocation, lifetime)
        for allocation, lifetime in zip(trial.allocations, trial.lifetimes(), strict=True)
    ]


def compose(trial: AttributedTrial, allocator: CachingAllocator) -> Composition:
    """Replay a trial and return what is allocated at the peak, or at the request that does not fit.

    The peak is the first moment at which the most is allocated, from the first forward pass on, as in
    `Program.replay`.

    Args:
        trial: the trial.
        allocator: an allocator without allocations.
    """
    return _Composer(trial, allocator).composition()


class _Composer:
    """Replays a trial and sums up what is allocated at the peak, or at a failed request."""

    def __init__(self, trial: AttributedTrial, allocator: CachingAllocator) -> None:
        self._trial = trial
        self._categories = categories_of(trial)
        self._lifetimes = trial.lifetimes()
        self._sizes: list[int] = []  # of the blocks, rounded as the allocator rounds them
        self._position = -1  # the last event before the moment
        self._allocated_bytes = -1
        self._reserved_bytes = 0
        self._error: SimulatedOutOfMemoryError | None = None
        self._replay(allocator)
        self._peak_reserved_bytes = allocator.peak_reserved_bytes

    def _replay(self, allocator: CachingAllocator) -> None:
        trial = self._trial
        blocks: list[Block | None] = []
        loaded = len(trial.program.load_events)
        first = min(trial.places("forward_begin"), default=loaded)
        last = max(trial.places("step_end"), default=_NEVER)
        position = -1
        try:
            for position, event in enumerate(trial.events):
                if position == loaded:
                    allocator.empty_cache()
                    allocator.reset_peaks()
                if position == first:
                    allocator.reset_peaks()
                    self._note(allocator, position - 1)
                optional = trial.program.optional if position >= loaded else {}
                streams = trial.program.streams[len(blocks) : len(blocks) + 1]
                replay(allocator, blocks, (event,), optional, position - loaded, streams)
                if event >= 0:
                    block = blocks[-1]
                    self._sizes.append(0 if block is None else block.size)
                    allocated = allocator.allocated_bytes
                    if first <= position < last and allocated > self._allocated_bytes:
                        self._note(allocator, position)
        except SimulatedOutOfMemoryError as error:
            self._note(allocator, position - 1)
            self._error = error

    def _note(self, allocator: CachingAllocator, position: int) -> None:
        self._position = position
        self._allocated_bytes = allocator.allocated_bytes
        self._reserved_bytes = allocator.reserved_bytes

    def composition(self) -> Composition:
        allocated = self._allocated_after(self._position)
        by_module: dict[str | None, dict[str, int]] = {}
        for number in allocated:
            sums = by_module.setdefault(self._module_of(number), {})
            _add(sums, self._categories[number], self._sizes[number])
        modules = [
            ModuleShare(
                path=path,
                class_name=None if path is None else self._trial.classes.get(path),
                categories=_in_order(sums),
            )
            for path, sums in by_module.items()
        ]
        modules.sort(key=lambda share: (-share.total_bytes, share.path or ""))
        return Composition(
            **self._request(),
            allocated_bytes=self._allocated_bytes,
            reserved_bytes=self._reserved_bytes,
            peak_reserved_bytes=self._peak_reserved_bytes,
            categories=self._sums(allocated),
            modules=tuple(modules),
            timeline=tuple(self._timeline()),
        )

    def _request(self) -> dict[str, Any]:
        """Return the fields of the request that makes the peak, or that fails."""
        trial, error = self._trial, self._error
        at = self._position + (error is not None)
        number = bisect_right(self._lifetimes, (at, _NEVER)) - 1
        in_trial = at >= len(trial.program.load_events)
        fields: dict[str, Any] = {
            "step": 1 + bisect_right(trial.places("step_end"), at) if in_trial else 0,
            "phase": trial.allocations[number].origin,
            "module": self._module_of(number),
            "operator": trial.program.operators[self._lifetimes[number][0]],
        }
        if error is not None:
            fields["failed"] = FailedRequest(
                tried_bytes=error.requested_bytes,
                category=self._categories[number],
                message=str(error),
            )
        return fields

    def _module_of(self, number: int) -> str | None:
        """Return the module of a block; a workspace that stays serves all modules, and belongs to none."""
        allocation = self._trial.allocations[number]
        if not allocation.is_tensor and self._lifetimes[number][1] == _NEVER:
            return None
        return allocation.module

    def _timeline(self) -> Iterator[Moment]:
        """Yield the moments of the step of the peak, up to the end of the replay."""
        trial, position = self._trial, self._position
        failed = self._error is not None
        ends = trial.places("step_end")
        index = bisect_right(ends, position)
        begin = ends[index - 1] if index else 0
        end = ends[index] if index < len(ends) else _NEVER
        forward_ends = [place for place in trial.places("forward_end") if begin < place <= end]
        # With gradient accumulation there are several: the last before the peak counts, or the next.
        before = [place for place in forward_ends if place <= position + 1]
        after = [place for place in forward_ends if place > position + 1 and not failed]
        if before:
            yield self._moment("forward_end", before[-1] - 1)
        yield self._moment("failure" if failed else "peak", position)
        if not before and after:
            yield self._moment("forward_end", after[0] - 1)
        if not failed and end < _NEVER:
            yield self._moment("step_end", end - 1)

    def _moment(
        self, at: Literal["forward_end", "peak", "failure", "step_end"], position: int
    ) -> Moment:
        categories = self._sums(self._allocated_after(position))
        return Moment(at=at, allocated_bytes=sum(categories.values()), categories=categories)

    def _allocated_after(self, position: int) -> list[int]:
        """Return the blocks that are allocated after an event."""
        return [
            number
            for number, (allocated, freed) in enumerate(self._lifetimes)
            if allocated <= position < freed
        ]

    def _sums(self, blocks: Sequence[int]) -> dict[str, int]:
        sums: dict[str, int] = {}
        for number in blocks:
            _add(sums, self._categories[number], self._sizes[number])
        return _in_order(sums)


def _add(sums: dict[str, int], category: str, nbytes: int) -> None:
    sums[category] = sums.get(category, 0) + nbytes


def _in_order(sums: Mapping[str, int]) -> dict[str, int]:
    return {category: sums[category] for category in CATEGORIES if sums.get(category)}

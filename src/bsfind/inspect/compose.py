"""What the memory of a traced trial is made of when it is at its highest. Pure.

The trace says of each allocation where it came from, and what some of them turned out to be (a
parameter, a gradient). The rest follows from lifetimes: what a forward pass made and left behind is
an activation, what died before is a temporary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bsfind.inspect.records import (
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
from bsfind.simulation.allocator.replay import replay

Origin = Literal["load", "setup", "inputs", "forward", "recompute", "backward", "optimizer"]
"""In which part of the trial an allocation was made; `recompute`: activations, in a backward pass."""

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Allocation:
    """Who allocated.

    Attributes:
        origin: the part of the trial.
        module: path of the module whose forward pass, or whose gradient, it was made in; None:
            outside of the model. That of the parameter, where `role` says that it belongs to one.
        role: what the tensor is known to be; None: its lifetime tells.
        is_tensor: False: the kernel's, or the library's, own.
    """

    origin: Origin
    module: str | None = None
    role: Category | None = None
    is_tensor: bool = True


@dataclass(frozen=True, kw_only=True)
class AttributedTrial:
    """A trial's events, as `simulation.trace.program.Program` has them, and who they belong to.

    Attributes:
        load_events: until the model is on the GPU.
        trial_events: of the trial.
        operators: for each event of both.
        marks: (number of trial events before it, name): `forward_begin`, `forward_end`,
            `recompute_end`, `step_end`.
        optional: positions in `trial_events` of scratch memory that a kernel can do without.
        allocations: of each block, in the order of their numbers.
        classes: of the modules, by their paths.
        trains: whether a backward pass follows.
    """

    load_events: Sequence[int]
    trial_events: Sequence[int]
    operators: Sequence[str]
    marks: Sequence[tuple[int, str]]
    optional: Mapping[int, Sequence[int]]
    allocations: Sequence[Allocation]
    classes: Mapping[str, str]
    trains: bool = True

    def lifetimes(self) -> list[tuple[int, int]]:
        """Return of each block the position of its birth and of its death, in the events of both."""
        births: list[int] = []
        deaths: dict[int, int] = {}
        for position, event in enumerate((*self.load_events, *self.trial_events)):
            if event >= 0:
                births.append(position)
            else:
                deaths[-event - 1] = position
        return [(birth, deaths.get(number, _NEVER)) for number, birth in enumerate(births)]

    def places(self, name: str) -> list[int]:
        """Return where a mark stands: the number of events of both before it."""
        loaded = len(self.load_events)
        return [loaded + place for place, mark in self.marks if mark == name]


def categories_of(trial: AttributedTrial) -> list[Category]:
    """Return what each block is."""
    forward_ends = trial.places("forward_end")
    recompute_ends = trial.places("recompute_end")
    step_ends = trial.places("step_end")

    def outlives(lifetime: tuple[int, int], ends: Sequence[int]) -> bool:
        # A block is born by the event at `birth`, so it counts from `birth + 1` on.
        birth, death = lifetime
        index = bisect_right(ends, birth)
        return index < len(ends) and death >= ends[index]

    def category(allocation: Allocation, lifetime: tuple[int, int]) -> Category:
        origin = allocation.origin
        if not allocation.is_tensor:
            return "workspace"
        if allocation.role is not None:
            return allocation.role
        if origin == "inputs":
            return "inputs"
        if origin == "load":
            return "kept" if lifetime[1] >= len(trial.load_events) else "temporaries"
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
    """Replay a trial and return what its memory is made of at the peak, or where it does not fit.

    The peak is the first moment at which the most is allocated, from the first forward pass on, as
    `Program.replay` counts it.

    Args:
        trial: of the trial.
        allocator: a fresh one.
    """
    watched = _watched_replay(trial, allocator)
    return _Composer(trial, watched).composition()


@dataclass
class _Watched:
    """What a replay showed.

    Attributes:
        sizes: of the blocks that were allocated, rounded as the allocator rounds them.
        position: the last event, of load and trial, that happened until the moment.
        allocated_bytes: at the moment.
        reserved_bytes: at the moment.
        peak_reserved_bytes: of the trial, as far as it came.
        error: what did not fit.
    """

    sizes: list[int]
    position: int = -1
    allocated_bytes: int = -1
    reserved_bytes: int = 0
    peak_reserved_bytes: int = 0
    error: SimulatedOutOfMemoryError | None = None


def _watched_replay(trial: AttributedTrial, allocator: CachingAllocator) -> _Watched:
    """Run the events one by one, and note the peak."""
    watched = _Watched([])
    blocks: list[Block | None] = []
    loaded = len(trial.load_events)
    begins = trial.places("forward_begin")
    first = min(begins, default=loaded)
    last = max(trial.places("step_end"), default=_NEVER)
    position = -1
    try:
        for position, event in enumerate((*trial.load_events, *trial.trial_events)):
            if position == loaded:
                allocator.empty_cache()
                allocator.reset_peaks()
            if position == first:
                allocator.reset_peaks()
                _note(watched, allocator, position - 1)
            in_trial = position >= loaded
            optional = trial.optional if in_trial else {}
            replay(allocator, blocks, (event,), optional, position - loaded)
            if event >= 0:
                block = blocks[-1]
                watched.sizes.append(0 if block is None else block.size)
                allocated = allocator.allocated_bytes
                if first <= position < last and allocated > watched.allocated_bytes:
                    _note(watched, allocator, position)
    except SimulatedOutOfMemoryError as error:
        _note(watched, allocator, position - 1)
        watched.error = error
    watched.peak_reserved_bytes = allocator.peak_reserved_bytes
    return watched


def _note(watched: _Watched, allocator: CachingAllocator, position: int) -> None:
    watched.position = position
    watched.allocated_bytes = allocator.allocated_bytes
    watched.reserved_bytes = allocator.reserved_bytes


class _Composer:
    """Sums up what was alive."""

    def __init__(self, trial: AttributedTrial, watched: _Watched) -> None:
        self._trial = trial
        self._watched = watched
        self._categories = categories_of(trial)
        self._lifetimes = trial.lifetimes()

    def composition(self) -> Composition:
        trial, watched = self._trial, self._watched
        alive = self._alive_after(watched.position)
        by_module: dict[str | None, dict[str, int]] = {}
        for number in alive:
            module = self._module_of(number)
            _add(by_module.setdefault(module, {}), self._categories[number], watched.sizes[number])
        modules = [
            ModuleShare(
                path=path,
                class_name=None if path is None else trial.classes.get(path),
                categories=_in_order(sizes),
            )
            for path, sizes in by_module.items()
        ]
        modules.sort(key=lambda share: (-share.total_bytes, share.path or ""))
        return Composition(
            **self._moment_of_allocation(),
            allocated_bytes=watched.allocated_bytes,
            reserved_bytes=watched.reserved_bytes,
            peak_reserved_bytes=watched.peak_reserved_bytes,
            categories=self._sums(alive),
            modules=tuple(modules),
            timeline=tuple(self._timeline()),
        )

    def _moment_of_allocation(self) -> dict[str, Any]:
        """Return the fields that say what was allocated at the peak, or failed to be."""
        trial, watched = self._trial, self._watched
        loaded = len(trial.load_events)
        at = watched.position + (watched.error is not None)
        number = bisect_right(self._lifetimes, (at, _NEVER)) - 1
        allocation = trial.allocations[number]
        in_trial = at >= loaded
        fields: dict[str, Any] = {
            "step": 1 + bisect_right(trial.places("step_end"), at) if in_trial else 0,
            "phase": allocation.origin,
            "module": self._module_of(number),
            "operator": trial.operators[self._lifetimes[number][0]],
        }
        if watched.error is not None:
            fields["failed"] = FailedRequest(
                tried_bytes=watched.error.requested_bytes,
                category=self._categories[number],
                message=str(watched.error),
            )
        return fields

    def _module_of(self, number: int) -> str | None:
        """Return whose a block is; a workspace that stays serves all, whoever asked for it first."""
        allocation = self._trial.allocations[number]
        if not allocation.is_tensor and self._lifetimes[number][1] == _NEVER:
            return None
        return allocation.module

    def _timeline(self) -> Iterator[Moment]:
        """Yield the moments of the peak's step, as far as the replay came."""
        trial, position = self._trial, self._watched.position
        failed = self._watched.error is not None
        ends = trial.places("step_end")
        index = bisect_right(ends, position)
        begin = ends[index - 1] if index else 0
        end = ends[index] if index < len(ends) else _NEVER
        forward_ends = [place for place in trial.places("forward_end") if begin < place <= end]
        # With accumulated gradients there are several: the last before the peak, or the next one.
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
        categories = self._sums(self._alive_after(position))
        return Moment(at=at, allocated_bytes=sum(categories.values()), categories=categories)

    def _alive_after(self, position: int) -> list[int]:
        """Return the blocks that are alive after an event."""
        return [
            number
            for number, (birth, death) in enumerate(self._lifetimes)
            if birth <= position < death
        ]

    def _sums(self, blocks: Sequence[int]) -> dict[str, int]:
        sums: dict[str, int] = {}
        for number in blocks:
            _add(sums, self._categories[number], self._watched.sizes[number])
        return _in_order(sums)


def _add(sums: dict[str, int], category: str, nbytes: int) -> None:
    sums[category] = sums.get(category, 0) + nbytes


def _in_order(sums: Mapping[str, int]) -> dict[str, int]:
    return {category: sums[category] for category in CATEGORIES if sums.get(category)}

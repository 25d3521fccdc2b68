"""From the program of a few steps to one of more: the last traced step is repeated, where it repeats.

A step repeats where it is like the one before it. Where the trace of a step is long (a loop over time), or
grows with the batch size (a loop over the samples), the trace of a small batch tells how soon steps repeat,
and larger ones have no more steps than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.streams import DEFAULT

_MANY = 10_000
"""Entries of a first step from which on further traces of such a step have no more steps than they need."""


class Repetition:
    """What the shortest trace tells of how soon the steps of others repeat."""

    def __init__(self) -> None:
        self._entries: int | None = None
        self._enough: int | None = None

    def learn(self, program: Program, entries: int) -> bool:
        """Take in a trace of all its steps.

        Args:
            program: its program.
            entries: how many entries its first step has.

        Returns:
            Whether it contradicts what an earlier one told: its steps repeat later.
        """
        enough = self.enough(entries)
        if enough is not None and enough < len(program.step_ends):
            if steps_before_repetition(program) < enough:
                return False
            self._enough = None
            return True
        if self._entries is not None and self._entries <= entries:
            return False
        self._entries, self._enough = entries, None
        settled = steps_before_repetition(program)
        ends = _ends(program)
        if program.batches is None and settled <= len(ends) - 3:
            begin, end = ends[settled + 1 : settled + 3]
            if _next(program, settled) == program.trial_events[begin:end]:
                self._enough = settled + 1
        return False

    def enough(self, entries: int, *, has_tail: bool = False) -> int | None:
        """Return how many steps a trace needs; None: as many as were asked for.

        Args:
            entries: how many entries its first step has.
            has_tail: whether something else follows its last step, which is told from those of other sizes
                only where it comes after as many steps.
        """
        if self._entries is None or entries < self._entries:
            return None
        is_long = entries >= _MANY and not has_tail
        return self._enough if entries > self._entries or is_long else None


def with_more_steps(program: Program, steps: int) -> Program | None:
    """Return a program that repeats the last step of another.

    Args:
        program: program of a trial.
        steps: how many the new program has in all.

    Returns:
        The program; None if its last two steps differ, so that nothing follows for later ones, and
        no trace of another size tells that they repeat.
    """
    ends = _ends(program)
    traced = len(ends) - 1
    if steps <= traced:
        return program if steps == traced else None
    if not program.repeats and steps_before_repetition(program) > traced - 2:
        return None
    events = program.trial_events
    begin, end = ends[-2:]
    count = _allocations(events[begin:end])
    again = _next(program, traced - 1) if program.repeats else _shifted(events[begin:end], count)
    if again is None:
        return None
    loaded_events = len(program.load_events)
    operators, streams = program.operators, program.streams
    blocks = _allocations([*program.load_events, *events[:end]])
    longer = Program(
        load_events=program.load_events,
        trial_events=events[:end],
        operators=operators[: loaded_events + end],
        marks=[mark for mark in program.marks if mark[0] < end or mark == (end, "step_end")],
        optional=dict(program.optional),
        step_ends=[*program.step_ends, *[program.step_ends[-1]] * (steps - traced)],
        traced_steps=program.traced_steps,
        streams=streams[:blocks] + streams[blocks - count : blocks] * (steps - traced),
    )
    marks = [(place - begin, name) for place, name in program.marks if begin <= place <= end]
    marks = marks[marks.index((0, "step_end")) + 1 : marks.index((end - begin, "step_end")) + 1]
    for _ in range(steps - traced):
        start = len(longer.trial_events)
        longer.trial_events.extend(again)
        again = _shifted(again, count)
        longer.operators.extend(operators[loaded_events + begin : loaded_events + end])
        longer.marks.extend((start + place, name) for place, name in marks)
        for place, smaller in program.optional.items():
            if begin <= place < end:
                longer.optional[start + place - begin] = smaller
    if any(name == "evaluation_end" for _, name in program.marks):
        _append_evaluation(longer, program, end, shift=count * (steps - traced))
    return longer


def _shifted(events: Sequence[int], count: int) -> list[int]:
    """Return events that release blocks which are numbered higher."""
    return [event if event >= 0 else event - count for event in events]


def _next(program: Program, place: int) -> list[int] | None:
    """Return the events of the step after one, if it does the same; None where that cannot be told.

    What a step releases of the step before it (gradients, mostly) is as large, one after the other, as what
    it leaves of its own.

    Args:
        program: program of a trial.
        place: which step it is, from 0.
    """
    ends = _ends(program)
    begin, end = ends[place], ends[place + 1]
    events = program.trial_events[begin:end]
    sizes = [event for event in (*program.load_events, *program.trial_events[:end]) if event >= 0]
    first = len(sizes) - _allocations(events)
    released = [-event - 1 for event in events if event < 0]
    old = sorted(block for block in released if block < first)
    left = sorted(set(range(first, len(sizes))).difference(released))
    if [sizes[block] for block in old] != [sizes[block] for block in left]:
        return None
    follows = dict(zip(old, left, strict=True))
    count = len(sizes) - first
    return [
        event if event >= 0 else -follows.get(-event - 1, count - event - 1) - 1 for event in events
    ]


def _append_evaluation(longer: Program, program: Program, end: int, *, shift: int) -> None:
    """Append the evaluation pass that follows the steps of a program.

    Args:
        longer: a program of more steps, which gets it.
        program: the program.
        end: where its steps end.
        shift: how many more blocks there are before the pass.
    """
    tail = program.trial_events[end:]
    # What the last steps allocated is freed as that of the steps which repeat them; older blocks stay.
    before = _allocations([*program.load_events, *program.trial_events[: _ends(program)[-2]]])
    start, loaded_events = len(longer.trial_events), len(program.load_events)
    longer.trial_events += [
        event - shift if event < 0 and -event - 1 >= before else event for event in tail
    ]
    longer.operators += program.operators[loaded_events + end :]
    longer.streams += program.streams[len(longer.streams) - shift :]
    longer.marks += [
        (start + place - end, name)
        for place, name in program.marks
        if name.startswith("evaluation_")
    ]
    for place, smaller in program.optional.items():
        if place >= end:
            longer.optional[start + place - end] = smaller


def steps_before_repetition(program: Program) -> int:
    """Return after how many steps all those that follow are alike, the last one with itself.

    Steps are alike if they allocate and release the same blocks, counted from their beginning, and
    leave the same ones: of their own, and of the steps before.
    """
    warm_up = max(place for place, step in enumerate(program.step_ends) if step.is_warm_up)
    steps = list(_steps(program))
    settled = len(steps) - 1
    while settled > warm_up + 1 and steps[settled - 1] == steps[-1]:
        settled -= 1
    return settled


def _ends(program: Program) -> list[int]:
    """Return where each step ends, and before them where the first begins."""
    return [0, *(position for position, name in program.marks if name == "step_end")]


def _steps(program: Program) -> Iterator[tuple[list[tuple[str, int, int]], set[int], set[int]]]:
    """Yield what each step does and what it leaves, in terms that do not depend on which step it is."""
    events = program.trial_events
    sizes = [event for event in (*program.load_events, *events) if event >= 0]
    streams = program.streams or [DEFAULT] * len(sizes)
    first = before = _allocations(program.load_events)
    alive = set(range(first)) - {-event - 1 for event in program.load_events if event < 0}
    for begin, end in pairwise(_ends(program)):
        pattern = []
        count = first
        for event in events[begin:end]:
            block = -event - 1
            if event >= 0:
                pattern.append(("allocate", event, streams[count]))
                alive.add(count)
                count += 1
                continue
            alive.discard(block)
            if block >= first:
                pattern.append(("release", block - first, DEFAULT))
            elif block >= before:  # gradients, mostly
                pattern.append(("release of the step before", sizes[block], streams[block]))
            else:
                pattern.append(("release of an older one", block, DEFAULT))
        own = {block - first for block in alive if block >= first}
        yield pattern, own, {block for block in alive if block < first}
        before, first = first, count


def _allocations(events: Sequence[int]) -> int:
    return sum(event >= 0 for event in events)

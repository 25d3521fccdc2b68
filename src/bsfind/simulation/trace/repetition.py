"""More steps than were traced: the last one again and again, where it is like the one before it."""

from __future__ import annotations

from collections.abc import Sequence

from bsfind.simulation.trace.program import Program


def with_more_steps(program: Program, steps: int) -> Program | None:
    """Return a program that repeats the last step of another.

    Args:
        program: of a trial.
        steps: how many the new program has in all.

    Returns:
        None if steps differ, so that nothing can be said of those to come, or if there are too few:
        those that warm up are unlike all others (see `TrainingSteps`), two after these are needed.
    """
    ends = [0, *(position for position, name in program.marks if name == "step_end")]
    traced = len(ends) - 1
    if steps <= traced:
        return program if steps == traced else None
    warm_up = max(place for place, step in enumerate(program.step_ends) if step.is_warm_up)
    if traced - warm_up < 3:
        return None
    events = program.trial_events
    sizes = [event for event in (*program.load_events, *events) if event >= 0]
    loaded = _allocations(program.load_events)
    first = [loaded + _allocations(events[:end]) for end in ends]
    courses = [
        _course(events[ends[step] : ends[step + 1]], first[step - 1], first[step], sizes)
        for step in range(warm_up + 1, traced)
    ]
    if any(course != courses[-1] for course in courses):
        return None
    begin, end = ends[-2:]
    again = events[begin:end]
    count = _allocations(again)
    loaded_events = len(program.load_events)
    operators = program.operators
    longer = Program(
        load_events=program.load_events,
        trial_events=events[:end],
        operators=operators[: loaded_events + end],
        marks=[mark for mark in program.marks if mark[0] < end or mark == (end, "step_end")],
        optional=dict(program.optional),
        step_ends=[*program.step_ends, *[program.step_ends[-1]] * (steps - traced)],
    )
    marks = [(place - begin, name) for place, name in program.marks if begin <= place <= end]
    marks = marks[marks.index((0, "step_end")) + 1 :]
    for _ in range(steps - traced):
        again = _moved(again, count)
        start = len(longer.trial_events)
        longer.trial_events.extend(again)
        longer.operators.extend(operators[loaded_events + begin : loaded_events + end])
        longer.marks.extend((start + place, name) for place, name in marks)
        for place, smaller in program.optional.items():
            if begin <= place < end:
                longer.optional[start + place - begin] = smaller
    return longer


def _allocations(events: Sequence[int]) -> int:
    return sum(event >= 0 for event in events)


def _course(
    events: Sequence[int], first_before: int, first: int, sizes: Sequence[int]
) -> list[tuple[str, int]]:
    """Return what a step does, in terms that do not depend on which step it is.

    Args:
        events: of the step.
        first_before: number of the first block of the step before it.
        first: number of its own first block.
        sizes: of all blocks.
    """
    course = []
    for event in events:
        block = -event - 1
        if event >= 0:
            course.append(("allocate", event))
        elif block >= first:
            course.append(("release", block - first))
        elif block >= first_before:  # gradients, mostly
            course.append(("release of the step before", sizes[block]))
        else:
            course.append(("release of an older one", block))
    return course


def _moved(events: Sequence[int], count: int) -> list[int]:
    """Return the events of the next step: blocks are numbered on."""
    return [event if event >= 0 else event - count for event in events]

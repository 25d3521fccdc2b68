"""The most that DistributedDataParallel may take in the step in which it makes its buckets anew.

NCCL's process group holds the tensors of a collective until somebody waits for its work, or until its
watchdog has seen that it is over and the next one begins (ProcessGroupNCCL.cpp, torch 2.8-2.13: about 0.1 s).
DistributedDataParallel waits for futures instead. After the first step it makes its buckets anew, and if
steps take less time than that, the old ones stay for one step more. A trace has them go at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set as AbstractSet

from bsfind.simulation.trace.program import Program


def with_old_buckets(program: Program, buckets: AbstractSet[int]) -> Program | None:
    """Return a program whose buckets stay until the end of the step in which they are freed.

    Args:
        program: the program of a trial.
        buckets: numbers of the blocks that are summed over all ranks.

    Returns:
        The program; None if it frees none of them within a step.
    """
    events: list[int] = []
    operators: list[str] = []
    marks: list[tuple[int, str]] = []
    optional: dict[int, tuple[int, ...]] = {}
    late: list[int] = []
    has_any = False
    begin, load = 0, len(program.load_events)
    for end, name in program.marks:
        for place in range(begin, end):
            event = program.trial_events[place]
            if event < 0 and -event - 1 in buckets:
                late.append(event)
                continue
            if place in program.optional:
                optional[len(events)] = program.optional[place]
            events.append(event)
            operators.append(program.operators[load + place])
        begin = end
        if name == "step_end" and late:
            has_any = True
            events += late
            operators += [""] * len(late)
            late.clear()
        marks.append((len(events), name))
    if not has_any:
        return None
    return dataclasses.replace(
        program,
        trial_events=[*events, *late, *program.trial_events[begin:]],
        operators=[
            *program.operators[:load],
            *operators,
            *[""] * len(late),
            *program.operators[load + begin :],
        ],
        marks=marks,
        optional=optional,
    )

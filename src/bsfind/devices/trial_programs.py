"""How many steps of a simulated trial are traced, and from when on the last one is repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsfind.simulation.trace.program import Program
    from bsfind.simulation.trace.tracer import Tracer

_MOST_ENTRIES = 200_000
"""Allocations, releases and calls of kernels in a step from which on a search is refused: its traces would
take minutes."""

_FEWEST = 3
"""Steps of a trace that takes long: the first one warms up, and the others have to be alike."""


class TrialPrograms:
    """Makes the programs of a model's trials.

    Args:
        tracer: traces the model.
        are_steady: whether all steps of an exact trial of the same workload were traced in another
            precision, and those after the warm-up were alike. Then an exact trial has only as many traced as
            show that the last two are alike: what depends on the number of a step is the user's code, which
            is the same in every precision.

    Attributes:
        are_steady: likewise, with the trials of this precision.
    """

    def __init__(self, tracer: Tracer, *, are_steady: bool) -> None:
        self._tracer = tracer
        self._is_known_steady = self.are_steady = are_steady
        self._count: int | None = None
        self._fewest = 0
        self._never_repeats = False

    def begin(self, steps: int, *, exact: bool) -> None:
        """Let programs have as many steps traced as the first trial has."""
        self._count = self._count or (min(steps, _FEWEST) if exact else steps)

    def need(self, steps: int) -> None:
        """Let programs of later trials have at least as many steps, all of them traced."""
        self._count = self._fewest = steps

    def at_most(self, steps: int) -> int:
        """Return how many of so many steps are traced."""
        return min(steps, self._count or steps)

    def program(self, batch_size: int, steps: int, *, exact: bool) -> Program:
        """Return the program of a trial (see `Tracer.program`).

        Args:
            batch_size: number of samples.
            steps: optimizer steps.
            exact: trace this very batch size, and all steps of a trace that does not take long.
        """
        assert self._count is not None
        steps = max(steps, self._fewest)
        enough = max(self._count, _FEWEST)
        if exact and steps > enough:
            if not self._is_known_steady:
                program = self._tracer.program(batch_size, steps, exact=True, enough=enough)
                if len(program.step_ends) >= steps or program.batches is not None:
                    self.are_steady = _is_steady(program)
                    return program
            else:
                program = self.all_traced(batch_size, enough, exact=True)
        elif exact or steps <= self._count or self._never_repeats:
            return self.all_traced(batch_size, steps, exact=exact)
        else:
            program = self.all_traced(batch_size, self._count, exact=False)
            if program.batches is not None:  # other steps have other batches
                return self._tracer.program(batch_size, steps, exact=True, enough=enough)
        from bsfind.simulation.trace.repetition import with_more_steps

        longer = with_more_steps(program, steps)
        self._never_repeats = longer is None
        return longer or self.all_traced(batch_size, steps, exact=True)

    def all_traced(self, batch_size: int, steps: int, *, exact: bool) -> Program:
        """Return the program of a trial all steps of which are traced, but those that are known to repeat."""
        from bsfind.simulation.trace.repetition import with_more_steps

        most_entries = None if exact else _MOST_ENTRIES
        program = self._tracer.program(batch_size, steps, exact=exact, most_entries=most_entries)
        if program.repeats:
            longer = with_more_steps(program, steps)
            return longer or self._tracer.program(batch_size, steps, exact=True)
        return program


def _is_steady(program: Program) -> bool:
    from bsfind.simulation.trace.repetition import steps_before_repetition

    return program.batches is None and steps_before_repetition(program) <= _FEWEST - 2

"""How much the batches of the user's function vary in shape from call to call: padded texts, graphs.

The steps of a trial then meet several of them, and the largest decides on the peak. Batches that are all
alike change nothing.
"""

from __future__ import annotations

from bsfind.trial import BatchVariation
from bsfind.workload.delivery import extents_of
from bsfind.workload.inputs import Batch

FEWEST_STEPS = 10
"""Steps of a trial whose batches vary: more than a verdict on leaks takes (see failures.leaks)."""


class Variation:
    """Compares the batches of each trial with each other."""

    def __init__(self) -> None:
        self._is_known = False
        self.begin()

    def begin(self) -> None:
        """Begin a trial."""
        self._first: object = None
        self._differ = False
        self._elements: list[int] = []

    def note(self, batch: Batch) -> None:
        """Note a batch of the trial."""
        shapes = extents_of(batch.args, batch.kwargs)
        self._first = self._first or shapes
        self._differ = self._differ or shapes != self._first
        self._elements.append(sum(tensor.numel() for tensor in batch.tensors()))

    def first_step_is_over(self) -> None:
        """Leave out the batches so far: the first step has no state of the optimizer, and a lower peak."""
        self._elements.clear()

    @property
    def is_there(self) -> bool:
        """Whether batches of this trial or of one that has ended differ."""
        return self._differ or self._is_known

    def found(self) -> BatchVariation | None:
        """Return how much the batches of the trial, which has ended, varied; None if no batches do."""
        self._is_known = self.is_there
        if not self._is_known or not self._elements:
            return None
        return BatchVariation(
            batches=len(self._elements),
            least_elements=min(self._elements),
            most_elements=max(self._elements),
        )

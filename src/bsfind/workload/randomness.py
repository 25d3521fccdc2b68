"""Random numbers: the same in every trial, and at their extremes where a step branches on them.

Some models draw numbers on the host and branch on them: LayerDrop skips layers, others train at a random
resolution. The step that needs the most memory is hardly ever among the few of a trial, but a long run
meets it. So these draws are watched (`workload.draws`), and `LargestStep` finds the values with which a
step is largest.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from bsfind.failures.oom import FailureKind, classify
from bsfind.workload.draws import SEED, Site, draws, numpy_if_installed

_MOST_SITES = 12
"""Most places in the code whose draws are tried; models have one or two."""

StepSize = tuple[int, int]
"""Bytes by which a step exceeds what was allocated before it; and bytes that it allocates in all, which
decides between steps that are equal in the first."""


def seed_generators(seed: int = SEED) -> None:
    """Seed the generators of Python, of numpy (where it is installed) and of torch, CUDA's included."""
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := numpy_if_installed()) is not None:
        numpy.random.seed(seed % 2**32)


@contextlib.contextmanager
def reproducible_building(weight_seed: int = SEED) -> Iterator[None]:
    """Seed the generators, so that a model that draws its own sizes has the same ones in every process.

    Small draws of torch on the host use a generator of their own, since torch's also draws the initial
    weights, which a prediction does not draw.

    Args:
        weight_seed: seed of torch's generator, which draws the weights.
    """
    seed_generators()
    torch.manual_seed(weight_seed)
    draws.of_building = torch.Generator()
    draws.of_building.manual_seed(SEED)
    try:
        with draws.installed():
            yield
    finally:
        draws.of_building = None


class LargestStep:
    """Finds the values of the host's draws with which a step needs the most memory.

    Args:
        is_watching: False: draws are only seeded (compiled code needs torch's own functions).
    """

    def __init__(self, *, is_watching: bool = True) -> None:
        self._is_watching = is_watching
        # A batch of one may take another path through the model than all others.
        self._decided: dict[bool, dict[Site, float | None]] = {True: {}, False: {}}

    @contextlib.contextmanager
    def searched(self, batch_size: int, seed: int = SEED) -> Iterator[None]:
        """Seed the generators, and let the steps inside be the largest that are known.

        Args:
            batch_size: batch size of the steps.
            seed: seed of the generators.
        """
        seed_generators(seed)
        if not self._is_watching:
            yield
            return
        draws.seen, draws.constant = {}, {}
        draws.forced = self._decided[batch_size == 1]
        draws.batch_size = batch_size
        draws.is_active = True
        try:
            with draws.installed():
                yield
        finally:
            draws.is_active = False
            draws.forced = {}

    @property
    def is_undecided(self) -> bool:
        """Whether the steps drew numbers that `decide` has not tried; to be asked inside `searched`."""
        return any(site not in draws.forced for site in draws.seen)

    def decide(self, run_step: Callable[[], StepSize]) -> None:
        """Run steps with other draws, and keep those of the largest step; to be called inside `searched`.

        Afterwards the trial has to start anew. The places in the code that draw are tried one by one,
        while those that come later in the step draw their largest values.

        Args:
            run_step: runs one step and returns its size. If it raises for another reason than memory,
                the user's code does not work with these draws, and they are not used.
        """
        decided = self._decided[draws.batch_size == 1]
        draws.is_forcing_new = True
        try:
            while (site := next((s for s in draws.seen if s not in decided), None)) is not None:
                decided[site] = None
                if len(decided) <= _MOST_SITES:
                    decided[site] = self._largest(site, decided, run_step)
        finally:
            draws.is_forcing_new = False
            draws.forced = decided

    def _largest(
        self, site: Site, decided: Mapping[Site, float | None], run_step: Callable[[], StepSize]
    ) -> float | None:
        """Return the fraction of the largest step; None if all steps are alike."""
        sizes: dict[float, StepSize | None] = {}
        span = draws.seen[site]
        for fraction in span.fractions:
            if span.count is None and len(sizes) == 2 and len(set(sizes.values())) == 1:
                break  # the extremes are alike, and so are the values between them
            draws.forced = {**decided, site: fraction}
            seed_generators()
            sizes[fraction] = _size_of(run_step)
        known = {fraction: size for fraction, size in sizes.items() if size is not None}
        if not known or len(set(sizes.values())) == 1:
            return None
        return max(known, key=lambda fraction: known[fraction])

    @property
    def places(self) -> tuple[str, ...]:
        """The places in the code whose draws decide how large a step is: `model.py:12`."""
        lines = {
            (file, line)
            for decided in self._decided.values()
            for (file, line, _), fraction in decided.items()
            if fraction is not None
        }
        return tuple(f"{Path(file).name}:{line}" for file, line in sorted(lines))


def _size_of(run_step: Callable[[], StepSize]) -> StepSize | None:
    """Return the size of a step; None if the user's code cannot run it."""
    try:
        return run_step()
    except Exception as error:
        return None if classify(error) is FailureKind.OTHER else (sys.maxsize, sys.maxsize)

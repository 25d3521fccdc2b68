"""Steps with values: small batches on real weights, on the CPU, beside the trace of the same step.

Every operator of such a step runs twice: on tensors that pose as the GPU's, as in any trace, and on
their copies in the host's memory (see values.py). Gradients are not computed. What depended on values
is kept (see value_shapes.py): batch sizes grow as long as a step computes little, and
steps are repeated with other weights and batches. A step of long sequences computes much even of two
samples: there, one of a single sample says how large the answers are, and steps of short sequences say what
they grow with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from bsfind.errors import BsfindError
from bsfind.simulation.trace.building import available_host_bytes
from bsfind.simulation.trace.value_shapes import ValueShapes, ValueStep
from bsfind.simulation.trace.values import TooMuchComputedError
from bsfind.workload.draws import SEED

_FIRST_SIZES = (2, 4, 8, 16, 1)
"""Batch sizes of which the first that the user's code accepts is the first step; then they double."""

_LARGEST = 128
"""The largest batch size."""

_ENOUGH = 256 << 20
"""Bytes that the CPU computed in a step; after a smaller step, the batch is doubled."""

_MUCH = 1 << 30
"""If the first step computed more, a smaller batch is next, and the second seed has that one alone."""

_COMPARED_SIZES = (2, 1)
"""Where it computed more and sequences can be shorter: the batches of short sequences that are compared."""

SHORTER = 16
"""How many times shorter these are."""

_MORE = 1.5
"""By which factor a sum is larger that grows with twice the batch, or with the length."""

_MEMORY_OF_NEXT = 3
"""Memory that the next batch may need, in terms of that of half its size."""


def run_with_values(
    shapes: ValueShapes,
    load: Callable[[int], None],
    run: Callable[[ValueStep], None],
    shorter: Callable[[], int | None],
) -> None:
    """Run steps with values and keep what depended on values.

    Args:
        shapes: gets the steps, instead of those that it has.
        load: gives the model the weights of a seed.
        run: runs a step of a batch size with a seed, and says how large it was.
        shorter: returns a length of sequences that are many times shorter; None: there is none.

    Raises:
        BsfindError: no step could be run.
    """
    shapes.forget()
    load(SEED)
    length = shorter()
    try:
        _grow(shapes, run, None if length is None else _MUCH)
    except TooMuchComputedError:
        assert length is not None
        with contextlib.suppress(BsfindError):
            if _compare(shapes, length, run):
                load(SEED + 1)
                shapes.steps.append(_run_step(shapes, 1, SEED + 1, run))
                return
        shapes.forget()
        load(SEED)
        _grow(shapes, run, None)
    sizes = sorted(step.batch_size for step in shapes.steps)[-2:]
    if shapes.steps[0].computed_bytes > _MUCH:
        del sizes[1:]
    load(SEED + 1)
    for size in sizes:
        shapes.steps.append(_run_step(shapes, size, SEED + 1, run))


def _compare(shapes: ValueShapes, length: int, run: Callable[[ValueStep], None]) -> bool:
    """Run a batch of one, and compare batches of shorter sequences.

    Returns:
        Whether these tell what grows with the batch: not where they meet other places, nor where something
        grows with the length alone, which may be a least number that only short sequences are below.
    """
    larger, smaller = (
        _run_step(shapes, size, SEED, run, length=length) for size in _COMPARED_SIZES
    )
    whole = _run_step(shapes, 1, SEED, run)
    shapes.steps.append(whole)
    shapes.compared = larger, smaller
    if not all(
        whole.sizes.keys() <= step.sizes.keys() and whole.reads.keys() <= step.reads.keys()
        for step in shapes.compared
    ):
        return False
    one, two, long = (_totals(step) for step in (smaller, larger, whole))
    return all(_MORE * one[site] < two[site] or long[site] <= _MORE * one[site] for site in long)


def _totals(step: ValueStep) -> dict[tuple[object, ...], int]:
    """Return the sums of the sizes, and of the integers that were read, by place."""
    sizes = {site: sum(size for _, size in calls) for site, calls in step.sizes.items()}
    reads = {
        ("values", *site): sum(int(values.sum()) for values in calls)
        for site, calls in step.reads.items()
        if not any(values.is_floating_point() or values.is_complex() for values in calls)
    }
    return {**sizes, **reads}


def _grow(shapes: ValueShapes, run: Callable[[ValueStep], None], most_computed: int | None) -> None:
    """Run batches of growing sizes, at least two; a smaller one where the first computes much.

    What is computed decides, and not the time: the same question has the same answer.

    Raises:
        TooMuchComputedError: the first computes more than `most_computed`, and ended as soon as it did.
        BsfindError: no step could be run.
    """
    size = _first(shapes, run, most_computed)
    if shapes.steps[-1].computed_bytes > _MUCH and size > 1:
        with contextlib.suppress(BsfindError):
            shapes.steps.append(_run_step(shapes, size // 2, SEED, run))
            return
    while 2 * size <= _LARGEST:
        free = available_host_bytes()
        if free is not None and _MEMORY_OF_NEXT * shapes.steps[-1].nbytes > free:
            return
        size *= 2
        try:
            shapes.steps.append(_run_step(shapes, size, SEED, run))
        except BsfindError:  # other sizes are accepted
            return
        if shapes.steps[-1].computed_bytes > _ENOUGH:
            return


def _first(shapes: ValueShapes, run: Callable[[ValueStep], None], most_computed: int | None) -> int:
    first: BsfindError | None = None
    for size in _FIRST_SIZES:
        try:
            step = _run_step(shapes, size, SEED, run, most_computed=most_computed)
        except BsfindError as error:
            first = first or error.without_frames()
        else:
            shapes.steps.append(step)
            return size
    assert first is not None
    raise first


def _run_step(
    shapes: ValueShapes,
    size: int,
    seed: int,
    run: Callable[[ValueStep], None],
    *,
    length: int | None = None,
    most_computed: int | None = None,
) -> ValueStep:
    """Run a step with values; returns what it met (`length`, `most_computed`: see `ValueStep`)."""
    step = shapes.recorded = ValueStep(seed, size, length=length, most_computed=most_computed)
    try:
        run(step)
    finally:
        shapes.recorded = None
    return step

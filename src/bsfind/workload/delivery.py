"""How many samples the user's code delivered for a batch size: compared with what was asked for.

A data loader has only so many samples, a step may have a batch of its own. The memory of such a step is not
that of the batch size that was asked for. How large a batch is cannot be read off one batch: its number of
samples is the first dimension of most tensors, another one of sequences, the length of a list, the number of
graphs, or only in proportion to a dimension (nodes, tokens, views). So batches of different sizes are
compared where the number asked for is not found in the obvious places.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from bsfind.errors import ShortBatchError, TargetError
from bsfind.records import Assumption
from bsfind.settings import Workload
from bsfind.workload.containers import DEEPEST
from bsfind.workload.inputs import Batch, BatchForm

_COUNTS = ("num_graphs", "batch_size")
"""Attributes with the number of samples: of PyTorch Geometric's and DGL's batches, of a TensorDict."""

_MOST_ITEMS = 8
"""Items of a list that have places of their own; the others count together only."""

_MOST_NUMBERS = 4
"""Numbers of a batch that may be its samples, of which each is asked for."""

_FAR = 16
"""Factor between two batch sizes whose batches must differ, if the user's code follows them."""

_SMALL = 256
"""Up to this size, larger batches are made to be compared, and smaller ones above it."""


@dataclass(frozen=True)
class Place:
    """Where a number stands in a batch: a dimension of a tensor, a length, a count.

    Attributes:
        path: keys, indices and names of attributes that lead to the tensor or the object.
        dim: the dimension; None for a length or a count.
    """

    path: tuple[Any, ...]
    dim: int | None = None

    @property
    def is_obvious(self) -> bool:
        """Whether the number of samples usually stands here."""
        return not self.dim


Extents = dict[Place, int]
"""The numbers of a batch. Those of equal places, as of a tensor in each item of a list, are added."""


def extents_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Extents:
    """Return the dimensions, lengths and counts of a batch, in nested containers and objects too."""
    found: Extents = {}
    for name, value in (*enumerate(args), *kwargs.items()):
        _collect(value, (name,), found, frozenset())
    return found


def _collect(value: Any, path: tuple[Any, ...], found: Extents, around: frozenset[int]) -> None:
    def add(dim: int | None, number: int, at: tuple[Any, ...] = path) -> None:
        place = Place(at, dim)
        found[place] = found.get(place, 0) + number

    if isinstance(value, torch.Tensor):
        sizes = [value.size(0)] if value.is_nested else list(value.shape)
        for dim, size in enumerate(sizes):
            add(dim, int(size))
        return
    if value is None or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    if len(path) > DEEPEST or id(value) in around:
        return
    around |= {id(value)}
    if isinstance(value, Mapping):
        for key in value:
            _collect(value[key], (*path, key), found, around)
    elif isinstance(value, (list, tuple)):
        add(None, len(value), (*path, "length"))
        for index, item in enumerate(value):
            if index < _MOST_ITEMS:
                _collect(item, (*path, index), found, around)
            _collect(item, (*path, "items"), found, around)
    else:
        for name in _COUNTS:
            with contextlib.suppress(Exception):  # a property of the user's
                count = getattr(value, name, None)
                if isinstance(count, tuple) and len(count):  # torch.Size
                    count = count[0]
                if isinstance(count, int) and not isinstance(count, bool):
                    add(None, count, (*path, name))
        for name, part in dict(getattr(value, "__dict__", {})).items():
            _collect(part, (*path, name), found, around)


Probe = Callable[[int], Extents | None]
"""Makes a batch of another size and returns its numbers; None if the user's code does not make it."""


class Delivery:
    """Compares what a part of the user's code delivers with what it is asked for, over all batch sizes.

    Args:
        source: names the user's code: "`--batch-fn data:batch`".

    Attributes:
        rows: what it delivers for each sample that is asked for, where that is another number than one.
        is_constant: whether it delivers the same at every size.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.rows: float | None = None
        self.is_constant = False
        self._places: set[Place] = set()  # where exactly the number asked for was found
        self._others: set[Place] = set()  # where another one was found
        self._rate: tuple[Place, float, int, bool] | None = None

    def check(self, asked: int, extents: Extents, probe: Probe) -> None:
        """Raise an error if not as many samples were delivered as was asked for.

        Args:
            asked: the batch size.
            extents: what was delivered for it.
            probe: makes batches of other sizes, where they have to be compared.

        Raises:
            ShortBatchError: fewer were delivered. `delivered` is the largest number that is; None if larger
                batches are delivered for larger sizes, but not for this one.
            TargetError: the same is delivered, whatever the size.
        """
        equal = {place for place, number in extents.items() if number == asked}
        found = any(
            place in self._places or (place.is_obvious and place not in self._others)
            for place in equal
        )
        self._others |= extents.keys() - equal
        if not extents or found:
            return
        known: dict[int, Extents | None] = {asked: extents}

        def at(size: int) -> Extents:
            if size not in known:
                known[size] = probe(size)
            return known[size] or {}

        if self._rate is not None:
            self._check_rate(asked, extents, at)
            return
        for other in (asked // 2, 2 * asked):
            compared = at(other) if other else {}
            exact = {place for place in equal if compared.get(place) == other}
            if exact:
                self._places |= exact
                return
        self._check_number(asked, extents, at)
        self._check_growth(asked, extents, at)

    def _check_number(self, asked: int, extents: Extents, at: Callable[[int], Extents]) -> None:
        """Look for a smaller number that is delivered when it is asked for: the samples of this batch."""
        tried: set[int] = set()
        for place in sorted(extents, key=lambda place: not place.is_obvious):
            number = extents[place]
            if not 1 < number < asked or (number not in tried and len(tried) == _MOST_NUMBERS):
                continue
            tried.add(number)
            if at(number).get(place) != number:
                continue
            if at(2 * asked).get(place, 0) > number:
                self._raise_short(asked, number, None)
            if at(number // 2).get(place, number) < number:
                self._places.add(place)
                self._raise_short(asked, number, number)

    def _check_growth(self, asked: int, extents: Extents, at: Callable[[int], Extents]) -> None:
        """Look for numbers that are in proportion to the batch size."""
        is_large = asked >= _SMALL
        low, high = (asked // _FAR, asked) if is_large else (asked, max(_SMALL, _FAR * asked))
        grown = [
            place
            for place, number in at(high).items()
            if number >= _FAR / 4 * max(1, at(low).get(place, 0))
        ]
        if not grown:
            if at(low) and at(high):  # else the user's code makes no other batch: nothing is known
                if sum(at(low).values()) > sum(
                    at(high).values()
                ):  # a loader that drops the last batch
                    self._raise_short(asked, min(extents.values()), None)
                self._check_constant(asked, high, extents, at)
            return
        # Of small batches: a large one may be short.
        size = low if is_large else 2 * asked
        exact = [
            place
            for place in grown
            if at(size).get(place, 0) * (size // 2) == at(size // 2).get(place, 0) * size
        ]
        place = max(exact or grown, key=lambda place: (place.is_obvious, at(high)[place]))
        if not extents.get(place):
            self._raise_short(asked, 0, None)
        self.rows = at(size).get(place, 0) / size
        self._rate = (place, self.rows, size, bool(exact))
        self._check_rate(asked, extents, at)

    def _check_rate(self, asked: int, extents: Extents, at: Callable[[int], Extents]) -> None:
        """Compare a number with what is in proportion to the batch size."""
        assert self._rate is not None
        place, rate, size, is_exact = self._rate
        number = extents.get(place, 0)
        if number >= _fewest(rate, asked, size, is_exact):
            if asked > size:
                self._rate = (place, number / asked, asked, is_exact)
            return
        if not number:
            self._raise_short(asked, 0, None)
        if at(2 * asked).get(place, 0) >= 1.5 * number:
            return  # rounded, as by a division by the number of GPUs
        self._check_number(asked, extents, at)
        # Small batches may be padded: the largest one that gets less tells the rate of this one.
        near = asked // 2
        while near and at(near).get(place, 0) >= 0.75 * number:
            near //= 2
        near_rate = at(near).get(place, 0) / near if near else 0.0
        if number >= _fewest(near_rate, asked, near, is_exact and near_rate == rate):
            return
        delivered = min(asked - 1, max(1, int(number / near_rate)))
        self._raise_short(asked, delivered, delivered)

    def _check_constant(
        self, asked: int, high: int, extents: Extents, at: Callable[[int], Extents]
    ) -> None:
        """Find the smallest size that gets the same batch: the size of the batch, unless all get it."""
        total = sum(extents.values())

        def is_same(size: int) -> bool:
            return sum(at(size).values()) >= total

        if max(sum(at(larger).values()) for larger in (2 * asked, high)) >= 1.2 * total:
            return  # the end is further up
        below, same = 0, asked
        while same - below > 1:
            middle = (below + same) // 2
            below, same = (below, middle) if is_same(middle) else (middle, same)
        if 1 < same < asked:
            self._raise_short(asked, same, same)
        if same > 1:
            return
        self.is_constant = True
        raise TargetError(
            f"{self.source} ignores the batch size: {asked:,} samples were asked for, and what it "
            f"delivered ({_largest(extents)}) is the same at every batch size",
            hint="make a batch of as many samples as are asked for; no answer holds for another size",
        )

    def _raise_short(self, asked: int, number: int, delivered: int | None) -> NoReturn:
        why = "" if delivered is None else "; it delivers no more for any larger batch size"
        raise ShortBatchError(
            f"{self.source} was asked for {asked:,} samples and delivered {number:,}{why}",
            delivered=delivered,
            hint=f"ask for {number:,} or fewer, or let it deliver more"
            if delivered
            else "`--multiple-of` names the batch sizes that it delivers",
        )


def _fewest(rate: float, asked: int, size: int, is_exact: bool) -> float:
    """Return the smallest number that agrees with a rate, which was found at another size.

    A sum of random numbers, of tokens say, varies the less the more of them there are.
    """
    tolerance = 0.0 if is_exact else min(0.5, 2 / math.sqrt(max(1, min(asked, size))))
    return rate * asked * (1 - tolerance)


def _largest(extents: Extents) -> str:
    """Return the number of samples that a batch most likely has, as text."""
    obvious = [number for place, number in extents.items() if place.is_obvious]
    return f"{max(obvious or extents.values()):,}"


class Deliveries:
    """What the user's functions of a workload deliver, and what its step passes to modules.

    Args:
        workload: what is trained.

    Attributes:
        batch_form: how the `training_step` of a LightningModule takes its batch; None: it was not asked.
        of_step: numbers of what the first forward pass of a trial passed to modules, in all calls that no
            other module makes.
    """

    def __init__(self, workload: Workload) -> None:
        self._batches = Delivery(f"`--batch-fn {workload.batch_fn}`") if workload.batch_fn else None
        named = f"`--step {workload.step}`" if workload.step else "the module's `training_step`"
        self._steps = Delivery(named)
        self._axis = workload.axis
        self.batch_form: BatchForm | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the numbers of the last trial."""
        self._of_batch: Extents | None = None
        self.of_step: Extents = {}
        self._is_watched = False

    def note_batch(self, batch: Batch) -> None:
        """Note the numbers of the first batch of a trial."""
        if self._batches is not None and self._of_batch is None:
            self._of_batch = extents_of(batch.args, batch.kwargs)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the calls of modules inside, the first time in a trial."""
        if self._is_watched:
            yield
            return
        self._is_watched = True
        depth = 0

        def enter(*_: Any) -> None:
            nonlocal depth
            depth += 1

        def leave(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
            nonlocal depth
            depth -= 1
            if depth == 0:
                self._note_call(type(module).__name__, args, kwargs)

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_call(self, module: str, args: Any, kwargs: Any) -> None:
        for place, number in extents_of(args, kwargs).items():
            together = Place((module, "together", *place.path), place.dim)
            largest = Place((module, "largest", *place.path), place.dim)
            self.of_step[together] = self.of_step.get(together, 0) + number
            self.of_step[largest] = max(self.of_step.get(largest, 0), number)

    def check(self, asked: int, of_batch: Probe, of_step: Probe) -> str | None:
        """Compare what the last trial got with what was asked for.

        Args:
            asked: the batch size of the trial; the size of the axis, if one is searched.
            of_batch: makes a batch of another size.
            of_step: runs a step at another batch size.

        Returns:
            What the reader of the answer must know, if the step does not follow the batch size.

        Raises:
            ShortBatchError: fewer samples were delivered.
            TargetError: the batch is the same, whatever the size.
        """
        batch, step = self._of_batch, self.of_step
        if self._axis is not None:
            asked, step = self._axis.batch_size, {}
        if self._batches is not None and batch:
            try:
                self._batches.check(asked, batch, of_batch)
            except ShortBatchError as error:
                if self._axis is None:
                    raise
                raise TargetError(error.message, hint=error.hint) from None  # at every size
        if not step:
            return None
        try:
            if not self._steps.is_constant:
                self._steps.check(asked, step, of_step)
        except TargetError:
            pass  # the rest of the step may follow the batch size, as with a graph that is always whole
        if not self._steps.is_constant:
            return None
        return (
            f"{self._steps.source} ignores the batch size: what it passes to modules is the same at every "
            "batch size, and so may be the memory of the step"
        )

    @property
    def assumptions(self) -> list[Assumption]:
        """How many rows are delivered for a sample, where that is not one."""
        return [
            Assumption(
                what="rows of a batch",
                value=f"{part.rows:.3g} for each sample of the batch size",
                why=f"{part.source} delivers as many",
            )
            for part in (self._batches, self._steps)
            if part is not None and part.rows is not None
        ]

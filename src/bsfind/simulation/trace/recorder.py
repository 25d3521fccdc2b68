"""Registers of storages: on the simulated GPU, in the host's memory, and kept from trial to trial.

`Recorder` records every allocation and free on the simulated GPU, in order. `HostStorages` are meta
storages that stand for the host's memory: a model before it is moved to the GPU. `KeptStorages` are
those that the user's code keeps from one trial to the next: masks and positions are often cached, by
`functools.lru_cache`, in a dict of a module, on a class. In a process of its own, each trial would
fill such a cache by itself. Caches of functions are cleared between trials; other kept storages
count as allocated when a trial uses them for the first time.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from bsfind.simulation.kernels.call import Call, Rule
from bsfind.simulation.trace.streams import DEFAULT, Streams
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    address_of,
    current_backward,
    current_node,
    sequence_number,
)
from bsfind.workload.state import CachedFunction

ALLOCATE = 0
"""`(ALLOCATE, block, nbytes, operator)`"""
RELEASE = 1
"""`(RELEASE, block)`"""
CALL = 2
"""`(CALL, rule, call, outputs, thread, operator)`: allocations in the order of a rule; each output is
(block, nbytes), or None where it is no new storage"""
MARK = 3
"""`(MARK, name)`: a point of the step, such as the end of a forward pass; `(MARK, "step_end",
gradient_bytes, is_warm_up)`, as `TrainingSteps` says of the step"""
STREAM = 4
"""`(STREAM, number)`: what follows is allocated on this stream; 0, the default one, at the beginning"""

Entry = tuple[Any, ...]

ParallelMemory = Literal[
    "unsharded_parameters",
    "unsharded_gradients",
    "gradient_buckets",
    "all_gather_buffers",
    "reduce_scatter_buffers",
]
"""What a rank of a training on several GPUs allocates for the sake of the others:

* `unsharded_parameters`: parameters that FSDP2 has gathered for a module.
* `unsharded_gradients`: their gradients, before ranks reduce and scatter them.
* `gradient_buckets`: flat copies of gradients, which DistributedDataParallel sums over the ranks.
* `all_gather_buffers`, `reduce_scatter_buffers`: flat tensors that FSDP2 passes to these collectives.
"""


class TooManyEntriesError(BaseException):
    """More entries than were wanted: not an `Exception`, which the user's code may catch."""


class Observer:
    """Told what a trace does, as it happens; this one ignores it (see `inspect.attribution`).

    Attributes:
        recorder: the recorder of the trace, which sets it.
    """

    recorder: Recorder

    def watching(self) -> AbstractContextManager[None]:
        """Return a context that is entered for as long as the tracer is open."""
        return contextlib.nullcontext()

    def making_inputs(self) -> AbstractContextManager[None]:
        """Return a context that is entered around the making of each batch."""
        return contextlib.nullcontext()

    def model_is_loaded(self, model: nn.Module) -> None:
        """The model is on the simulated GPU."""

    def has_targets(self, targets: Sequence[torch.Tensor]) -> None:
        """The loss has these targets."""

    def has_cast(self, weight: torch.Tensor, cast: torch.Tensor) -> None:
        """Autocast has made a copy of a parameter."""

    def has_parallel(self, kind: ParallelMemory, storages: Iterable[Any]) -> None:
        """Storages are what several GPUs need; those that do not lie on the simulated one do not count."""

    def allocates(self, block: int) -> None:
        """A storage is adopted as a block."""

    def calls(self) -> None:
        """A call whose kernel has a rule becomes the next entry."""

    def marks(self, name: str) -> None:
        """A point of the step becomes the next entry."""

    def rewinds(self, count: int) -> None:
        """Entries start anew, with blocks numbered from `count` on."""


class Recorder:
    """Records every allocation and free of a storage on the simulated GPU.

    A storage is freed when its last reference goes, which a weak reference tells at that moment: the
    lifetimes are those of the user's program and of autograd, not an estimate.

    Args:
        observer: told what is recorded, if given.

    Attributes:
        entries: what happened, in order.
        notes: what the reader of the result must know, by code.
        on_free: called with `address_of(storage)` of each storage that is freed.
        streams: the streams of the program.
        summed: blocks of storages that are summed over all ranks of a training on several GPUs.
        most_entries: number of entries above which nothing is allocated any more; None: there is none.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.observer = observer or Observer()
        self.observer.recorder = self
        self.entries: list[Entry] = []
        self.notes: dict[str, str] = {}
        self._storages: dict[int, tuple[int, weakref.ref[Any], int]] = {}
        self._count = 0
        self._allocating_node: dict[int, int] = {}
        self.on_free: Callable[[int], None] = lambda _key: None
        self.streams = Streams()
        self.summed: set[int] = set()
        self.most_entries: int | None = None
        self._stream = DEFAULT

    def knows(self, storage: Any) -> bool:
        """Tell whether a storage lies on the simulated GPU."""
        return self.block_of(storage) is not None

    def block_of(self, storage: Any) -> int | None:
        """Return the block of a storage; None if it does not lie on the simulated GPU."""
        known = self._storages.get(address_of(storage))
        return None if known is None else known[0]

    def adopt(self, storage: Any) -> int | None:
        """Take a storage in, if it is new; returns its block, None if it was known already.

        Raises:
            TooManyEntriesError: there are more entries than `most_entries`.
        """
        if self.most_entries is not None and len(self.entries) > self.most_entries:
            raise TooManyEntriesError
        key = address_of(storage)
        known = self._storages.get(key)
        nbytes = storage.nbytes()
        if known is not None:
            if known[2] == nbytes:
                return None
            self._add((RELEASE, known[0]))  # resized: freed, and allocated anew
        block = self._count
        self._count += 1
        storages = self._storages

        def free(reference: Any) -> None:
            current = storages.get(key)
            if current is not None and current[1] is reference:
                del storages[key]
                self._add((RELEASE, block))
                self.on_free(key)

        storages[key] = (block, weakref.ref(storage, free), nbytes)
        if current_backward() != -1:
            node = current_node()
            if node is not None:
                self._allocating_node[block] = sequence_number(node)
        self.observer.allocates(block)
        return block

    def _follow_stream(self) -> None:
        """Say on which stream the next entry allocates, if it is another than before."""
        stream = self.streams.number_of(self.streams.current, self._count)
        if stream != self._stream:
            self._stream = stream
            self._add((STREAM, stream))

    def _add(self, entry: Entry) -> None:
        """Take in what happened."""
        self.entries.append(entry)

    def allocate(self, tensor: torch.Tensor, operator: str) -> None:
        """Record a tensor's storage as allocated now, unless it is known."""
        self.allocate_storage(tensor.untyped_storage(), operator)

    def allocate_storage(self, storage: Any, operator: str) -> None:
        """Record a storage as allocated now, unless it is known with this size."""
        if self.streams.are_used:
            self._follow_stream()
        block = self.adopt(storage)
        if block is not None:
            self._add((ALLOCATE, block, storage.nbytes(), operator))

    def call(
        self, rule: Rule, call: Call, outputs: list[torch.Tensor | None], operator: str
    ) -> None:
        """Record a call whose kernel has a rule of its own."""
        if self.streams.are_used:
            self._follow_stream()
        blocks: list[tuple[int, int] | None] = []
        for output in outputs:
            block = None if output is None else self.adopt(output.untyped_storage())
            if output is None or block is None:
                blocks.append(None)
            else:
                blocks.append((block, output.untyped_storage().nbytes()))
        self.observer.calls()
        self._add((CALL, rule, call, tuple(blocks), self.thread, operator))

    def alive_since(self, count: int) -> list[tuple[int, Any]]:
        """Return (block, storage) of all storages alive from block `count` on."""
        alive = [
            (block, reference())
            for block, reference, _ in self._storages.values()
            if block >= count
        ]
        return [(block, storage) for block, storage in alive if storage is not None]

    def rewind(self, count: int) -> None:
        """Start a new list of entries, with blocks numbered from `count` on.

        Storages that were allocated later and are alive are forgotten.
        """
        later = [key for key, (block, _, _) in self._storages.items() if block >= count]
        for key in later:
            del self._storages[key]
        self._count = count
        self._stream = DEFAULT
        self.streams.rewind(count)
        self._allocating_node.clear()
        self.entries = []
        self.observer.rewinds(count)

    @property
    def count(self) -> int:
        """The number of the next block."""
        return self._count

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storages that are alive on the simulated GPU."""
        return sum(nbytes for _, _, nbytes in self._storages.values())

    def mark(self, name: str) -> None:
        """Record a point of the step."""
        self.observer.marks(name)
        self._add((MARK, name))

    def step_is_over(self, gradient_bytes: int, *, is_warm_up: bool) -> None:
        """Record the end of a step (see `TrainingSteps`)."""
        self._add((MARK, "step_end", gradient_bytes, is_warm_up))

    def size_since(self, first: int) -> tuple[int, int]:
        """Return by how many bytes storages grew at most, and how many were allocated in all.

        The scratch memory of kernels is not counted.

        Args:
            first: index of the first entry that counts.
        """
        sizes: dict[int, int] = {}
        held = peak = total = 0
        for entry in self.entries[first:]:
            if entry[0] == ALLOCATE:
                allocated = [(entry[1], entry[2])]
            elif entry[0] == CALL:
                allocated = [output for output in entry[3] if output is not None]
            else:
                if entry[0] == RELEASE:
                    held -= sizes.pop(entry[1], 0)
                continue
            sizes.update(allocated)
            nbytes = sum(size for _, size in allocated)
            held, total = held + nbytes, total + nbytes
            peak = max(peak, held)
        return peak, total

    def note(self, code: str, message: str) -> None:
        """Keep something for the reader of the result, once for each code (`code` or `code:what`)."""
        self.notes.setdefault(code, message)

    @property
    def thread(self) -> str:
        """Who allocates: the main thread, or the autograd engine's thread of the device.

        On CUDA a backward pass runs in a thread of its own (torch/csrc/autograd/engine.cpp, torch
        2.6-2.13), which has its own cuBLAS handle and workspace.
        """
        return "main" if current_backward() == -1 else "autograd"

    def allocating_node(self, storage: Any) -> int | None:
        """Return the autograd node that allocated a storage; None outside of backward passes."""
        known = self._storages.get(address_of(storage))
        return None if known is None else self._allocating_node.get(known[0])


_LARGE = 32 << 20
"""Bytes from which on a tensor of the host has no values. Constructors read small ones (drop-path rates,
tables of positions); what is as large as this is a weight, or is used like one."""


def is_large(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is too large to be kept with its values."""
    return tensor.numel() * tensor.element_size() >= _LARGE


_STORAGES: dict[int, weakref.ref[Any]] = {}
"""Storages of this process, made under any tracer: modules keep what they made when imported."""


class HostStorages:
    """The set of these storages, which lets go of freed ones; false while it is empty.

    Args:
        on_free: called with `address_of(storage)` of each storage of the set that is freed.

    Attributes:
        replacements: parameters that took the place of others, which could not be made meta in place.
    """

    def __init__(self, on_free: Callable[[int], None]) -> None:
        self._on_free = on_free
        self.replacements: MutableMapping[torch.Tensor, torch.nn.Parameter] = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(_STORAGES)

    def add(self, tensor: torch.Tensor) -> None:
        """Add a tensor's storage."""
        storage = tensor.untyped_storage()
        key, on_free = address_of(storage), self._on_free

        def free(reference: Any) -> None:
            if _STORAGES.get(key) is reference:
                del _STORAGES[key]
                on_free(key)

        if key not in _STORAGES:
            _STORAGES[key] = weakref.ref(storage, free)

    def has(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's storage is in the set."""
        if not _STORAGES or tensor.layout is not torch.strided:
            return False
        return address_of(tensor.untyped_storage()) in _STORAGES


class KeptStorages:
    """Storages with the values that are known of them; lets go of freed ones; false while empty."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[weakref.ref[Any], torch.Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self._storages)

    def add(self, storage: Any, values: torch.Tensor | None) -> None:
        """Add a storage, with the copy of its values that `Values` keeps."""
        key = address_of(storage)
        kept = self._storages
        kept[key] = (weakref.ref(storage, lambda _: kept.pop(key, None)), values)

    def has(self, storage: Any) -> bool:
        """Tell whether a storage is one of these."""
        return address_of(storage) in self._storages

    def take(self, storage: Any) -> torch.Tensor | None:
        """Remove a storage, if it is there, and return the copy of its values."""
        known = self._storages.pop(address_of(storage), None)
        return None if known is None else known[1]


KEPT = KeptStorages()
"""Kept storages of this process, made under any tracer."""


def clear_function_caches() -> bool:
    """Clear the caches of functions that hold simulated tensors; returns whether there were any.

    Caches of `functools.lru_cache` and `functools.cache`. Objects that `gc.freeze` put aside are
    not looked at.
    """
    found = False
    for function in gc.get_objects():
        if type(function) is CachedFunction and any(map(_is_simulated, _cached(function))):
            function.cache_clear()
            found = True
    return found


def _cached(function: Any) -> Iterator[Any]:
    """Yield what a function's cache holds, and what is in the tuples, lists and dicts of it."""
    own = (id(function.__dict__), id(function.__wrapped__))
    waiting = [part for part in gc.get_referents(function) if id(part) not in own]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield value
            if isinstance(value, (tuple, list, dict)):
                waiting += gc.get_referents(value)


def _is_simulated(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    with TorchFunctionOff():
        return value.is_meta

"""Keeps the books of simulated GPU memory: which storage was born and died, in which order."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from bsfind.simulation.kernels.call import Call, Rule
from bsfind.simulation.trace.torch_private import (
    address_of,
    current_backward,
    current_node,
    sequence_number,
)

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

Entry = tuple[Any, ...]


class Recorder:
    """Writes down every birth and death of a storage on the simulated GPU.

    A storage dies when its last reference does, which a weak reference tells at that very moment:
    the lifetimes are those of the user's program and of autograd, not an estimate.

    Attributes:
        entries: what happened, in order.
        notes: what the reader of the result must know, by code.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.notes: dict[str, str] = {}
        self._storages: dict[int, tuple[int, weakref.ref[Any], int]] = {}
        self._count = 0
        self._birth_node: dict[int, int] = {}
        self._on_death: list[Callable[[int], None]] = []

    def when_a_storage_dies(self, callback: Callable[[int], None]) -> None:
        """Call `callback(address_of(storage))` at each death."""
        self._on_death.append(callback)

    def knows(self, storage: Any) -> bool:
        """Tell whether a storage lies on the simulated GPU."""
        return address_of(storage) in self._storages

    def adopt(self, storage: Any) -> int | None:
        """Take a storage in, if it is new; returns its block, None if it was known already."""
        key = address_of(storage)
        known = self._storages.get(key)
        nbytes = storage.nbytes()
        if known is not None:
            if known[2] == nbytes:
                return None
            self.entries.append((RELEASE, known[0]))  # resized: freed, and allocated anew
        block = self._count
        self._count += 1
        storages, callbacks = self._storages, self._on_death

        def died(reference: Any) -> None:
            current = storages.get(key)
            if current is None or current[1] is not reference:
                return
            del storages[key]
            self.entries.append((RELEASE, block))
            for callback in callbacks:
                callback(key)

        storages[key] = (block, weakref.ref(storage, died), nbytes)
        if current_backward() != -1:
            node = current_node()
            if node is not None:
                self._birth_node[block] = sequence_number(node)
        return block

    def born(self, tensor: torch.Tensor, operator: str) -> None:
        """Record a tensor's storage as allocated now, unless it is known."""
        storage = tensor.untyped_storage()
        block = self.adopt(storage)
        if block is not None:
            self.entries.append((ALLOCATE, block, storage.nbytes(), operator))

    def called(
        self, rule: Rule, call: Call, outputs: list[torch.Tensor | None], operator: str
    ) -> None:
        """Record a call whose kernel has a rule of its own."""
        blocks: list[tuple[int, int] | None] = []
        for output in outputs:
            block = None if output is None else self.adopt(output.untyped_storage())
            if output is None or block is None:
                blocks.append(None)
            else:
                blocks.append((block, output.untyped_storage().nbytes()))
        self.entries.append((CALL, rule, call, tuple(blocks), self.thread, operator))

    def born_since(self, count: int) -> list[tuple[int, Any]]:
        """Return (block, storage) of all storages alive that were born as block `count` or later."""
        alive = [
            (block, reference())
            for block, reference, _ in self._storages.values()
            if block >= count
        ]
        return [(block, storage) for block, storage in alive if storage is not None]

    def rewind(self, count: int) -> None:
        """Start a new list of entries, with blocks numbered from `count` on.

        Storages that were born later and are alive are forgotten.
        """
        later = [key for key, (block, _, _) in self._storages.items() if block >= count]
        for key in later:
            del self._storages[key]
        self._count = count
        self._birth_node.clear()
        self.entries = []

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
        self.entries.append((MARK, name))

    def step_is_over(self, gradient_bytes: int, *, is_warm_up: bool) -> None:
        """Record the end of a step (see `TrainingSteps`)."""
        self.entries.append((MARK, "step_end", gradient_bytes, is_warm_up))

    def size_since(self, first: int) -> tuple[int, int]:
        """Return by how many bytes storages grew at most, and how many were allocated in all.

        Args:
            first: the entry from which to count. Storages are counted, not the scratch of kernels.
        """
        sizes: dict[int, int] = {}
        held = peak = total = 0
        for entry in self.entries[first:]:
            if entry[0] == ALLOCATE:
                born = [(entry[1], entry[2])]
            elif entry[0] == CALL:
                born = [output for output in entry[3] if output is not None]
            else:
                if entry[0] == RELEASE:
                    held -= sizes.pop(entry[1], 0)
                continue
            sizes.update(born)
            nbytes = sum(size for _, size in born)
            held, total = held + nbytes, total + nbytes
            peak = max(peak, held)
        return peak, total

    def note(self, code: str, message: str) -> None:
        """Keep something for the reader of the result, once for each code (`code` or `code:what`)."""
        self.notes.setdefault(code, message)

    # --------------------------------------- told by the tracer, for a recorder that attributes

    def watching(self) -> AbstractContextManager[None]:
        """Return what is entered around all that is traced: nothing."""
        return contextlib.nullcontext()

    def model_is_loaded(self, model: nn.Module) -> None:
        """Take note of the model on the simulated GPU."""

    def making_inputs(self) -> AbstractContextManager[None]:
        """Return what is entered around the making of a batch: nothing."""
        return contextlib.nullcontext()

    def has_targets(self, targets: Sequence[torch.Tensor]) -> None:
        """Take note of the targets of the loss."""

    def has_cast(self, weight: torch.Tensor, cast: torch.Tensor) -> None:
        """Take note of autocast's copy of a parameter."""

    @property
    def thread(self) -> str:
        """Who allocates: the main thread, or the autograd engine's thread of the device.

        On CUDA a backward pass runs in a thread of its own (torch/csrc/autograd/engine.cpp, torch
        2.6-2.13), which has its own cuBLAS handle and workspace.
        """
        return "main" if current_backward() == -1 else "autograd"

    def birth_node(self, storage: Any) -> int | None:
        """Return the autograd node during which a storage was born; None outside backward."""
        known = self._storages.get(address_of(storage))
        return None if known is None else self._birth_node.get(known[0])

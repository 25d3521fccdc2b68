"""The allocations of a traced step as a program, its replay, and the operators that it consists of.

The recorder lists when storages are allocated and freed; rules say what kernels allocate besides. A
`Program` puts both into one list of events: `n >= 0` allocates n bytes, `n < 0` frees block `-n - 1`.
Blocks are numbered in the order of their allocation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from bsfind.failures.leaks import StepMemory
from bsfind.records import ModelKind
from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.recording import replay
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, Rule
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, MARK, RELEASE, STREAM, Entry
from bsfind.simulation.trace.streams import DEFAULT
from bsfind.trial import BatchVariation


class StepEnd(NamedTuple):
    """What `TrainingSteps` says of a step.

    Attributes:
        gradient_bytes: size of the gradients that parameters have after it.
        is_warm_up: whether it differs from later ones.
    """

    gradient_bytes: int
    is_warm_up: bool


class Source(NamedTuple):
    """Where a block of a program comes from.

    Attributes:
        entry: index among the entries of the load, or of the trial.
        block: the recorder's number of the tensor's storage; None: it is the kernel's own memory.
        is_trial: which entries those are.
    """

    entry: int
    block: int | None
    is_trial: bool


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay counted.

    Attributes:
        peak_allocated_bytes: peak allocated of the trial, the model included.
        peak_reserved_bytes: peak reserved of the trial.
        resident_bytes: bytes that are allocated after each step.
        memory: what the detection of leaks needs of each step.
        activation_bytes: the most that a forward pass left allocated for the backward pass.
        retries: allocation retries so far, after each step.
        peaks_by_step: peak allocated of each step.
        peaks_of_steps: peak reserved and allocated of the steps.
        peaks_of_evaluation: those of the evaluation pass; None without one.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    resident_bytes: tuple[int, ...]
    memory: tuple[StepMemory, ...]
    activation_bytes: int
    retries: tuple[int, ...]
    peaks_by_step: tuple[int, ...]
    peaks_of_steps: tuple[int, int]
    peaks_of_evaluation: tuple[int, int] | None


@dataclass
class Program:
    """Allocations until the model is on the GPU, and those of the steps of one trial.

    Attributes:
        load_events: events until the model is on the GPU.
        trial_events: events of the trial; block numbers continue those of `load_events`.
        operators: for each event of both, the operator that allocated (empty for frees).
        marks: (number of trial events before it, name) of points of the step.
        optional: positions in `trial_events` of scratch memory that a kernel can do without, with
            the smaller sizes that it tries then.
        step_ends: the end of each step.
        traced_steps: how many of its steps were traced at its very batch size; 0: they follow from
            traces of other sizes.
        batches: how much the batches of the steps vary; None: they are all alike.
        streams: the stream of each block; empty: all are on one.
        repeats: whether a trace of another size tells that its last step repeats.
    """

    load_events: list[int] = field(default_factory=list)
    trial_events: list[int] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    optional: dict[int, tuple[int, ...]] = field(default_factory=dict)
    step_ends: list[StepEnd] = field(default_factory=list)
    traced_steps: int = 0
    batches: BatchVariation | None = None
    streams: list[int] = field(default_factory=list)
    repeats: bool = False

    def load(self, allocator: CachingAllocator) -> list[Block | None]:
        """Allocate the model; returns the blocks, for `replay`.

        Raises:
            SimulatedOutOfMemoryError: it does not fit.
        """
        blocks: list[Block | None] = []
        replay(allocator, blocks, self.load_events, {}, streams=self.streams)
        allocator.empty_cache()
        allocator.reset_peaks()
        return blocks

    def replay(self, allocator: CachingAllocator, blocks: list[Block | None]) -> Replayed:
        """Run the trial on an allocator that holds the model.

        Args:
            allocator: allocator, as `load` left it.
            blocks: the blocks that `load` returned.

        Raises:
            SimulatedOutOfMemoryError: it does not fit.
        """
        allocator.reset_peaks()
        retries_before = allocator.num_alloc_retries
        resident: list[int] = []
        memory: list[StepMemory] = []
        peaks: list[int] = []
        allocated = reserved = 0
        retries: list[int] = []
        activation = 0
        begin = before = 0
        sizes = [event for event in (*self.load_events, *self.trial_events) if event >= 0]
        held = most_held = sum(_changes(self.load_events, sizes))
        for end, name in self.marks:
            part = self.trial_events[begin:end]
            if name in ("forward_begin", "evaluation_begin"):
                allocated = max(allocated, allocator.peak_allocated_bytes)
                reserved = max(reserved, allocator.peak_reserved_bytes)
                allocator.reset_peaks()
                most_held = held
            try:
                replay(allocator, blocks, part, self.optional, begin, self.streams[len(blocks) :])
            except SimulatedOutOfMemoryError as error:
                error.is_in_evaluation = name == "evaluation_end"
                raise
            changes = _changes(part, sizes)
            most_held = max(most_held, held + max(accumulate(changes), default=0))
            held += sum(changes)
            begin = end
            if name == "forward_begin":
                before = held
            elif name == "forward_end":
                activation = max(activation, held - before)
            elif name == "step_end":
                resident.append(allocator.allocated_bytes)
                end_of_step = self.step_ends[len(memory)]
                memory.append(
                    StepMemory(
                        held_bytes=held - end_of_step.gradient_bytes,
                        peak_bytes=most_held,
                        is_warm_up=end_of_step.is_warm_up,
                    )
                )
                peaks.append(allocator.peak_allocated_bytes)
                retries.append(allocator.num_alloc_retries - retries_before)
        rest = self.trial_events[begin:]
        replay(allocator, blocks, rest, self.optional, begin, self.streams[len(blocks) :])
        last = (allocator.peak_reserved_bytes, allocator.peak_allocated_bytes)
        is_evaluated = any(name == "evaluation_end" for _, name in self.marks)
        most = (max(reserved, last[0]), max(allocated, last[1]))
        return Replayed(
            peak_allocated_bytes=most[1],
            peak_reserved_bytes=most[0],
            peaks_of_steps=(reserved, allocated) if is_evaluated else most,
            peaks_of_evaluation=last if is_evaluated else None,
            resident_bytes=tuple(resident),
            memory=tuple(memory),
            activation_bytes=activation,
            retries=tuple(retries),
            peaks_by_step=tuple(peaks),
        )


def _changes(events: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return by how much each event changes the requested bytes, given the sizes of all blocks."""
    return [event if event >= 0 else -sizes[-event - 1] for event in events]


def program_of(
    load_entries: Sequence[Entry],
    trial_entries: Sequence[Entry],
    gpu: GpuSpec,
    sources: list[Source] | None = None,
) -> Program:
    """Return the program of a trace on a GPU.

    Args:
        load_entries: entries of the recorder until the model is on the GPU.
        trial_entries: entries of the recorder of the trial.
        gpu: the GPU whose kernels run.
        sources: list that gets the source of each block of the program, if it is wanted.
    """
    program = Program()
    writer = Writer(gpu, sources)
    writer.write(load_entries, program.load_events, program)
    writer.stream = DEFAULT
    writer.write(trial_entries, program.trial_events, program, is_trial=True)
    return program


class Writer:
    """Numbers blocks while it turns entries to events.

    Args:
        gpu: the GPU whose kernels run.
        sources: list that gets the source of each block, if it is wanted.

    Attributes:
        gpu: the GPU; what is set there may change.
        stream: the stream on which the next entry allocates.
    """

    def __init__(self, gpu: GpuSpec, sources: list[Source] | None = None) -> None:
        self.gpu = gpu
        self.stream = DEFAULT
        self._has_streams = False
        self._sources = sources
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._workspaces: set[tuple[str, str, int]] = set()
        # By the call's identity; it is kept, so that no other one gets its place.
        self._known: dict[int, tuple[Call, list[tuple[str, Any, int]]]] = {}

    def write(
        self,
        entries: Sequence[Entry],
        events: list[int],
        program: Program,
        *,
        is_trial: bool = False,
    ) -> None:
        """Append the events of some entries, and what the program says about them."""
        operators, numbers, sources = program.operators, self._numbers, self._sources
        for index, entry in enumerate(entries):
            kind = entry[0]
            if kind == ALLOCATE:
                _, block, nbytes, operator = entry
                numbers[block] = self._count
                self._count += 1
                events.append(nbytes)
                operators.append(operator)
                if sources is not None:
                    sources.append(Source(index, block, is_trial))
            elif kind == RELEASE:
                number = numbers.pop(entry[1], None)
                if number is not None:
                    events.append(-number - 1)
                    operators.append("")
            elif kind == MARK:
                if is_trial:
                    program.marks.append((len(events), entry[1]))
                    if len(entry) > 2:
                        program.step_ends.append(StepEnd(*entry[2:]))
            elif kind == CALL:
                self._write_call(index, entry, events, program, is_trial=is_trial)
            elif kind == STREAM:
                self._has_streams = True
                self._name_stream(program)
                self.stream = entry[1]
        self._name_stream(program)

    def _name_stream(self, program: Program) -> None:
        """Say that the last blocks are on the current stream."""
        if self._has_streams:
            program.streams += [self.stream] * (self._count - len(program.streams))

    def _steps_of(self, rule: Rule, call: Call) -> list[tuple[str, Any, int]]:
        """Ask a rule, once for the calls that repeat: those are one object."""
        known = self._known.get(id(call))
        if known is None:
            trace = KernelTrace(call)
            rule(call, self.gpu, trace)
            known = self._known[id(call)] = (call, trace.finish())
        return known[1]

    def _write_call(
        self, index: int, entry: Entry, events: list[int], program: Program, *, is_trial: bool
    ) -> None:
        _, rule, call, blocks, thread, operator = entry
        scratch: dict[int, int] = {}  # handle → number
        for what, which, nbytes in self._steps_of(rule, call):
            block = None
            if what == "output":
                if blocks[which] is None:
                    continue
                block, size = blocks[which]
                size = max(size, nbytes)  # a loss that is reduced keeps the storage of its terms
                self._numbers[block] = self._count
            elif what in ("scratch", "optional"):
                scratch[which] = self._count
                size = nbytes
                if what == "optional" and is_trial:
                    program.optional[len(events)] = ()
            elif what == "workspace":
                owner = (which, thread, self.stream)
                if owner in self._workspaces:
                    continue
                self._workspaces.add(owner)
                size = nbytes
            elif what == "free":
                events.append(-scratch[which] - 1)
                program.operators.append("")
                continue
            else:  # skipped: it takes no memory of the GPU, and its release must not either
                continue
            self._count += 1
            events.append(size)
            program.operators.append(operator)
            if self._sources is not None:
                self._sources.append(Source(index, block, is_trial))


_FUSED_ATTENTION = "aten::_scaled_dot_product_"
_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")
_BATCHED_PRODUCTS = {"aten::bmm": ("self", "mat2"), "aten::baddbmm": ("batch1", "batch2")}


@dataclass(frozen=True, kw_only=True)
class StepOperators:
    """How often the forward passes of a trace call the operators that tell models apart.

    Attributes:
        convolutions: calls of `aten::convolution`.
        attentions: calls of the fused kernels of `scaled_dot_product_attention`, and softmaxes between
            two batched matrix products, by their shapes: attention that is written out.
        recurrent: calls of cuDNN's recurrent layers.
    """

    convolutions: int = 0
    attentions: int = 0
    recurrent: int = 0

    @property
    def kind(self) -> ModelKind:
        """What most of these calls are.

        What is harder to predict decides a tie, and cuDNN's recurrent layers decide wherever they
        occur: nothing is known of their workspaces.
        """
        if self.recurrent:
            return "recurrent"
        if not self.convolutions and not self.attentions:
            return "other"
        return "convolutional" if self.convolutions >= self.attentions else "attention"


def operators_of(entries: Iterable[Entry]) -> StepOperators:
    """Return the operators of a trace.

    Args:
        entries: entries of the recorder of a trial.
    """
    convolutions = attentions = recurrent = 0
    products: set[tuple[int, ...]] = set()
    weights: Counter[tuple[int, ...]] = Counter()
    for entry in entries:
        if entry[0] != CALL:
            continue
        call: Call = entry[2]
        name = call.operator
        if name == "aten::convolution":
            convolutions += 1
        elif name == "aten::_cudnn_rnn":
            recurrent += 1
        elif name.startswith(_FUSED_ATTENTION) and not name.endswith("_backward"):
            attentions += 1
        elif name in _SOFTMAX:
            output = call.outputs[0]
            if output is not None and output.dim >= 3:
                shape = (math.prod(output.shape[:-2]), *output.shape[-2:])
                if shape in products or _turned(shape) in products:
                    weights[shape] += 1
        elif name in _BATCHED_PRODUCTS:
            for argument in _BATCHED_PRODUCTS[name]:
                shape = call.tensor(argument).shape
                attentions += weights.pop(shape, 0) + weights.pop(_turned(shape), 0)
            products.update(output.shape for output in call.outputs if output is not None)
    return StepOperators(convolutions=convolutions, attentions=attentions, recurrent=recurrent)


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    batch, rows, columns = shape
    return batch, columns, rows

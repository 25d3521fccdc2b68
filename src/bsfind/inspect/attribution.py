"""Who allocated: a recorder that also notes module, pass, and what tensors turn out to be.

Modules are known by hooks around each forward pass; in a backward pass by the autograd node that
runs, since nodes are numbered in the order of the forward pass that made them. What is a parameter,
a gradient, or the optimizer's is read off the objects that hold it, when it can be.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bsfind.inspect.compose import Allocation, Course, Origin
from bsfind.inspect.records import Category
from bsfind.simulation.kernels.call import Call, Rule
from bsfind.simulation.trace.calls import flat_tensors
from bsfind.simulation.trace.module_stack import ModuleStack
from bsfind.simulation.trace.program import Program, Source
from bsfind.simulation.trace.recorder import Recorder
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    address_of,
    buffers_of,
    current_backward,
    parameters_of,
)


class _Birth(NamedTuple):
    """In which pass and module something was allocated."""

    origin: Origin
    module: str | None


class _Role(NamedTuple):
    """What a tensor turned out to be, and the module that it belongs to."""

    category: Category
    module: str | None


class AttributingRecorder(Recorder):
    """Notes who allocates, beside what is allocated. For the trace of one batch size.

    It watches, and changes nothing: the entries are those of a plain recorder.
    """

    def __init__(self) -> None:
        super().__init__()
        self._modules = ModuleStack()
        self._births: dict[int, _Birth] = {}
        self._calls: dict[int, _Birth] = {}
        self._roles: dict[int, _Role] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self._origin: Origin = "load"
        self._is_recomputing = False

    def course(self, program: Program, sources: list[Source], *, trains: bool) -> Course:
        """Return a program's events with the owner of each block.

        Args:
            program: of the last trace.
            sources: of its blocks, from `program_of`.
            trains: whether the trace has backward passes.
        """
        return Course(
            load_events=program.load_events,
            trial_events=program.trial_events,
            operators=program.operators,
            marks=program.marks,
            optional=program.optional,
            allocations=[self._allocation(source) for source in sources],
            classes=self._modules.classes,
            trains=trains,
        )

    def _allocation(self, source: Source) -> Allocation:
        if source.block is None:
            unknown = _Birth("load", None)
            birth = self._calls.get(source.entry, unknown) if source.is_trial else unknown
            return Allocation(birth.origin, birth.module, is_tensor=False)
        birth = self._births[source.block]
        role = self._roles.get(source.block)
        if role is None:
            return Allocation(birth.origin, birth.module)
        return Allocation(birth.origin, role.module, role.category)

    # ---------------------------------------------------------------------- what is recorded

    def adopt(self, storage: Any) -> int | None:
        """Take a storage in (see `Recorder.adopt`)."""
        block = super().adopt(storage)
        if block is not None:
            self._births[block] = self._birth()
        return block

    def called(
        self, rule: Rule, call: Call, outputs: list[torch.Tensor | None], operator: str
    ) -> None:
        """Record a call (see `Recorder.called`)."""
        birth = self._birth()
        super().called(rule, call, outputs, operator)
        self._calls[len(self.entries) - 1] = birth

    def rewind(self, count: int) -> None:
        """Start again (see `Recorder.rewind`)."""
        super().rewind(count)
        for known in (self._births, self._roles):
            for block in [block for block in known if block >= count]:
                del known[block]
        self._calls.clear()
        self._is_recomputing = False
        self._origin = "setup" if count else "load"

    def mark(self, name: str) -> None:
        """Record a point of the step."""
        self._end_recomputation()
        super().mark(name)
        self._look_at_model()
        if name == "forward_begin":
            self._origin = "forward"
        elif name == "forward_end":
            self._origin = "backward"
        elif name == "step_end":
            self._origin = "setup"

    def _birth(self) -> _Birth:
        """Return where the program is."""
        if self._origin == "backward" and current_backward() != -1:
            if self._modules.is_inside or torch.is_grad_enabled():
                self._is_recomputing = True
                return _Birth("recompute", self._modules.current or self._modules.of_node())
            self._end_recomputation()
            return _Birth("backward", self._modules.of_node())
        self._end_recomputation()
        return _Birth(self._origin, self._modules.current)

    def _end_recomputation(self) -> None:
        # Not when the recomputation returns, but when something else is allocated: by then the
        # locals of its functions are gone.
        if self._is_recomputing:
            self._is_recomputing = False
            super().mark("recompute_end")

    # ------------------------------------------------------------------- what it is told

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow modules and optimizers while inside."""
        before = register_optimizer_step_pre_hook(self._before_step)
        after = register_optimizer_step_post_hook(self._after_step)
        try:
            with self._modules.watching():
                yield
        finally:
            before.remove()
            after.remove()

    def model_is_loaded(self, model: nn.Module) -> None:
        """Take note of the model on the simulated GPU."""
        self._model = weakref.ref(model)
        self._modules.name(model)
        self._look_at_model()
        self._origin = "setup"

    @contextlib.contextmanager
    def making_inputs(self) -> Iterator[None]:
        """Count what is made inside as inputs."""
        self._origin = "inputs"
        try:
            yield
        finally:
            self._origin = "forward"

    def has_targets(self, targets: Sequence[torch.Tensor]) -> None:
        """Take note of the targets, which may have been made in the forward pass."""
        for tensor in targets:
            self._is(tensor, "inputs", None)

    def has_cast(self, weight: torch.Tensor, cast: torch.Tensor) -> None:
        """Take note of autocast's copy of a parameter."""
        self._is(cast, "weight_casts", self._modules.owner_of(weight, self._modules.current))

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._look_at_model()
        self._origin = "optimizer"

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for owner, state in optimizer.state.items():
            module = None
            if isinstance(owner, torch.Tensor):
                module = self._modules.owner_of(owner, None)
            for tensor in _tensors_in(state):
                self._is(tensor, "optimizer_state", module)
        self._origin = "backward"

    def _look_at_model(self) -> None:
        """See which tensors are the model's now, and which are gradients."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        for path, module in model.named_modules():
            for tensor in (*parameters_of(module).values(), *buffers_of(module).values()):
                if tensor is not None:
                    self._is(tensor, "parameters", path)
                    if tensor.is_leaf and tensor.grad is not None:
                        self._is(tensor.grad, "gradients", path)

    def _is(self, tensor: torch.Tensor, category: Category, module: str | None) -> None:
        """Take note of what a tensor is; what it was found to be first counts."""
        with TorchFunctionOff():
            for part in flat_tensors(tensor):
                if part is None or not part.is_meta:
                    continue
                known = self._storages.get(address_of(part.untyped_storage()))
                if known is not None:
                    self._roles.setdefault(known[0], _Role(category, module))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an optimizer's state, however it is nested."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)

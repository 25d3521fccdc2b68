"""Who allocates: notes for each allocation its module, its pass, and what the tensor is.

In a forward pass hooks tell the module; in a backward pass the autograd node that runs does, since
nodes are numbered in the order in which the forward pass made them. Parameters, gradients and the
optimizer's state are found in the objects that hold them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bsfind.devices.base import DoesNotFit
from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import BsfindError
from bsfind.inspect.compose import Allocation, AttributedTrial, Origin, compose
from bsfind.inspect.inspection import Category, PrecisionInspection
from bsfind.settings import Workload
from bsfind.simulation.trace.calls import flat_tensors
from bsfind.simulation.trace.module_stack import ModuleStack
from bsfind.simulation.trace.program import Program, Source
from bsfind.simulation.trace.recorder import MARK, Observer, ParallelMemory
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    buffers_of,
    current_backward,
    parameters_of,
)
from bsfind.workload.outputs import is_sharded, local_part


class _Place(NamedTuple):
    """The part of the trial, and the module, in which something is allocated."""

    origin: Origin
    module: str | None


class _Role(NamedTuple):
    """What a tensor is known to be, and the path of the module that it belongs to."""

    category: Category
    module: str | None


class Attribution(Observer):
    """Notes who allocates in the traces of one batch size."""

    def __init__(self) -> None:
        self._modules = ModuleStack()
        self._places: dict[int, _Place] = {}
        self._places_of_calls: dict[int, _Place] = {}
        self._roles: dict[int, _Role] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self._origin: Origin = "load"
        self._is_recomputing = False

    def attributed(
        self, program: Program, sources: Sequence[Source], *, trains: bool
    ) -> AttributedTrial:
        """Return a program's events with who allocated each block.

        Args:
            program: the program of the last trace.
            sources: the source of each block, from `program_of`.
            trains: whether the trace has backward passes.
        """
        return AttributedTrial(
            program=program,
            allocations=[self._allocation(source) for source in sources],
            classes=self._modules.classes,
            trains=trains,
        )

    def _allocation(self, source: Source) -> Allocation:
        if source.block is None:
            unknown = _Place("load", None)
            calls = self._places_of_calls if source.is_trial else {}
            return Allocation(*calls.get(source.entry, unknown), is_tensor=False)
        place = self._places[source.block]
        role = self._roles.get(source.block)
        if role is None:
            return Allocation(*place)
        return Allocation(place.origin, role.module, role.category)

    # ---------------------------------------------------------------- what the recorder records

    def allocates(self, block: int) -> None:
        """Note who allocates a block."""
        self._places[block] = self._place()

    def calls(self) -> None:
        """Note who calls a kernel, which may allocate memory of its own."""
        place = self._place()
        self._places_of_calls[len(self.recorder.entries)] = place

    def rewinds(self, count: int) -> None:
        """Forget the blocks from `count` on."""
        for known in (self._places, self._roles):
            for block in [block for block in known if block >= count]:
                del known[block]
        self._places_of_calls.clear()
        self._is_recomputing = False
        self._origin = "setup" if count else "load"

    def marks(self, name: str) -> None:
        """Note which part of the trial comes next."""
        self._end_recomputation()
        self._look_at_model()
        if name == "forward_begin":
            self._origin = "forward"
        elif name == "forward_end":
            self._origin = "backward"

    def _place(self) -> _Place:
        """Return where the program is."""
        if self._origin == "backward" and current_backward() != -1:
            if self._modules.is_inside or torch.is_grad_enabled():
                self._is_recomputing = True
                return _Place("recompute", self._modules.current or self._modules.of_node())
            self._end_recomputation()
            return _Place("backward", self._modules.of_node())
        self._end_recomputation()
        # A step with several backward passes goes forward again after each.
        is_forward = self._origin == "backward" and self._modules.is_inside
        return _Place("forward" if is_forward else self._origin, self._modules.current)

    def _end_recomputation(self) -> None:
        # Not when the recomputation returns, but when something else is allocated: the locals of
        # its functions are released then.
        if self._is_recomputing:
            self._is_recomputing = False
            self.recorder.entries.append((MARK, "recompute_end"))

    # ------------------------------------------------------------------- what the tracer does

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
        """Note the modules and the tensors of the model."""
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
        """Note the targets, which may have been made in the forward pass."""
        for tensor in targets:
            self._is(tensor, "inputs", None)

    def has_cast(self, weight: torch.Tensor, cast: torch.Tensor) -> None:
        """Note autocast's copy of a parameter."""
        self._is(cast, "weight_casts", self._modules.owner_of(weight, self._modules.current))

    def has_parallel(self, kind: ParallelMemory, storages: Iterable[Any]) -> None:
        """Note memory that several GPUs need, as that of the module where it is allocated."""
        for storage in storages:
            block = self.recorder.block_of(storage)
            if block is not None:
                # The buckets are made while the model is wrapped, whose wrapper holds them.
                module = "" if kind == "gradient_buckets" else self._places[block].module
                self._roles.setdefault(block, _Role(kind, module))

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
        """Note which tensors are parameters, buffers and gradients now."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        for path, module in model.named_modules():
            for tensor in (*parameters_of(module).values(), *buffers_of(module).values()):
                if tensor is not None:
                    kind: Category = "sharded_parameters" if is_sharded(tensor) else "parameters"
                    self._is(tensor, kind, path)
                    if tensor.is_leaf and tensor.grad is not None:
                        gathered = self._is_gathered(tensor)
                        kind = "unsharded_gradients" if gathered else "gradients"
                        self._is(tensor.grad, kind, path)

    def _is(self, tensor: torch.Tensor, category: Category, module: str | None) -> None:
        """Note what a tensor is, unless it is known to be something."""
        for block in self._blocks_of(tensor):
            known = self._roles.get(block)
            # With `gradient_as_bucket_view` gradients lie in the buckets.
            if known is None or known.category == "gradient_buckets":
                self._roles[block] = _Role(category, module)

    def _is_gathered(self, parameter: torch.Tensor) -> bool:
        roles = [self._roles.get(block) for block in self._blocks_of(parameter)]
        return any(role and role.category == "unsharded_parameters" for role in roles)

    def _blocks_of(self, tensor: torch.Tensor) -> list[int]:
        """Return the blocks in which a tensor lies."""
        with TorchFunctionOff():
            parts = [each for each in flat_tensors(local_part(tensor)) if each is not None]
            storages = [part.untyped_storage() for part in parts if part.is_meta]
        blocks = map(self.recorder.block_of, storages)
        return [block for block in blocks if block is not None]


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


class InspectedModel:
    """A model on a simulated GPU, to be inspected once.

    Args:
        device: the simulated GPU.
        workload: what to train.
        precision: the precision of the step.

    Attributes:
        class_name: class of the model.

    Raises:
        BsfindError: the model cannot be built. That it does not fit is not an error.
    """

    def __init__(self, device: SimulatedDevice, workload: Workload, precision: str) -> None:
        self._device = device
        self._precision = precision
        self._trains = workload.mode == "train"
        self._attribution = Attribution()
        with contextlib.suppress(DoesNotFit):
            device.load(workload, precision, self._attribution)
        self.class_name = device.tracer.class_name

    def at(self, batch_size: int, steps: int) -> PrecisionInspection:
        """Trace a trial and return what its memory is made of.

        Args:
            batch_size: samples in a (micro-)batch.
            steps: optimizer steps.

        Raises:
            BsfindError: the user's code does not work, or cannot be traced.
        """
        device, tracer = self._device, self._device.tracer
        model: dict[str, Any] = {
            "precision": self._precision,
            "parameters": tracer.parameters,
            "optimizer": tracer.optimizer,
            "weights_dtype": tracer.weights_dtype,
        }
        sources: list[Source] = []
        try:
            program = tracer.program(batch_size, steps, exact=True, sources=sources)
        except BsfindError as error:
            message = device.trial_of_refusal(error, batch_size).message
            if device.refusal is not None:
                raise device.refusal from error
            return PrecisionInspection(**model, status="refused", message=message)
        model["optimizer"] = tracer.optimizer  # those that the steps have made
        trial = self._attribution.attributed(program, sources, trains=self._trains)
        composition = compose(trial, device.new_allocator())
        failed = composition.failed
        return PrecisionInspection(
            **model,
            status="fits" if failed is None else "does_not_fit",
            composition=composition,
            message=None if failed is None else failed.message,
        )

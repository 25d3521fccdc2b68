"""Builds a model without the memory and the time that its weights would take.

Each parameter becomes meta as it is registered: its values go, the object stays (so that tied
weights stay tied), and what initialises it afterwards costs nothing. So does each large tensor as
it is made: a model may be larger than the host's memory. What is computed from one has no values
either. Smaller buffers, and whatever else the constructor computes, are real tensors in the host's
memory: constructors read those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from bsfind.errors import UntraceableError
from bsfind.simulation.trace.calls import Args, Kwargs, flat_tensors, mapped
from bsfind.simulation.trace.recorder import is_large
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    is_traceable_wrapper_subclass,
    parameters_of,
    without_fake,
)
from bsfind.units import format_bytes
from bsfind.workload.outputs import local_part
from bsfind.workload.step import LoadedWorkload

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, OperatorFacts


class Builder:
    """Decides whether the weights of models that are built inside its contexts have memory.

    Args:
        dispatcher: dispatcher that runs operators on tensors without memory.

    Attributes:
        weight_bytes: size of the parameters that were registered in the context entered last.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._counted: set[int] = set()
        self.weight_bytes = 0

    @contextlib.contextmanager
    def without_memory(self) -> Iterator[None]:
        """Turn each parameter that is registered inside, and each large tensor, to meta."""

        def register(parameter: nn.Parameter) -> nn.Parameter | None:
            if is_traceable_wrapper_subclass(parameter):
                kind = type(parameter).__name__
                raise UntraceableError(f"weights of the class `{kind}` wrap other tensors")
            return without_memory(self._dispatcher, parameter)

        with self._watching(register, lambda _: True):
            yield

    @contextlib.contextmanager
    def in_memory(self, why: str) -> Iterator[None]:
        """Let what is built inside have memory, as long as the host has enough of it.

        Args:
            why: the reason why it is built with memory.

        Raises:
            UntraceableError: the host does not have enough.
        """
        free = available_host_bytes()

        def check(nbytes: int) -> None:
            if free is not None and nbytes > free:
                raise UntraceableError(
                    "the host has not enough memory to build this model: its weights take "
                    f"{format_bytes(nbytes)} or more, and {format_bytes(free)} are free",
                    detail=f"It could not be built without memory: {why}",
                )

        def register(_: nn.Parameter) -> None:
            check(self.weight_bytes)

        def large(tensor: torch.Tensor) -> bool:
            check(self.weight_bytes + tensor.nbytes)
            return False

        check(self.weight_bytes)  # what was registered before the other way of building failed
        with self._watching(register, large):
            yield

    @contextlib.contextmanager
    def _watching(
        self,
        register: Callable[[nn.Parameter], nn.Parameter | None],
        large: Callable[[torch.Tensor], bool],
    ) -> Iterator[None]:
        self._counted.clear()
        self.weight_bytes = 0

        def hook(
            _module: nn.Module, _name: str, parameter: nn.Parameter | None
        ) -> nn.Parameter | None:
            if parameter is None or is_lazy(parameter):
                return None
            if id(parameter) not in self._counted:
                self._counted.add(id(parameter))
                self.weight_bytes += parameter.numel() * parameter.element_size()
            return register(parameter)

        operators = self._dispatcher.host_operators
        # Its type says that a hook returns nothing; its text, that it may return a parameter.
        handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]
        operators.makes_large = large
        try:
            yield
        finally:
            operators.makes_large = None
            handle.remove()

    def take_memory(self, model: nn.Module) -> None:
        """Turn the parameters of a model to meta that still have values."""
        for module in model.modules():
            for name, parameter in parameters_of(module).items():
                if parameter is not None and not is_lazy(parameter):
                    taken = without_memory(self._dispatcher, parameter)
                    parameters_of(module)[name] = parameter if taken is None else taken


def without_memory(dispatcher: Dispatcher, parameter: nn.Parameter) -> nn.Parameter | None:
    """Make a parameter meta, in place; returns one to take its place where that is impossible."""
    with TorchFunctionOff():
        if parameter.device.type != "cpu" or parameter.layout != torch.strided:
            return None
        if is_traceable_wrapper_subclass(parameter):
            return None  # it has no values of its own
        meta = dispatcher.host.replacements.get(parameter)
        if meta is not None:
            return meta
        meta = nn.Parameter(dispatcher.as_host_meta(parameter.detach()), parameter.requires_grad)
        if type(parameter) is not nn.Parameter:
            meta.__class__ = type(parameter)
        attributes = dict(parameter.__dict__)
        try:
            torch.utils.swap_tensors(parameter, meta)  # type: ignore[no-untyped-call]
        except (RuntimeError, AttributeError):  # others hold the tensor too, in C++
            for tensor in (parameter, meta):
                tensor.__dict__.clear()
                tensor.__dict__.update(attributes)
            dispatcher.host.replacements[parameter] = meta  # for all modules that share it
            return meta
    return None


def available_host_bytes() -> int | None:
    """Return how much memory of the host this process can still take; None where nobody says.

    `MemAvailable` of Linux's /proc/meminfo, and the limit of the control group (cgroup v2).
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # `max`: no limit
        limit = int((group / "memory.max").read_text())
        sizes.append(limit - int((group / "memory.current").read_text()))
    return min(sizes, default=None)


_META = torch.device("meta")


class HostOperators:
    """Runs operators of the host that make, or take, tensors without values.

    Args:
        dispatcher: knows which meta tensors lie in the host's memory.

    Attributes:
        makes_large: called with each large tensor that an operator is about to make; None: such
            tensors are made as any other. Tells whether the tensor is made without its values.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.makes_large: Callable[[torch.Tensor], bool] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no operator needs a look."""
        return self.makes_large is None and not self._dispatcher.host

    def run(self, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator; NotImplemented: it can be run as any other."""
        device = kwargs.get("device")
        if device is not None and device.type != "cpu":
            return NotImplemented
        tensors = [t for t in flat_tensors((*args, *kwargs.values())) if t is not None]
        metas = [tensor for tensor in tensors if tensor.is_meta]
        if metas:
            return self._mixed(facts, args, kwargs, metas, len(metas) < len(tensors))
        if self.makes_large is None or facts.mutated or facts.is_aliasing:
            return NotImplemented
        return self._large(facts, args, kwargs, is_factory=not tensors)

    def _mixed(
        self,
        facts: OperatorFacts,
        args: Args,
        kwargs: Kwargs,
        metas: Sequence[torch.Tensor],
        has_real: bool,
    ) -> Any:
        """Run an operator of tensors that have values and others that have none."""
        dispatcher = self._dispatcher
        if not all(map(dispatcher.host.has, metas)):
            return NotImplemented
        if "device" in kwargs and facts.name != "aten::_to_copy":  # `empty_like` and the like
            with dispatcher.moving("host"):
                return dispatcher.dispatch(facts, args, {**kwargs, "device": _META})
        if kwargs.get("generator") is not None:
            kwargs = {**kwargs, "generator": None}  # of the host: meta kernels refuse it
        elif not has_real or facts.name == "aten::copy_":
            return NotImplemented
        made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def on_meta(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.is_meta:
                return value
            if not value.dim() or value.layout is not torch.strided:
                return value
            if id(value) not in made:
                made[id(value)] = (dispatcher.as_host_meta(value), value)
            return made[id(value)][0]

        out = dispatcher.dispatch(facts, mapped(args, on_meta), mapped(kwargs, on_meta))
        for meta, tensor in made.values():
            if out is meta:  # it was written to, and its values are unknown now
                return tensor
        return out

    def _large(self, facts: OperatorFacts, args: Args, kwargs: Kwargs, *, is_factory: bool) -> Any:
        """Run an operator whose result is large; NotImplemented: it is not."""
        assert self.makes_large is not None
        options = {
            name: None if name == "generator" else value
            for name, value in kwargs.items()
            if name != "pin_memory"
        }
        if is_factory or "device" in options:
            options["device"] = _META
        dispatcher = self._dispatcher
        with without_fake():
            try:
                out = facts.op(*mapped(args, _like), **mapped(options, _like))
            except Exception:  # its result depends on values, or it takes no `device`
                return NotImplemented
        outputs = [tensor for tensor in flat_tensors(out) if tensor is not None]
        large = [tensor for tensor in outputs if tensor.is_meta and is_large(tensor)]
        if not large or not all(map(self.makes_large, large)):
            return NotImplemented
        for tensor in outputs:
            dispatcher.host.add(tensor)
        with without_fake():
            dispatcher.values.follow_ranges(facts.name, args, kwargs, outputs)
        return out


def _like(value: Any) -> Any:
    """Return a meta tensor like a tensor."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=_META)


@dataclass(frozen=True, kw_only=True)
class FixedMemory:
    """The memory of a step that does not depend on the batch size, in bytes as requested.

    Attributes:
        parameter_bytes: parameters and buffers.
        gradient_bytes: gradients of all parameters; 0 in inference.
        optimizer_bytes: state of the optimizer after its first step; None: unknown.
        optimizer: class of the optimizer; None in inference.
    """

    parameter_bytes: int
    gradient_bytes: int = 0
    optimizer_bytes: int | None = None
    optimizer: str | None = None

    @property
    def total_bytes(self) -> int:
        """The sum of the known terms."""
        return self.parameter_bytes + self.gradient_bytes + (self.optimizer_bytes or 0)

    def against(self, capacity_bytes: int) -> str:
        """Describe the sum, and the capacity of the allocator."""
        terms = [f"parameters {format_bytes(self.parameter_bytes)}"]
        if self.gradient_bytes:
            terms.append(f"gradients {format_bytes(self.gradient_bytes)}")
        if self.optimizer_bytes:
            terms.append(f"optimizer state ({self.optimizer}) {format_bytes(self.optimizer_bytes)}")
        total = f" = {format_bytes(self.total_bytes)}" if len(terms) > 1 else ""
        return f"{' + '.join(terms)}{total}, and the card has {format_bytes(capacity_bytes)} for it"


def fixed_memory_of(loaded: LoadedWorkload, optimizer: str | None) -> FixedMemory:
    """Return what the step takes at any batch size; leaves gradients behind.

    Args:
        loaded: what is trained, on the simulated GPU.
        optimizer: name of the optimizer's class, if known.
    """
    parameters = list(loaded.model.parameters())
    nbytes = sum(map(_nbytes, (*parameters, *loaded.model.buffers())))
    if loaded.workload.mode != "train":
        return FixedMemory(parameter_bytes=nbytes)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return FixedMemory(
        parameter_bytes=nbytes,
        gradient_bytes=sum(map(_nbytes, trained)),
        optimizer_bytes=None if loaded.own_optimizers else _optimizer_bytes(loaded, trained),
        optimizer=optimizer,
    )


def _optimizer_bytes(loaded: LoadedWorkload, trained: Sequence[nn.Parameter]) -> int | None:
    """Return the size of the optimizer's state after a step; None: it takes no such step."""
    try:
        optimizers = loaded.make_optimizers()
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
    except Exception:  # it needs a closure, or gradients of its own
        return None
    states = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
    ]
    return sum(
        _nbytes(value) for value in states if isinstance(value, torch.Tensor) and value.is_cuda
    )


def _nbytes(tensor: torch.Tensor) -> int:
    return local_part(tensor).nbytes

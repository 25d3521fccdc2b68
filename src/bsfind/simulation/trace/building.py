"""Builds a model without the memory and the time that its weights would take.

Each parameter becomes meta as it is registered: its values go, the object stays (so that tied
weights stay tied), and what initialises it afterwards costs nothing. So does each large tensor as
it is made. Smaller buffers, and whatever else the constructor computes, are real tensors in the
host's memory: constructors read those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from bsfind.errors import UntraceableError
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.torch_private import TorchFunctionOff, parameters_of
from bsfind.units import format_bytes


class Builder:
    """Says what becomes of the weights of models that are built inside its contexts.

    Args:
        dispatcher: gets the tensors that have no memory.

    Attributes:
        weight_bytes: of the parameters that were registered in the context that was entered last.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._counted: set[int] = set()
        self.weight_bytes = 0

    @contextlib.contextmanager
    def without_memory(self) -> Iterator[None]:
        """Turn each parameter that is registered inside, and each large tensor, to meta."""

        def register(parameter: nn.Parameter) -> nn.Parameter | None:
            return without_memory(self._dispatcher, parameter)

        with self._watching(register, lambda _: True):
            yield

    @contextlib.contextmanager
    def in_memory(self, why: str) -> Iterator[None]:
        """Let what is built inside have memory, as long as the host has enough of it.

        Args:
            why: it is built so.

        Raises:
            UntraceableError: the host has not enough.
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
                    parameters_of(module)[name] = (
                        without_memory(self._dispatcher, parameter) or parameter
                    )


def without_memory(dispatcher: Dispatcher, parameter: nn.Parameter) -> nn.Parameter | None:
    """Make a parameter meta, in place; returns one to take its place where that is impossible."""
    with TorchFunctionOff():
        if parameter.device.type != "cpu" or parameter.layout != torch.strided:
            return None
        twin = dispatcher.host.stand_ins.get(parameter)
        if twin is not None:
            return twin
        twin = nn.Parameter(dispatcher.as_host_meta(parameter.detach()), parameter.requires_grad)
        if type(parameter) is not nn.Parameter:
            twin.__class__ = type(parameter)
        attributes = dict(parameter.__dict__)
        try:
            torch.utils.swap_tensors(parameter, twin)  # type: ignore[no-untyped-call]
        except (RuntimeError, AttributeError):  # others hold the tensor too, in C++
            for tensor in (parameter, twin):
                tensor.__dict__.clear()
                tensor.__dict__.update(attributes)
            dispatcher.host.stand_ins[parameter] = twin  # for all modules that share it
            return twin
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

"""Follows in which module of the model the program is."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from bsfind.simulation.trace.torch_private import (
    checkpoint_frames,
    current_node,
    next_sequence_number,
    parameters_of,
    replacing,
    sequence_number,
)


class ModuleStack:
    """Follows the forward passes of a model's modules.

    Modules that are not part of the model (a loss) count as the one that calls them.

    Attributes:
        classes: names of the modules' classes, by path.
    """

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}
        self._paths: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        self._stack: list[str | None] = []
        # Autograd numbers its nodes as they are made: from which number on, in which module.
        self._first_nodes: list[int] = []
        self._modules: list[str | None] = []

    def name(self, model: nn.Module) -> None:
        """Learn the paths of a model's modules and parameters; shared ones have their first."""
        self.classes.clear()
        self._paths.clear()
        self._owners.clear()
        for path, module in model.named_modules():
            self.classes[path] = type(module).__name__
            self._paths[id(module)] = path
            for parameter in parameters_of(module).values():
                if parameter is not None:
                    self._owners.setdefault(id(parameter), path)

    def owner_of(self, parameter: torch.Tensor, otherwise: str | None) -> str | None:
        """Return the path of the module that has a parameter; `otherwise` if none has."""
        return self._owners.get(id(parameter), otherwise)

    @property
    def is_inside(self) -> bool:
        """Whether a module's forward pass, or its recomputation, runs."""
        return bool(self._stack)

    @property
    def current(self) -> str | None:
        """The path of the module whose forward pass runs; None: outside of the model."""
        return self._stack[-1] if self._stack else None

    def of_node(self) -> str | None:
        """Return the module whose forward pass made the autograd node that runs now."""
        node = current_node()
        if node is None:
            return None
        # Nodes that accumulate gradients have the largest number there is: they have no module.
        number = sequence_number(node)
        if number >= next_sequence_number():
            return None
        index = bisect_right(self._first_nodes, number) - 1
        return self._modules[index] if index >= 0 else None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the modules of this process while inside."""
        before = register_module_forward_pre_hook(self._enter)
        # Also after one that failed: checkpointing stops a recomputation by an exception.
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            with _recomputing_within(self._resuming):
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._stack.append(self._paths.get(id(module), self.current))
        self._changed()

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._stack.pop()
        self._changed()

    def _changed(self) -> None:
        self._first_nodes.append(next_sequence_number())
        self._modules.append(self.current)

    def _resuming(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs as in the module that the program is in now."""
        stack = list(self._stack)

        def resumed(*args: Any) -> Any:
            outer, self._stack = self._stack, list(stack)
            self._changed()
            try:
                return function(*args)
            finally:
                self._stack = outer
                self._changed()

        return resumed


@contextlib.contextmanager
def _recomputing_within(
    resuming: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Let activation checkpointing recompute in the module in which it ran first.

    Non-reentrant checkpointing keeps the function in a frame (`_CheckpointFrame` of
    torch/utils/checkpoint.py, torch 2.6-2.13); the reentrant one is an autograd node of that module.
    """
    frames = checkpoint_frames
    if frames is None:
        yield
        return
    make = frames.__init__

    def made(frame: Any, recompute: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        make(frame, resuming(recompute), *args, **kwargs)

    with replacing("__init__", frames)(made):
        yield

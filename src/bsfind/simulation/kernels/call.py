"""The call of an ATen operator, and the rules that say what its CUDA kernel allocates.

A rule is a function that is registered for operators. It gets a call that is described by shapes:

    @allocates("aten::_softmax_backward_data")
    def softmax_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
        trace.outputs()
        trace.scratch(call.tensor("output").nbytes)

It says in which order the kernel allocates its outputs and its scratch memory. Rules do not depend
on values, on other calls or on the batch size, so they can be applied again to other shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """The GPU, and the settings of PyTorch on it, that rules are applied for.

    Attributes:
        capability: compute capability, such as (9, 0).
        sm_count: number of multiprocessors.
        max_threads_per_sm: largest number of resident threads of a multiprocessor.
        torch_version: (major, minor) of the torch whose kernels are modelled.
        cudnn_version: the version of cuDNN whose library may be asked, such as 91002; None: any.
        tf32_convolutions: whether float32 convolutions may run in TF32.
        tf32_matmul: `torch.backends.cuda.matmul.allow_tf32`.
        deterministic: `torch.are_deterministic_algorithms_enabled()`.
        cudnn_deterministic: whether cuDNN's engines have to be, by that or by
            `torch.backends.cudnn.deterministic`.
        cudnn_benchmark: `torch.backends.cudnn.benchmark`.
        is_cautious: whether a larger workspace counts where it is not certain (see
            `cudnn_workspace.fitted_workspace_bytes`).
    """

    capability: tuple[int, int]
    sm_count: int
    max_threads_per_sm: int
    torch_version: tuple[int, int]
    cudnn_version: int | None = None
    tf32_convolutions: bool = True
    tf32_matmul: bool = False
    deterministic: bool = False
    cudnn_deterministic: bool = False
    cudnn_benchmark: bool = False
    is_cautious: bool = False


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values.

    Attributes:
        shape: sizes.
        stride: strides in elements.
        dtype: type of the elements.
        on_gpu: False if the tensor is in host memory.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    on_gpu: bool = True

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.dtype.itemsize

    def permuted(self, order: Iterable[int]) -> TensorSpec:
        """Return the tensor with its dimensions in another order, as `Tensor.permute` does."""
        order = tuple(order)
        return TensorSpec(
            tuple(self.shape[dim] for dim in order),
            tuple(self.stride[dim] for dim in order),
            self.dtype,
        )

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        """Return what `Tensor.is_contiguous` does (c10/core/Contiguity.h, torch 2.13)."""
        if memory_format == torch.channels_last:
            return self.dim == 4 and self._is_dense_in((1, 3, 2, 0))
        if memory_format == torch.channels_last_3d:
            return self.dim == 5 and self._is_dense_in((1, 4, 3, 2, 0))
        return self.numel == 0 or self._is_dense_in(range(self.dim - 1, -1, -1))

    def _is_dense_in(self, order: Sequence[int]) -> bool:
        expected = 1
        for axis in order:
            if self.shape[axis] != 1:
                if self.stride[axis] != expected:
                    return False
                expected *= self.shape[axis]
        return True


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an operator, with a `TensorSpec` in place of each tensor.

    Attributes:
        operator: name of the schema without the overload: `aten::sum`.
        overload: overload of the schema: `dim_IntList`; `default` if it has none.
        arguments: the arguments by the schema's names, with the defaults filled in; lists of tensors
            are tuples.
        outputs: the flattened tensors of the result, as the CUDA kernel returns them; None for an
            undefined one.
    """

    operator: str
    overload: str
    arguments: dict[str, Any]
    outputs: tuple[TensorSpec | None, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def tensors(self) -> Iterator[tuple[str, TensorSpec]]:
        """Yield the tensors among the arguments, those of lists too, with the arguments' names."""
        for name, value in self.arguments.items():
            if isinstance(value, TensorSpec):
                yield name, value
            elif isinstance(value, tuple):
                yield from ((name, item) for item in value if isinstance(item, TensorSpec))

    def tensor(self, name: str) -> TensorSpec:
        """Return a tensor argument.

        Raises:
            TypeError: the argument is not a tensor.
        """
        value = self.arguments[name]
        if not isinstance(value, TensorSpec):
            raise TypeError(f"{self.operator}: `{name}` is {value!r}, not a tensor")
        return value

    def maybe_tensor(self, name: str) -> TensorSpec | None:
        """Return a tensor argument, or None if it is absent or undefined."""
        value = self.arguments.get(name)
        return value if isinstance(value, TensorSpec) else None


class KernelTrace:
    """What a kernel allocates and frees, in order; a rule fills it.

    Outputs that the rule does not allocate are allocated at the end, in their order. Scratch memory
    that it does not free is freed after that, the last first, as C++ destroys local variables.

    Attributes:
        events: (kind, key, bytes) of each event; the kinds are `output` and `skip` (key: index of
            the output), `scratch`, `optional` and `free` (key: handle), and `workspace` (key: name).
    """

    def __init__(self, call: Call) -> None:
        self._waiting = [i for i, output in enumerate(call.outputs) if output is not None]
        self._scratch: list[int] = []
        self._count = 0
        self.events: list[tuple[str, Any, int]] = []

    def output(self, index: int) -> None:
        """Allocate an output now, unless it is undefined or allocated already."""
        if index in self._waiting:
            self._waiting.remove(index)
            self.events.append(("output", index, 0))

    def outputs(self) -> None:
        """Allocate all outputs that are not allocated yet, in their order."""
        for index in list(self._waiting):
            self.output(index)

    def skip_output(self, index: int) -> None:
        """Declare that on CUDA an output takes no GPU memory: it is on the host, or undefined."""
        if index in self._waiting:
            self._waiting.remove(index)
            self.events.append(("skip", index, 0))

    def scratch(self, nbytes: int) -> int | None:
        """Allocate scratch memory; returns its handle for `free`, or None for 0 bytes."""
        if nbytes <= 0:
            return None
        handle = self._count
        self._count += 1
        self._scratch.append(handle)
        self.events.append(("scratch", handle, int(nbytes)))
        return handle

    def optional_scratch(self, nbytes: int) -> int | None:
        """Allocate scratch memory that the kernel does without if it does not fit.

        For cuDNN's convolutions PyTorch then tries engines with less workspace (`try_configs` of
        aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.6-2.13), and there is nearly always one with none.
        """
        handle = self.scratch(nbytes)
        if handle is not None:
            self.events[-1] = ("optional", handle, int(nbytes))
        return handle

    def workspace(self, key: str, nbytes: int) -> None:
        """Allocate memory that the calling thread keeps, unless it has allocated it before."""
        self.events.append(("workspace", key, int(nbytes)))

    def free(self, *handles: int | None) -> None:
        """Free scratch memory, in the order of the handles."""
        for handle in handles:
            if handle is not None:
                self._scratch.remove(handle)
                self.events.append(("free", handle, 0))

    def finish(self) -> list[tuple[str, Any, int]]:
        """Allocate and free what is left; returns all events."""
        self.outputs()
        self.free(*reversed(self._scratch))
        return self.events


Rule = Callable[[Call, GpuSpec, KernelTrace], None]

_RULES: dict[str, Rule] = {}


def allocates(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators: `aten::sum` for all overloads, `aten::sum.dim_IntList` for one."""

    def register(rule: Rule) -> Rule:
        for operator in operators:
            if operator in _RULES:
                raise ValueError(f"two rules for {operator}")
            _RULES[operator] = rule
        return rule

    return register


def rule_for(operator: str, overload: str) -> Rule | None:
    """Return the rule of an operator, or None if it allocates its outputs in order and nothing else."""
    return _RULES.get(f"{operator}.{overload}") or _RULES.get(operator)


_MODULES = (
    *(
        "attention",
        "bitsandbytes",
        "chunks",
        "convolution",
        "elementwise",
        "embedding",
        "indexing",
        "losses",
    ),
    *("matmul", "normalization", "pooling", "recurrent", "reductions", "sorting"),
    *(f"argument_checks.{name}" for name in ("arithmetic", "indexing", "layers", "losses")),
)


def load_rules() -> None:
    """Import every module that registers rules or checks."""
    for module in _MODULES:
        import_module(f"bsfind.simulation.kernels.{module}")

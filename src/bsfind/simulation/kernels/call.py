"""One call of an ATen operator, and what its CUDA kernel allocates: the language of this package.

A rule is a function that is registered for operators and told of a call by shapes alone:

    @allocates("aten::_softmax_backward_data")
    def softmax_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
        trace.outputs()
        trace.scratch(call.tensor("output").nbytes)

It says in which order the kernel allocates its outputs and its scratch memory. Rules know nothing
of values, of other calls, or of the batch size, so that they can be asked again for other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """The GPU, and the software on it, that a rule answers for.

    Attributes:
        capability: compute capability, such as (9, 0).
        sm_count: multiprocessors.
        max_threads_per_sm: resident threads of a multiprocessor.
        torch_version: (major, minor) of the torch whose kernels are modelled.
        tf32_convolutions: whether convolutions of float32 may run in TF32.
        tf32_matmul: `torch.backends.cuda.matmul.allow_tf32`.
        deterministic: `torch.are_deterministic_algorithms_enabled()`.
    """

    capability: tuple[int, int]
    sm_count: int
    max_threads_per_sm: int
    torch_version: tuple[int, int]
    tf32_convolutions: bool = True
    tf32_matmul: bool = False
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values.

    Attributes:
        shape: sizes.
        stride: strides in elements.
        dtype: of its elements.
        on_gpu: False: it is in the host's memory.
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
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, as a contiguous tensor has them."""
        return self.numel * self.dtype.itemsize

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        """Tell what `Tensor.is_contiguous` does (c10/core/Contiguity.h, torch 2.13)."""
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
    """A call of an operator, its tensors replaced by `TensorSpec`.

    Attributes:
        operator: the schema's name without the overload: `aten::sum`.
        overload: `dim_IntList`; `default` where the schema has none.
        arguments: by name as in the schema, defaults filled in; tensors are `TensorSpec`, lists of
            tensors are tuples.
        outputs: the flattened tensors of the result (None where it is undefined), as the CUDA
            kernel returns them.
    """

    operator: str
    overload: str
    arguments: dict[str, Any]
    outputs: tuple[TensorSpec | None, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def tensor(self, name: str) -> TensorSpec:
        """Return a tensor argument.

        Raises:
            TypeError: the argument is no tensor.
        """
        value = self.arguments[name]
        if not isinstance(value, TensorSpec):
            raise TypeError(f"{self.operator}: `{name}` is {value!r}, no tensor")
        return value

    def maybe_tensor(self, name: str) -> TensorSpec | None:
        """Return a tensor argument, None where it is absent or undefined."""
        value = self.arguments.get(name)
        return value if isinstance(value, TensorSpec) else None


class KernelTrace:
    """What a kernel allocates and frees, in order; filled by a rule.

    Outputs that a rule does not place are allocated at the end, in their order; scratch memory that
    it does not free is freed after that, the last first, as C++ destroys locals.
    """

    def __init__(self, call: Call) -> None:
        self._waiting = [i for i, output in enumerate(call.outputs) if output is not None]
        self._scratch: list[int] = []
        self._count = 0
        self.events: list[tuple[str, Any, int]] = []

    def output(self, index: int) -> None:
        """Allocate an output here (nothing happens if it is a view, or placed already)."""
        if index in self._waiting:
            self._waiting.remove(index)
            self.events.append(("output", index, 0))

    def outputs(self) -> None:
        """Allocate all outputs that have no place yet, in their order."""
        for index in list(self._waiting):
            self.output(index)

    def skip_output(self, index: int) -> None:
        """Declare that an output takes no GPU memory (it is on the host, or undefined, on CUDA)."""
        if index in self._waiting:
            self._waiting.remove(index)
            self.events.append(("skip", index, 0))

    def scratch(self, nbytes: int) -> int | None:
        """Allocate scratch memory; returns its handle for `free`, None for no bytes."""
        if nbytes <= 0:
            return None
        handle = self._count
        self._count += 1
        self._scratch.append(handle)
        self.events.append(("scratch", handle, int(nbytes)))
        return handle

    def optional_scratch(self, nbytes: int) -> int | None:
        """Allocate scratch memory that the kernel can do without if there is no room for it.

        cuDNN's convolutions: PyTorch tries engines with less workspace (`try_plans` of
        aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.6-2.13).
        """
        handle = self.scratch(nbytes)
        if handle is not None:
            self.events[-1] = ("optional", handle, int(nbytes))
        return handle

    def workspace(self, key: str, nbytes: int) -> None:
        """Allocate memory that the calling thread keeps for good, if it does not have it yet."""
        self.events.append(("workspace", key, int(nbytes)))

    def free(self, *handles: int | None) -> None:
        """Free scratch memory, in the order given."""
        for handle in handles:
            if handle is not None:
                self._scratch.remove(handle)
                self.events.append(("free", handle, 0))

    def finish(self) -> list[tuple[str, Any, int]]:
        """Return the events, complete."""
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
    """Return the rule of an operator, None if it allocates nothing but its outputs, in order."""
    return _RULES.get(f"{operator}.{overload}") or _RULES.get(operator)


def rules() -> Iterator[tuple[str, Rule]]:
    """Yield all rules that have been registered."""
    yield from _RULES.items()

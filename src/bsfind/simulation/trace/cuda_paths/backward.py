"""Backward passes that work in place on CUDA, and out of place for tensors of the meta device.

`isTensorSubclassLike()` (aten/src/ATen/TensorSubclassLikeUtils.h, torch 2.6-2.13) is true of meta
tensors and makes composites work out of place, so that they hold one tensor more than on the GPU.

The autograd engine does the same: where a value is used twice, it adds the second gradient to the
first. On CUDA it does so in place if nobody else holds the first (`accumulate` and
`can_accumulate_inplace` in torch/csrc/autograd/input_buffer.cpp, torch 2.6-2.13); for meta tensors
it never does. `GradientSums` makes the sum in place by the same condition: reference counts. What
they are for a gradient that only the engine holds depends on how torch passes tensors to Python;
it is measured once, on a small graph.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import TensorSpec
from bsfind.simulation.kernels.layouts import is_non_overlapping_and_dense
from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.torch_private import (
    BelowAutograd,
    current_backward,
    current_node,
    sequence_number,
    storage_uses,
    tensor_uses,
)

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, OperatorFacts


aten = torch.ops.aten

_MEAN = 1


def _gather_backward(grad: Tensor, x: Tensor, dim: int, index: Tensor, sparse_grad: bool) -> Tensor:
    """`gather_backward` of aten/src/ATen/native/TensorAdvancedIndexing.cpp."""
    out: Tensor
    if sparse_grad:
        out = aten._gather_sparse_backward.default(x, dim, index, grad)
        return out
    return grad.new_zeros(x.shape).scatter_add_(dim, index, grad)


def _index_select_backward(grad: Tensor, sizes: Sequence[int], dim: int, index: Tensor) -> Tensor:
    """`index_select_backward_symint` of aten/src/ATen/native/TensorAdvancedIndexing.cpp."""
    return grad.new_zeros(sizes).index_add_(dim, index, grad)


def _selecting_backward(
    grad: Tensor, dim: int, indices: Tensor, sizes: Sequence[int], keepdim: bool
) -> Tensor:
    """`value_selecting_reduction_backward` of aten/src/ATen/native/ReduceOps.cpp."""
    if not keepdim and sizes:
        grad, indices = grad.unsqueeze(dim), indices.unsqueeze(dim)
    return grad.new_zeros(sizes).scatter_(dim, indices, grad)


def _cummaxmin_backward(grad: Tensor, x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """`cummaxmin_backward` of aten/src/ATen/native/ReduceOps.cpp."""
    if x.numel() == 0:
        return x
    return x.new_zeros(x.shape).scatter_add_(dim, indices, grad)


def _cumprod_backward(grad: Tensor, x: Tensor, dim: int, output: Tensor) -> Tensor:
    """`cumprod_backward` of aten/src/ATen/native/ReduceOps.cpp, for an input without zeros.

    With a zero in it, which is read back from the GPU, it takes a longer way.
    """
    if x.numel() <= 1 or x.shape[dim] == 1:
        return grad
    products = output.conj() * grad
    is_zero = x == 0
    is_zero.any()
    flipped = products.flip(dim)
    sums = flipped.cumsum(dim)
    reversed_sums = sums.flip(dim)
    del flipped, sums
    return reversed_sums.div(x.conj())


def _trace_backward(grad: Tensor, sizes: Sequence[int]) -> Tensor:
    """`trace_backward_symint` of aten/src/ATen/native/TensorAdvancedIndexing.cpp."""
    out = grad.new_zeros(sizes[0] * sizes[1])
    indices = torch.arange(0, out.shape[0], sizes[1] + 1, dtype=torch.long, device=grad.device)
    return out.index_fill_(0, indices, grad).view(sizes)


class _Index(torch.autograd.Function):
    """`index.Tensor`, whose backward pass adds into its zeros in place.

    `index_backward` of torch/csrc/autograd/FunctionsManual.cpp.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *indices: Tensor | None) -> Tensor:
        with BelowAutograd():
            out: Tensor = aten.index.Tensor(x, list(indices))
        ctx.save_for_backward(*indices)
        ctx.shape = x.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad: Tensor = grads[0]
        indices = ctx.saved_tensors
        out = grad.new_zeros(ctx.shape)
        out = aten._index_put_impl_.default(out, list(indices), grad, True, True)
        return (out, None, *(None for _ in indices))


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    out: Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        out = _Index.apply(x, len(indices), *indices)  # type: ignore[no-untyped-call]
    else:
        with BelowAutograd():
            out = aten.index.Tensor(x, list(indices))
    return out


class _BinaryCrossEntropyWithLogits(torch.autograd.Function):
    """The loss with a backward pass in place.

    `binary_cross_entropy_with_logits_backward` of torch/csrc/autograd/FunctionsManual.cpp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        reduction: int,
    ) -> Tensor:
        with BelowAutograd():
            out: Tensor = aten.binary_cross_entropy_with_logits.default(
                x, target, weight, pos_weight, reduction
            )
        ctx.save_for_backward(x, target, weight, pos_weight)
        ctx.reduction = reduction
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad: Tensor = grads[0]
        x, target, weight, pos_weight = ctx.saved_tensors
        grad_target = None
        if ctx.needs_input_grad[1]:
            grad_target = x.neg().mul_(grad)
        if pos_weight is None:
            out = x.sigmoid().sub_(target).mul_(grad)
        else:
            scaled = pos_weight * target
            out = scaled.add(1).sub_(target).mul_(x.sigmoid()).sub_(scaled).mul_(grad)
        if weight is not None:
            out.mul_(weight)
        if ctx.reduction == _MEAN:
            out.div_(x.numel())
        return out, grad_target, None, None, None


def _binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    out: Tensor = _BinaryCrossEntropyWithLogits.apply(  # type: ignore[no-untyped-call]
        x, target, weight, pos_weight, reduction
    )
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "gather_backward": _gather_backward,
    "index_select_backward": _index_select_backward,
    "value_selecting_reduction_backward": _selecting_backward,
    "cummaxmin_backward": _cummaxmin_backward,
    "cumprod_backward": _cumprod_backward,
    "trace_backward": _trace_backward,
    "index.Tensor": _index,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
}
"""By the operators' names, each called with the operator's arguments."""


@dataclass
class GradientSums:
    """Decides which additions are the engine's own, and makes them in place.

    Attributes:
        sole_owner: use counts of tensor, storage and Python object of a gradient that only the
            engine holds; None until `calibrate` measured them.
    """

    sole_owner: tuple[int, int, int] | None = None
    _seen: list[tuple[int, int, int]] | None = None

    def handle(
        self,
        dispatcher: Dispatcher,
        facts: OperatorFacts,
        args: Args,
        kwargs: Kwargs,
    ) -> Any:
        """Run `aten::add.Tensor`; the engine's sums in place."""
        # With `create_graph` the sum has a graph of its own, and is a new tensor.
        is_sum = current_backward() != -1 and not torch.is_grad_enabled()
        counts_uses = self.sole_owner is not None or self._seen is not None
        if counts_uses and is_sum and len(args) == 2 and not kwargs:
            total, part = args
            if isinstance(part, torch.Tensor) and self._is_engines_sum(dispatcher, total, part):
                counts = (
                    tensor_uses(total),
                    storage_uses(total.untyped_storage()),
                    sys.getrefcount(total),
                )
                if self._seen is not None:
                    self._seen.append(counts)
                elif counts == self.sole_owner and _is_dense(total):
                    return total.add_(part)
        return dispatcher.run(facts, args, kwargs)

    @staticmethod
    def _is_engines_sum(dispatcher: Dispatcher, total: torch.Tensor, part: torch.Tensor) -> bool:
        # An addition inside a backward formula reads what its own node made, or what was saved
        # (which has more references); the engine's reads what an earlier node made, or this one, if
        # its gradients go to the same place, as those of `x * x` do.
        if not total.is_meta or total.shape != part.shape or total.dtype != part.dtype:
            return False
        node = current_node()
        if node is None:
            return False
        maker = dispatcher.recorder.allocating_node(total.untyped_storage())
        if maker is None:
            return False
        if maker != sequence_number(node):
            return True
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        return len(set(edges)) < len(edges)

    def calibrate(self) -> bool:
        """Measure the use counts of a gradient that only the engine holds.

        To be called while the dispatcher is active.

        Returns:
            Whether they tell it from a gradient that others hold as well. Where they do not, all
            sums are new tensors.
        """
        try:
            alone, shared = self._counts_of_sums()
        except AttributeError:  # a torch without `_use_count`
            return False
        finally:
            self._seen = None
        if len(alone) == 1 and len(shared) == 1 and alone != shared:
            self.sole_owner = alone[0]
            return True
        return False

    def _counts_of_sums(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """Return the counts of a gradient that the engine holds alone, and of a shared one."""
        self._seen = []
        x = torch.empty(2, 3, device="meta", requires_grad=True)
        h = x * 1
        ((h * 2) + (h * 3)).sum().backward()  # type: ignore[no-untyped-call]
        alone, self._seen = self._seen, []
        h = x * 1
        kept: list[torch.Tensor] = []
        doubled = h * 2
        tripled = h * 3
        for branch in (doubled, tripled):
            branch.grad_fn.register_hook(  # type: ignore[union-attr]
                lambda inputs, _: kept.extend(t for t in inputs if t is not None)
            )
        (doubled + tripled).sum().backward()  # type: ignore[no-untyped-call]
        return alone, self._seen


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and _are_dense(
        tensor.shape, tensor.stride(), tensor.dtype
    )


@functools.lru_cache(maxsize=1024)
def _are_dense(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> bool:
    return is_non_overlapping_and_dense(TensorSpec(tuple(shape), stride, dtype))

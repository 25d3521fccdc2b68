"""How the autograd engine sums gradients: in place, where it holds the last reference.

Where a value is used twice, the engine adds the second gradient to the first. On CUDA it does so in
place if nobody else can see the first (`accumulate` and `can_accumulate_inplace` in
torch/csrc/autograd/input_buffer.cpp, torch 2.6-2.13); for meta tensors it never does, because they
count as tensor subclasses (`isTensorSubclassLike`). So the sum is made in place here, by the same
condition: reference counts. What they are for a gradient that only the engine holds depends on how
torch passes tensors to Python; it is measured once, on a small graph.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, OperatorFacts

from bsfind.simulation.kernels.call import TensorSpec
from bsfind.simulation.kernels.layouts import is_non_overlapping_and_dense
from bsfind.simulation.trace.torch_private import (
    current_backward,
    current_node,
    sequence_number,
    storage_uses,
    tensor_uses,
)


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
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
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
        born = dispatcher.recorder.birth_node(total.untyped_storage())
        if born is None:
            return False
        if born != sequence_number(node):
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


def _is_dense(tensor: torch.Tensor) -> bool:
    if tensor.is_sparse:
        return False
    spec = TensorSpec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
    return is_non_overlapping_and_dense(spec)

"""Collectives of a process group without other ranks: they are over when they are called.

The operators of `c10d` return a `Work` besides the tensors that they were given. That of torch's fake
process group has no future with a value, which DistributedDataParallel asks for (`FakeProcessGroup.hpp`,
torch 2.6-2.13). What NCCL itself takes of a GPU is not PyTorch's (`gpus/nccl_memory.py`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from bsfind.simulation.trace.calls import Args, Kwargs, flat_tensors
from bsfind.simulation.trace.torch_private import address_of, operator_names, schema_of

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts

_alive: deque[FinishedWork] = deque(maxlen=1 << 16)
"""C++ may wait for a work whose Python object nobody holds, and then waits for ever
(`PyProcessGroup::PyWork`, torch/csrc/distributed/c10d/PyProcessGroup.hpp): these are held."""


class FinishedWork(torch.distributed.Work):
    """A collective that is over.

    Args:
        tensors: the value of its future, until that is asked for or the work is waited for.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        _alive.append(self)

    def wait(self, *_: Any, **__: Any) -> bool:
        """Return at once."""
        self._tensors = []
        return True

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Return a future that has its value."""
        future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
        future.set_result(self._tensors)
        self._tensors = []
        return future

    def is_completed(self) -> bool:
        """Tell that it is over."""
        return True

    def is_success(self) -> bool:
        """Tell that it did not fail."""
        return True


def collective_handlers() -> dict[str, Handler]:
    """Return the handlers of all collectives of this torch."""
    names = [name.partition(".")[0] for name in operator_names() if name.startswith("c10d::")]
    special: dict[str, Handler] = {
        **{f"c10d::{name}": _in_place for name in _IN_PLACE},
        "c10d::allreduce_": _sum,
        "c10d::allgather_": _gather_lists,
        "c10d::_allgather_base_": _gather,
        "c10d::reduce_scatter_": _scatter_lists,
        "c10d::check_for_nan": lambda *_: None,
        "c10d::monitored_barrier_": lambda *_: None,
        # Those of functional collectives, which return what they are given (Functional.cpp).
        "_c10d_functional::wait_tensor": lambda _dispatcher, _facts, args, _kwargs: args[0],
        "_c10d_functional::_wrap_tensor_autograd": lambda _dispatcher, _facts, args, _kwargs: args[
            0
        ],
    }
    return {**dict.fromkeys(names, _collective), **special}


_IN_PLACE = ("allreduce_coalesced_", "broadcast_", "reduce_", "barrier", "send")
"""Values that are known stay so: those of other ranks count as the same."""


def _in_place(_: Dispatcher, facts: OperatorFacts, args: Args, __: Kwargs) -> Any:
    """Return the tensors that it reads and writes to, its first argument, and a work."""
    return _finished(facts, args, [])


def _sum(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, _: Kwargs) -> Any:
    """Return its tensors, and a work with a future: hooks of gradients ask for it."""
    tensors = on_gpu(args[0])
    for tensor in tensors:
        block = dispatcher.recorder.block_of(tensor.untyped_storage())
        if block is not None:
            dispatcher.recorder.summed.add(block)
    return _finished(facts, args, tensors)


def _collective(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, __: Kwargs) -> Any:
    """Return the tensors that it writes to, its first argument, and a work."""
    for tensor in on_gpu(args[0]):
        dispatcher.values.forget_storage(address_of(tensor.untyped_storage()))
    return _finished(facts, args, [])


def _finished(facts: OperatorFacts, args: Args, value: list[torch.Tensor]) -> Any:
    work = FinishedWork(value).boxed()
    return (args[0], work) if len(schema_of(facts.op).returns) == 2 else work


def _gather(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Gather to one tensor."""
    output, given = args[:2]
    result = _collective(dispatcher, facts, args, kwargs)
    values = dispatcher.values.of(given) if given.is_meta else None
    if values is not None:
        copies = output.numel() // given.numel()
        dispatcher.values.set(output, values.flatten().repeat(copies).view(output.shape))
    return result


def _gather_lists(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Gather to tensors of their own, through one tensor for all (ProcessGroupNCCL.cpp)."""
    (outputs,), (given,) = args[:2]
    _flat_copy(outputs)
    result = _collective(dispatcher, facts, args, kwargs)
    values = dispatcher.values.of(given) if given.is_meta else None
    if values is not None:
        for output in outputs:
            dispatcher.values.set(output, values)
    return result


def _scatter_lists(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Reduce and scatter tensors of their own, through one tensor for all."""
    _flat_copy(args[1])
    return _collective(dispatcher, facts, args, kwargs)


def _flat_copy(lists: Any) -> None:
    tensors = on_gpu(lists)
    if len({tensor.shape for tensor in tensors}) == 1:
        tensors[0].new_empty((len(tensors), *tensors[0].shape))


def on_gpu(value: Any) -> list[torch.Tensor]:
    """Return the tensors of the simulated GPU in lists of them."""
    return [each for each in flat_tensors(value) if each is not None and each.is_meta]

"""Calls that CUDA takes and torch's meta kernels refuse, made in the form that both take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts


def narrow_kernel_handlers() -> dict[str, Handler]:
    """Return the handlers of operators whose meta kernels are narrower than CUDA's."""
    return {
        "aten::masked_fill.Tensor": _fill_with_number,
        "aten::masked_fill_.Tensor": _fill_with_number,
        "aten::where.self": _byte_condition,
        "aten::nll_loss_backward": _nll_loss_backward,
    }


def _fill_with_number(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Take a single value from the host, as `masked_fill__cuda` does (cuda/Indexing.cu)."""
    names = ("self", "mask", "value")
    x, mask, value = (*args, *(kwargs[name] for name in names[len(args) :]))
    if not dispatcher.is_on_gpu(x) or value.is_meta or value.dim() > 0:
        return dispatcher.run(facts, args, kwargs)
    operators = getattr(torch.ops.aten, facts.name.removeprefix("aten::"))
    return operators.Scalar(x, mask, value.item())


def _byte_condition(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Take a condition of uint8, which `where` turns into bools first (TensorCompare.cpp)."""
    if args and args[0].dtype == torch.uint8:
        args = (args[0].to(torch.bool), *args[1:])
    return dispatcher.run(facts, args, kwargs)


def _nll_loss_backward(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return dispatcher.run(facts, *with_long_labels(dispatcher, facts, args, kwargs))


def with_long_labels(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `nll_loss` with labels of uint8, which CUDA takes too, as int64.

    `nll_loss_forward_out_cuda` of aten/src/ATen/native/cuda/Loss.cu, torch 2.13.
    """
    position = 1 if facts.name == "aten::nll_loss_forward" else 2
    target = args[position] if len(args) > position else kwargs.get("target")
    if target is None or target.dtype != torch.uint8:
        return args, kwargs
    with dispatcher.unseen():
        indices = target.long()
    if len(args) > position:
        return (*args[:position], indices, *args[position + 1 :]), kwargs
    return args, {**kwargs, "target": indices}

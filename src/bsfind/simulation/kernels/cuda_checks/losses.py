"""Losses: native/cuda/NLLLoss2d.cu, Loss.cu, LossCTC.cu, MultiMarginLoss.cu and native/Loss.cpp."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call
from bsfind.simulation.kernels.cuda_checks.arithmetic import can_be_stored
from bsfind.simulation.kernels.cuda_checks.check import (
    checks,
    expects,
    implements,
    scalar_name,
)


def _same_dtypes(call: Call, *names: str) -> None:
    """Refuse operands of another dtype than the first (a TensorIterator without promotion)."""
    first = call.tensor(names[0]).dtype
    for name in names[1:]:
        other = call.maybe_tensor(name)
        if other is not None and other.dtype != first:
            raise RuntimeError(
                f"Found dtype {scalar_name(other.dtype)} but expected {scalar_name(first)}"
            )


@checks("aten::binary_cross_entropy")
def _binary_cross_entropy(call: Call) -> None:
    """`binary_cross_entropy_out_cuda` of native/cuda/Loss.cu; the weight is multiplied afterwards."""
    _same_dtypes(call, "self", "target")
    implements("binary_cross_entropy_out_cuda", call.tensor("self").dtype)
    weight, x = call.maybe_tensor("weight"), call.tensor("self").dtype
    if weight is not None:
        can_be_stored(torch.promote_types(weight.dtype, x), x)


@checks("aten::binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(call: Call) -> None:
    """`(1 - target).mul_(input)` and the logarithm of the sigmoid (native/Loss.cpp)."""
    x, target = call.tensor("self").dtype, call.tensor("target").dtype
    implements("log_sigmoid_forward_cuda", x)
    if target == torch.bool:
        raise RuntimeError(
            "Subtraction, the `-` operator, with two bool tensors is not supported. "
            "Use the `^` or `logical_xor()` operator instead."
        )
    can_be_stored(torch.promote_types(target, x), target)


@checks("aten::soft_margin_loss")
def _soft_margin_loss(call: Call) -> None:
    """`soft_margin_loss` of native/Loss.cpp writes an exponential to a tensor of the input's dtype."""
    x, target = call.tensor("self").dtype, call.tensor("target").dtype
    if torch.bool in (x, target):
        raise RuntimeError(
            "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to "
            "invert a mask, use the `~` or `logical_not()` operator instead."
        )
    if not (x.is_floating_point or x.is_complex):
        can_be_stored(torch.float32, x)


@checks("aten::huber_loss")
def _huber_loss(call: Call) -> None:
    """`huber_loss` of native/Loss.cpp: the output has the input's dtype."""
    x, target = call.tensor("self").dtype, call.tensor("target").dtype
    can_be_stored(torch.promote_types(x, target), x)
    implements("huber_cuda", x)


@checks("aten::huber_loss_backward")
def _huber_loss_backward(call: Call) -> None:
    _same_dtypes(call, "self", "target")


@checks("aten::mse_loss")
def _mse_loss(call: Call) -> None:
    implements(
        "mse_cuda", torch.promote_types(call.tensor("self").dtype, call.tensor("target").dtype)
    )


@checks("aten::smooth_l1_loss")
def _smooth_l1_loss(call: Call) -> None:
    common = torch.promote_types(call.tensor("self").dtype, call.tensor("target").dtype)
    implements("smooth_l1_cuda", common)


_TARGETS = (torch.int64, torch.uint8)


@checks("aten::nll_loss_forward")
def _nll_loss(call: Call) -> None:
    x, target = call.tensor("self"), call.tensor("target").dtype
    if target not in _TARGETS:
        raise RuntimeError(
            f"expected target dtype to be Long or Byte, but got {scalar_name(target)}"
        )
    expects(x.dtype, call.maybe_tensor("weight"))
    kind = "no_reduce" if x.dim == 2 and call["reduction"] == 0 else "reduce"
    implements(f"nll_loss_forward_{kind}_cuda_kernel_{min(x.dim, 2)}d", x.dtype)


@checks("aten::nll_loss2d_forward")
def _nll_loss2d(call: Call) -> None:
    implements("nll_loss2d_forward_kernel", call.tensor("self").dtype)
    expects(torch.int64, call.tensor("target"))
    expects(call.tensor("self").dtype, call.maybe_tensor("weight"))


@checks("aten::multi_margin_loss")
def _multi_margin_loss(call: Call) -> None:
    implements("multi_margin_loss_cuda", call.tensor("self").dtype)
    expects(torch.int64, call.tensor("target"))


@checks("aten::multilabel_margin_loss_forward")
def _multilabel_margin_loss(call: Call) -> None:
    implements("multilabel_margin_loss_forward_kernel", call.tensor("self").dtype)
    expects(torch.int64, call.tensor("target"))


@checks("aten::_ctc_loss")
def _ctc_loss(call: Call) -> None:
    implements("ctc_loss_cuda", call.tensor("log_probs").dtype, {torch.float32, torch.float64})

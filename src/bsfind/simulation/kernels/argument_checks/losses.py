"""Losses: native/cuda/NLLLoss2d.cu, Loss.cu, LossCTC.cu, MultiMarginLoss.cu and native/Loss.cpp."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.argument_checks.arithmetic import TWO_BOOLS, can_be_stored
from bsfind.simulation.kernels.argument_checks.registry import (
    FLOATING,
    Check,
    checks,
    dispatches,
    expects,
    implements,
    same_dtype,
    scalar_name,
)
from bsfind.simulation.kernels.call import Call

_UNPROMOTED = "Found dtype {1} but expected {0}"
"""A TensorIterator without promotion refuses operands of another dtype than the first one's."""


def _target_is_int64(call: Call) -> None:
    expects(torch.int64, call.tensor("target"))


def _with_promotion(kernel: str) -> Check:
    """Return the check of a kernel that computes in the common dtype of input and target."""

    def check(call: Call) -> None:
        x, target = call.tensor("self").dtype, call.tensor("target").dtype
        implements(kernel, torch.promote_types(x, target))

    return check


checks("aten::nll_loss2d_forward")(
    dispatches("nll_loss2d_forward_kernel", "self"),
    _target_is_int64,
    dispatches("nll_loss2d_forward_kernel", "self", FLOATING, "weight"),
)
checks("aten::multi_margin_loss")(dispatches("multi_margin_loss_cuda", "self"), _target_is_int64)
checks("aten::multilabel_margin_loss_forward")(
    dispatches("multilabel_margin_loss_forward_kernel", "self"), _target_is_int64
)
checks("aten::_ctc_loss")(dispatches("ctc_loss_cuda", "log_probs", (torch.float32, torch.float64)))
checks("aten::mse_loss")(_with_promotion("mse_cuda"))
checks("aten::smooth_l1_loss")(_with_promotion("smooth_l1_cuda"))
checks("aten::huber_loss_backward")(same_dtype("self", "target", _UNPROMOTED))
checks("aten::binary_cross_entropy")(same_dtype("self", "target", _UNPROMOTED))


@checks("aten::binary_cross_entropy")
def _binary_cross_entropy(call: Call) -> None:
    """`binary_cross_entropy_out_cuda` of native/cuda/Loss.cu; the weight is multiplied afterwards."""
    weight, x = call.maybe_tensor("weight"), call.tensor("self").dtype
    implements("binary_cross_entropy_out_cuda", x)
    if weight is not None:
        can_be_stored(torch.promote_types(weight.dtype, x), x)


@checks("aten::binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(call: Call) -> None:
    """`(1 - target).mul_(input)` and the logarithm of the sigmoid (native/Loss.cpp)."""
    x, target = call.tensor("self").dtype, call.tensor("target").dtype
    implements("log_sigmoid_forward_cuda", x)
    if target == torch.bool:
        raise RuntimeError(TWO_BOOLS)
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


@checks("aten::nll_loss_forward")
def _nll_loss(call: Call) -> None:
    x, target = call.tensor("self"), call.tensor("target").dtype
    if target not in (torch.int64, torch.uint8):
        raise RuntimeError(
            f"expected target dtype to be Long or Byte, but got {scalar_name(target)}"
        )
    expects(x.dtype, call.maybe_tensor("weight"))
    kind = "no_reduce" if x.dim == 2 and call["reduction"] == 0 else "reduce"
    implements(f"nll_loss_forward_{kind}_cuda_kernel_{min(x.dim, 2)}d", x.dtype)

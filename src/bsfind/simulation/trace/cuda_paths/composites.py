"""Composite operators and layers that ask the device, made to choose as on CUDA.

Two questions lead meta tensors astray (torch 2.6-2.13): `is_cuda()` chooses a fused kernel, and
`isTensorSubclassLike()` another way (see backward.py). `CudaComposites` registers the kernels of all
modules of this package; those of dropout, softmax, losses and others are here.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bsfind.errors import UntraceableError
from bsfind.simulation.kernels.argument_checks.indexing import check_one_hot
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates, rule_for
from bsfind.simulation.trace.cuda_paths import (
    attention_choice,
    backward,
    batch_norm_choice,
    meta_kernel_gaps,
    output_layouts,
    recurrent_choice,
)
from bsfind.simulation.trace.refusals import refusing
from bsfind.simulation.trace.torch_private import (
    BelowAutograd,
    TorchFunctionOff,
    operator_named,
    override,
    replacing,
    unload,
)

aten = torch.ops.aten

_GRID_BILINEAR, _GRID_ZEROS = 0, 0
_MEAN, _SUM = 1, 2


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """`dropout` of aten/src/ATen/native/Dropout.cpp: a fused kernel with a mask of bools."""
    if p == 0 or not train or x.numel() == 0:
        return x
    if p == 1:
        return x.mul(x.new_zeros(()))
    out: Tensor = aten.native_dropout.default(x, p, True)[0]
    return out


def _softmax_kernel(operator: Any) -> Callable[..., Tensor]:
    """`softmax` of aten/src/ATen/native/SoftMax.cpp: half to float in one kernel."""

    def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        out: Tensor
        if x.dtype == torch.float16 and dtype == torch.float32:
            out = operator(x, dim, True)
        else:
            out = operator(x if dtype is None else x.to(dtype), dim, False)
        return out

    return softmax


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of aten/src/ATen/native/Linear.cpp: the bias is added in place where not fused."""
    out: Tensor
    if bias is not None and x.dim() == 2:
        out = aten.addmm.default(bias, x, weight.t())
        return out
    if bias is not None and x.dim() == 1 and bias.dim() == 1:
        out = aten.addmm.default(bias, x.unsqueeze(0), weight.t())
        return out.squeeze(0)
    if bias is not None and x.dim() > 2 and x.is_contiguous() and bias.dim() == 1:
        flat = x.reshape(-1, x.shape[-1])
        out = aten.addmm.default(bias, flat, weight.t())
        return out.view(*x.shape[:-1], out.shape[-1])
    out = torch.matmul(x, weight.t())
    return out if bias is None else out.add_(bias)


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """`one_hot` of aten/src/ATen/native/Onehot.cpp, with its look at the values."""
    check_one_hot(x)
    if num_classes == -1:
        num_classes = int(x.max().item()) + 1
    out = torch.zeros((*x.shape, num_classes), dtype=x.dtype, device=x.device)
    return out.scatter_(-1, x.unsqueeze(-1), 1)


def _grid_sampler(x: Tensor, grid: Tensor, interpolation: int, padding: int, align: bool) -> Tensor:
    """`grid_sampler` of aten/src/ATen/native/GridSampler.cpp."""
    on_cudnn = (
        torch.backends.cudnn.enabled
        and x.dtype in (torch.float16, torch.float32, torch.float64)
        and x.dtype == grid.dtype
        and x.dim() == 4
        and x.numel() > 0
        and max(x.numel(), grid.numel()) < 2**31
        and x.shape[1] <= 1024
    )
    out: Tensor
    if on_cudnn and (interpolation, padding) == (_GRID_BILINEAR, _GRID_ZEROS) and align:
        out = aten.cudnn_grid_sampler.default(x, grid)
    elif x.dim() == 4:
        out = aten.grid_sampler_2d.default(x, grid, interpolation, padding, align)
    else:
        out = aten.grid_sampler_3d.default(x, grid, interpolation, padding, align)
    return out


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> Tensor:
    """`ctc_loss` of aten/src/ATen/native/LossCTC.cpp, without cuDNN.

    cuDNN takes it if the targets are int32 and on the host, which is rare.
    """
    targets = targets.to(log_probs.device, torch.int64)
    lengths = [
        value.tolist() if isinstance(value, Tensor) else list(value)
        for value in (input_lengths, target_lengths)
    ]
    loss: Tensor = aten._ctc_loss.default(log_probs, targets, *lengths, blank, zero_infinity)[0]
    if zero_infinity:
        zero = loss.new_zeros(())  # g++ evaluates arguments from the last to the first
        loss = torch.where(loss == math.inf, zero, loss)
        del zero
    if reduction == _MEAN:
        counts = loss.new_empty(len(lengths[1])).clamp_min(1)
        return (loss / counts).mean()
    return loss.sum() if reduction == _SUM else loss


def _cross_entropy_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`cross_entropy_loss_label_smoothing` of aten/src/ATen/native/LossNLL.cpp, with weights.

    Without weights or smoothing it goes the same way for all devices.
    """
    out: Tensor
    if weight is None or label_smoothing <= 0 or reduction != _MEAN or x.shape == target.shape:
        out = aten.cross_entropy_loss.default.decompose(
            x, target, weight, reduction, ignore_index, label_smoothing
        )
        return out
    classes = 0 if x.dim() == 1 else 1
    logs = torch.log_softmax(x, classes, dtype=x.dtype)
    likelihood = aten.nll_loss_nd.default(logs, target, weight, reduction, ignore_index)
    shape = [1] * logs.dim()
    shape[classes] = weight.shape[0]
    weighted = logs * weight.view(shape)
    summed = weighted.sum(classes)
    smooth = -summed
    del weighted, summed
    ignored = target == ignore_index
    smooth.masked_fill_(ignored, 0.0)
    kept = ~ignored
    try:
        selected = target.masked_select(kept).flatten()
    except UntraceableError:  # the values are not known: as if none were ignored, which is the most
        selected = target.flatten()
    weights = weight.gather(0, selected)
    total = weights.sum()  # g++ evaluates arguments from the last to the first
    losses = smooth.sum()
    mean = losses / total
    del kept, selected, weights, losses, total
    out = (1 - label_smoothing) * likelihood + mean * (label_smoothing / logs.shape[classes])
    return out


class _FusedRmsNorm(torch.autograd.Function):
    """`_fused_rms_norm` of aten/src/ATen/native/cuda/layer_norm_kernel.cu (torch 2.9-2.13)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
    ) -> tuple[Tensor, Tensor]:
        own = torch.ops.bsfind
        with BelowAutograd():
            out, rstd = own._fused_rms_norm.default(x, shape, weight, eps)
        ctx.save_for_backward(x, rstd, weight)
        ctx.set_materialize_grads(False)
        ctx.shape = shape
        ctx.mark_non_differentiable(rstd)
        return out, rstd

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, rstd, weight = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], weight is not None and ctx.needs_input_grad[2]]
        grad_x, grad_weight = torch.ops.bsfind._fused_rms_norm_backward.default(
            grads[0], x, ctx.shape, rstd, weight, mask
        )
        return grad_x if mask[0] else None, None, grad_weight if mask[1] else None, None


def _fused_rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    out, rstd = _FusedRmsNorm.apply(x, shape, weight, eps)  # type: ignore[no-untyped-call]
    return out, rstd


def _mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """One kernel; meta tensors get the composite `math_mish_backward`."""
    out: Tensor = torch.ops.bsfind.mish_backward.default(grad, x)
    return out


# PyTorch refuses meta kernels for composite operators, which CUDA does not decompose: they are
# called by other names, which have the same rules.
_OWN = torch.library.Library("bsfind", "FRAGMENT")  # type: ignore[no-untyped-call]
_OWN_OPERATORS = {
    "_fused_rms_norm": "(Tensor input, int[] normalized_shape, Tensor? weight, float? eps)"
    " -> (Tensor, Tensor)",
    "_fused_rms_norm_backward": "(Tensor grad_out, Tensor input, int[] normalized_shape, Tensor rstd,"
    " Tensor? weight, bool[2] output_mask) -> (Tensor, Tensor)",
    "mish_backward": "(Tensor grad_output, Tensor self) -> Tensor",
}


def _fused_rms_norm_meta(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    outer = x.shape[: x.dim() - len(shape)]
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty((*outer, *(1 for _ in shape)), dtype=dtype)


def _fused_rms_norm_backward_meta(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    rstd: Tensor,
    weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape if output_mask[0] else (0,))
    like = x if weight is None else weight
    return grad_x, like.new_empty(tuple(shape) if output_mask[1] else (0,))


def _rule_of_namesake(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    rule = rule_for(call.operator.replace("bsfind::", "aten::"), call.overload)
    if rule is not None:
        rule(call, gpu, trace)


for _name, _schema in _OWN_OPERATORS.items():
    _OWN.define(_name + _schema)  # type: ignore[no-untyped-call]
    allocates(f"bsfind::{_name}")(_rule_of_namesake)
_OWN.impl("_fused_rms_norm", _fused_rms_norm_meta, "Meta")  # type: ignore[no-untyped-call]
_OWN.impl("_fused_rms_norm_backward", _fused_rms_norm_backward_meta, "Meta")  # type: ignore[no-untyped-call]
_OWN.impl("mish_backward", output_layouts.elementwise_of(0, 1), "Meta")  # type: ignore[no-untyped-call]


_KERNELS: dict[str, Callable[..., Any]] = {
    "dropout": _dropout,
    "softmax.int": _softmax_kernel(aten._softmax.default),
    "log_softmax.int": _softmax_kernel(aten._log_softmax.default),
    "linear": _linear,
    "one_hot": _one_hot,
    "grid_sampler": _grid_sampler,
    "ctc_loss.IntList": _ctc_loss,
    "ctc_loss.Tensor": _ctc_loss,
    "cross_entropy_loss": _cross_entropy_loss,
    "mish_backward": _mish_backward,
}
if hasattr(aten, "_fused_rms_norm_backward"):  # torch 2.9; before, CUDA decomposes it as well
    _KERNELS["_fused_rms_norm"] = _fused_rms_norm


class CudaComposites:
    """CUDA's ways through composite operators, and its kernels' outputs.

    Args:
        gpu: the GPU that decides.

    Attributes:
        kernels: by `name` or `name.overload` of the operator. Registered for autograd they are not
            found in inference mode, where tensors have no autograd key.
    """

    def __init__(self, gpu: GpuSpec) -> None:
        self._recurrent = recurrent_choice.RecurrentLayers()
        self.kernels: dict[str, Callable[..., Any]] = {
            **attention_choice.kernels(gpu),
            **backward.KERNELS,
            **batch_norm_choice.KERNELS,
            **_KERNELS,
            **self._recurrent.kernels(),
        }
        self._meta_kernels: dict[str, Callable[..., Any]] = {
            **attention_choice.META_KERNELS,
            **batch_norm_choice.META_KERNELS,
            **output_layouts.META_KERNELS,
            **meta_kernel_gaps.meta_kernels(),
            **recurrent_choice.meta_kernels(gpu),
        }

    def forget(self) -> None:
        """Let go of what CUDA keeps from call to call until the process ends."""
        self._recurrent.forget()

    @contextlib.contextmanager
    def active(
        self, is_on_gpu: Callable[[torch.Tensor], bool] = lambda tensor: tensor.is_meta
    ) -> Iterator[None]:
        """Let simulated tensors take CUDA's ways while inside.

        Args:
            is_on_gpu: tells a tensor on the simulated GPU from one of the host.
        """
        library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]

        def flatten_parameters(module: torch.nn.RNNBase) -> None:
            with TorchFunctionOff():
                recurrent_choice.flatten_parameters(module, is_on_gpu)

        kernels = [
            *(
                (name, refusing(operator_named(name), kernel), "AutogradMeta")
                for name, kernel in self.kernels.items()
            ),
            *((name, kernel, "Meta") for name, kernel in self._meta_kernels.items()),
            ("_cudnn_rnn", recurrent_choice.autocast_kernel, "AutocastCUDA"),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of each kernel that is replaced
            for name, kernel, key in kernels:
                override(library, name, kernel, key)
        try:
            with replacing("flatten_parameters", torch.nn.RNNBase)(flatten_parameters):
                yield
        finally:
            unload(library)
